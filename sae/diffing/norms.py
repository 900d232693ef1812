"""Where a latent writes, by the norms of its decoder; which sites belong to which model; pairs that do not belong.

Δ_i = ½ (‖W_i^B‖ - ‖W_i^A‖) / max(‖W_i^A‖, ‖W_i^B‖) + ½: 0 only in A, ½ the same in both, 1 only in B. Norms are those
of scaled activations, so that a model with larger numbers does not look as if it had more latents.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch, unknown
from sae.architectures.crosscoder import site_norms

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends

Models = Mapping[str, Sequence[str]]
"""Sites of each of two models, by the model's name."""


def models_of(ends: "Ends", models: Models | None = None) -> dict[str, list[str]]:
    """The two models that are compared, and their sites.

    Args:
        ends: what is written.
        models: sites by model; None: by what stands before the first slash (as `sae.Together` names them), or each of
            two sites.

    Raises:
        BadData: not two models, a site in none or in both.
        UnknownName: a site that is not written.
    """
    sites = list(ends.writes)
    if models is None:
        before = [name.split("/", 1)[0] if "/" in name else name for name in sites]
        models = {name: [s for s, b in zip(sites, before, strict=True) if b == name] for name in dict.fromkeys(before)}
    found = {name: [own] if isinstance(own, str) else list(own) for name, own in models.items()}
    for site in (site for own in found.values() for site in own):
        if site not in sites:
            raise unknown("site", site, sites)
    if len(found) != 2 or sorted(site for own in found.values() for site in own) != sorted(sites):
        raise BadData(
            f"two models are compared, and every site belongs to one of them; got {found} for the sites "
            f"{', '.join(sites)}. Give models={{'before': [...], 'after': [...]}}."
        )
    return found


def relative_norms(d: "Dictionary", *, models: Models | None = None) -> Float[np.ndarray, " latent"]:
    """Δ of every latent: 0 only in the first model, 1 only in the second. A latent that writes nothing has ½.

    Args:
        d: a crosscoder.
        models: see :func:`models_of`.

    Raises:
        BadData, UnknownName: see :func:`models_of`.

    Example:
        >>> import sae
        >>> rows = {name: torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) for name in "ab"}
        >>> d = sae.start(sae.architectures.Crosscoder(n_latents=4), rows)
        >>> relative_norms(d).round(3).tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    norms = model_norms(d, models_of(d.ends, models)).cpu().numpy().astype(np.float64)
    return relative(norms[:, 0], norms[:, 1])


def model_norms(d: "Dictionary", models: Mapping[str, Sequence[str]]) -> Float[Tensor, "latent model"]:
    """Norm of what each latent writes in each model."""
    if not hasattr(d, "W_dec"):
        raise BadData(f"{d.architecture.NAME} has several decoders for each latent's site; diff a crosscoder.")
    by_site = site_norms(d.W_dec.detach(), d.ends)
    place = {name: number for number, name in enumerate(d.ends.writes)}
    return torch.stack([by_site[:, [place[s] for s in own]].square().sum(1).sqrt() for own in models.values()], dim=1)


def relative(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """½ (b - a) / max(a, b) + ½; ½ where both are zero."""
    largest = np.maximum(first, second)
    return 0.5 * (second - first) / np.where(largest > 0, largest, 1.0) + 0.5


def shuffled_pairs(rows: Mapping[str, Tensor], *, keep: str, seed: int = 0) -> dict[str, Tensor]:
    """Rows of one model as they are, all others in another order: a control in which nothing is shared.

    A crosscoder that is trained on them must not find shared latents; what it finds nevertheless (from means, from
    chance) is the floor for what the real one finds.

    Args:
        rows: `[row d]` by site.
        keep: what stays: a site, or all sites that begin with it and a slash.
        seed: of the order.

    Raises:
        UnknownName: `keep` names nothing.
        BadData: it names everything.
        ShapeMismatch: sites of different lengths.
    """
    kept = [name for name in rows if name == keep or name.startswith(f"{keep}/")]
    if not kept:
        raise unknown("site or model", keep, rows)
    if len(kept) == len(rows):
        raise BadData(f"{keep!r} names all sites, so nothing would be shuffled.")
    if len({len(t) for t in rows.values()}) != 1:
        raise ShapeMismatch("sites have different numbers of rows, so they are no pairs.")
    order = torch.from_numpy(
        np.random.default_rng(seed).permutation(len(rows[keep] if keep in rows else rows[kept[0]]))
    )
    return {name: t if name in kept else t[order.to(t.device)] for name, t in rows.items()}
