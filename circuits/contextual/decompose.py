"""Both halves of any activation, kept: what the scores and relevances are made of, for questions that they do not ask.

One pass as for the scores (`circuits.contextual.passes`); instead of a number per source and image the activations
themselves are kept, so this is for a few sources, images and sites.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.contextual.passes import ALIASES, decompose_all, setup, splittable
from circuits.contextual.rules import Rules
from mechvis.errors import BadData, unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    """Activations and the parts of them that stem from sources. Made by :func:`decompose`."""

    sources: tuple[str, ...]
    """Name of each source, in the order of the first axis of `beta`."""
    total: dict[str, Float[Tensor, "image *rest"]] = field(repr=False)
    """The model's activations, by site."""
    beta: dict[str, Float[Tensor, "source image *rest"]] = field(repr=False)
    """What stems from each source, by site."""

    def gamma(self, site: str) -> Float[Tensor, "source image *rest"]:
        """What does not stem from each source.

        Raises:
            UnknownName: a site that was not decomposed.
        """
        if site not in self.total:
            raise unknown("decomposed site", site, self.total)
        return self.total[site] - self.beta[site]


def decompose(
    model: Any,
    images: Any,
    sources: Any,
    sites: str | Iterable[str],
    *,
    rules: str | Rules = "default",
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "mean_positional",
    reference: Any = None,
    source: Any = None,
    groups: Any = None,
    paths: Literal["all", "direct"] = "all",
    batch_size: int = 256,
    seed: int = 0,
    allow_overlap: bool = False,
) -> Decomposition:
    """The pair (beta, gamma) at sites, kept in memory: `source x image` activations of each.

    Args:
        model: a wrapped model; it needs no head.
        images: an `ImageSet`, pixels, or `circuits.pairs.Pairs`. Where means are asked for without `reference=`, a
            third of them is set aside and not decomposed.
        sources: as for :func:`contextual`.
        sites: names or patterns. Scores, patterns, norm scales and head results have no pair.
        rules, edit, reference, source, groups, paths, batch_size, seed, allow_overlap: as for :func:`contextual`.

    Raises:
        UnknownSite: no such site.
        BadData: a site without a pair, or before the first source. Further as :func:`contextual`.

    Example:
        >>> found = decompose(model, pixels, ["L0H1"], "blocks.1.attn.hook_z", edit="zero")         # doctest: +SKIP
        >>> found.beta["blocks.1.attn.hook_z"].shape                                               # doctest: +SKIP
        torch.Size([1, 8, 65, 4, 32])
    """
    names = splittable(model, [sites] if isinstance(sites, str) else sites)
    ready = setup(
        model,
        images,
        sources,
        rules=rules,
        edit=edit,
        reference=reference,
        source=source,
        groups=groups,
        layers=None,
        labels="predicted",
        paths=paths,
        batch_size=batch_size,
        seed=seed,
        allow_overlap=allow_overlap,
    )
    first = min(one.layer for one in ready.sources)
    for name in names:
        layer = model.graph[name].layer if name not in ALIASES else 0
        if layer is not None and layer < first:
            raise BadData(f"no source begins before {name}: there beta is 0 by construction. Leave the site out.")
    total: dict[str, Tensor] = {}
    beta: dict[str, Tensor] = {}

    def see(site: str, whole: Tensor, mine: Tensor, rows: Sequence[int], part: range) -> None:
        if site not in total:
            total[site] = whole.new_empty(ready.n_images, *whole.shape[1:])
            beta[site] = whole.new_zeros(len(ready.sources), ready.n_images, *whole.shape[1:])
        at = slice(part.start, part.stop)
        total[site][at] = whole
        beta[site][torch.tensor(list(rows), dtype=torch.int64), at] = mine

    decompose_all(ready, names, see, progress=False, what="decomposition")
    alias = {name: ALIASES.get(name, name) for name in names}
    return Decomposition(
        sources=tuple(one.name for one in ready.sources),
        total={name: total[at] for name, at in alias.items()},
        beta={name: beta[at] for name, at in alias.items()},
    )
