"""Reference means of activations: what mean ablation replaces with.

Means are estimated on reference images, which must not be the images an effect is measured on. The object remembers
which images they were.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechvis.errors import BadData, UnknownSite


@dataclass(frozen=True, eq=False, repr=False)
class Means(Mapping[str, Tensor]):
    """Positional means `[token ...]` per site over `n` reference images."""

    per_site: dict[str, Tensor]
    """Mean over images, per token position."""
    n: int
    """How many images."""
    data: str
    """Fingerprint of the reference images."""
    ids: frozenset[str] = frozenset()
    """Which images, to refuse them in evaluation."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.per_site:
            raise UnknownSite(f"no means for {name!r}; computed for: {', '.join(list(self.per_site)[:4])} ...")
        return self.per_site[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.per_site)

    def __len__(self) -> int:
        return len(self.per_site)

    def __repr__(self) -> str:
        return f"Means({len(self)} sites over {self.n} images, data {self.data})"


def means(model: Any, images: Any, sites: str | Sequence[str], *, batch_size: int = 64) -> Means:
    """Mean activation per token position over reference images, accumulated in float64.

    Args:
        model: a wrapped model.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        sites: names or patterns.
        batch_size: images per forward.

    Example:
        >>> reference = means(model, train, "blocks.*.attn.hook_z")                    # doctest: +SKIP
        >>> edits.mean_positional("blocks.3.attn.hook_z", reference, heads=[1])        # doctest: +SKIP
    """
    if len(images) == 0:
        raise BadData("means need at least one reference image.")
    totals: dict[str, Tensor] = {}
    for start in range(0, len(images), batch_size):
        run = model.run(images[start : start + batch_size], capture=sites)
        for name, value in run.cache.items():
            total = value.sum(0, dtype=torch.float64)
            totals[name] = totals[name] + total if name in totals else total
    values = {name: (total / len(images)).to(model.dtype) for name, total in totals.items()}
    return Means(values, len(images), getattr(images, "fingerprint", ""), frozenset(getattr(images, "ids", ())))
