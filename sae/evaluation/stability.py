"""Stability: do two trainings find the same directions? Latents of two dictionaries matched by cosine.

1. Up to `LARGE` latents: the assignment with the largest sum of cosines (Hungarian; overcomplete, RA-SAE 2502.12892).
2. Above: mutual nearest neighbours, in pieces, without the whole matrix. Latents without a mutual neighbour count with
   the cosine of their nearest, and the share that has one is reported.

The same is done for random directions with the covariance of each dictionary's own: with many directions in few
dimensions something is always near, and a stability below that line says nothing was found twice.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap

LARGE = 4096
"""Latents above which mutual nearest neighbours take the place of the assignment, which costs n³."""
_PIECE = 2**24
"""Entries of a piece of the matrix of cosines."""

WORDS = {
    "first": "one dictionary",
    "second": "the other",
    "cosine": "mean cosine of the directions of matched latents, with its interval over latents",
    "matched": "share of the first's latents that are matched (all by assignment; mutual nearest neighbours above)",
    "same": "share of the first's latents whose match has a cosine of .7 or more",
    "random": "mean cosine of the same matching between random directions with each dictionary's covariance",
    "latents": "latents of the first that were compared",
    "method": "assignment or mutual nearest neighbours",
}


class Stability(Record):
    """How far dictionaries agree, pair by pair; the first table has one row per pair."""

    KIND = "dictionary_stability"


def matched(
    first: Float[Tensor, "latent d"], second: Float[Tensor, "other d"], *, large: int = LARGE
) -> tuple[Float[np.ndarray, " latent"], np.ndarray, Bool[np.ndarray, " latent"]]:
    """Best partner of each direction.

    Args:
        first: directions of any length but zero.
        second: likewise, of the same width.
        large: more latents than this are matched by nearest neighbours.

    Returns:
        Cosine with the partner, the partner's index (-1 and NaN where an assignment leaves none), and whether the two
        belong to each other.

    Raises:
        ShapeMismatch: other widths.
        NotFinite, BadData: directions that are not finite, or zero.

    Example:
        >>> a = torch.eye(3)
        >>> matched(a, a[[2, 0, 1]])[1].tolist()
        [1, 2, 0]
    """
    a, b = _unit(first), _unit(second)
    if a.shape[1] != b.shape[1]:
        raise ShapeMismatch(f"directions of width {a.shape[1]} and {b.shape[1]} cannot be compared.")
    if max(len(a), len(b)) <= large:
        from scipy.optimize import linear_sum_assignment

        cosine = (a @ b.T).numpy()
        rows, partners = linear_sum_assignment(-cosine)
        value, partner = np.full(len(a), np.nan), np.full(len(a), -1)
        value[rows], partner[rows] = cosine[rows, partners], partners
        return value, partner, partner >= 0
    value, partner = _nearest(a, b)
    _, back = _nearest(b, a)
    return value, partner, back[partner] == np.arange(len(a))


def _nearest(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    found = [(part @ b.T).max(1) for part in a.split(max(1, _PIECE // len(b)))]
    return torch.cat([f.values for f in found]).numpy(), torch.cat([f.indices for f in found]).numpy()


def _unit(directions: Tensor) -> Tensor:
    d = directions.detach().double().cpu()
    if d.ndim != 2 or not len(d):
        raise ShapeMismatch(f"directions are [latent d], at least one; got {list(d.shape)}.")
    if not torch.isfinite(d).all():
        raise NotFinite("directions hold NaN or Inf.")
    length = d.norm(dim=1, keepdim=True)
    if not (length > 0).all():
        raise BadData(f"direction {int((length[:, 0] == 0).nonzero()[0, 0])} is zero: leave dead latents out (alive=).")
    return d / length


def stability(
    dictionaries: Mapping[str, Any],
    *,
    alive: Mapping[str, Bool[np.ndarray, " latent"]] | None = None,
    large: int = LARGE,
    seed: int = 0,
) -> Stability:
    """Compare all pairs of dictionaries, e.g. of several seeds.

    Args:
        dictionaries: two or more by name, of the same width.
        alive: by name, which latents to compare; all where left out.
        large: more latents than this are matched by nearest neighbours.
        seed: of random directions and of the resamples.

    Raises:
        BadData: fewer than two, or nothing alive.
        ShapeMismatch: other widths.

    Example:
        >>> import sae
        >>> rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sae.start(sae.TopK(n_latents=16, k=2), {"site": rows})
        >>> round(stability({"a": d, "b": d}).table["cosine"][0], 6)
        1.0
    """
    if len(dictionaries) < 2:
        raise BadData("stability compares dictionaries: give two or more, by name.")
    directions = {name: _alive(name, d, (alive or {}).get(name)) for name, d in dictionaries.items()}
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for first, second in combinations(directions, 2):
        a, b = directions[first], directions[second]
        cosine, _, mutual = matched(a, b, large=large)
        chance, _, _ = matched(_like(a, generator), _like(b, generator), large=large)
        known = cosine[~np.isnan(cosine)]
        estimate = bootstrap(known[None], seed=seed, method="percentile")
        rows.append(
            {
                "first": first,
                "second": second,
                "cosine": float(estimate.effect[0]),
                "cosine_low": float(estimate.low[0]),
                "cosine_high": float(estimate.high[0]),
                "matched": float(mutual.mean()),
                "same": float((np.nan_to_num(cosine) >= 0.7).mean()),
                "random": float(np.nanmean(chance)),
                "latents": len(a),
                "method": "assignment" if max(len(a), len(b)) <= large else "mutual nearest neighbours",
            }
        )
    return Stability(
        title=f"Directions that {len(directions)} dictionaries share",
        tables={"pairs": pl.DataFrame(rows)},
        words=WORDS,
        caveats=("Intervals are over latents: they say nothing about other seeds than these.",),
        provenance=provenance(seed=seed),
    )


def _alive(name: str, d: Any, which: np.ndarray | None) -> Tensor:
    directions = d.directions.detach().double().cpu()
    if which is None:
        return directions
    which = np.asarray(which)
    if which.dtype != bool or which.shape != (len(directions),):
        raise ShapeMismatch(f"alive[{name!r}] is bool [latent], {len(directions)} long; got {list(which.shape)}.")
    if not which.any():
        raise BadData(f"no latent of {name!r} is alive.")
    return directions[torch.from_numpy(which)]


def _like(directions: Tensor, generator: torch.Generator) -> Tensor:
    """As many random directions with the covariance of these (about zero)."""
    unit = _unit(directions)
    drawn = torch.randn(len(unit), len(unit), generator=generator, dtype=torch.float64)
    return drawn @ unit
