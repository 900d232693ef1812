"""How far two circuits are apart: six distances between vectors of signed edge scores (methods.md 4.3).

===================  ===============================================================================================
distance             d(a, b), 0 for a set with itself
===================  ===============================================================================================
`spearman`           1 - rank correlation (the default and the best of the published ones, "v, SRCC" **C**)
`pearson`            1 - correlation
`cosine`             1 - cosine of the angle; hardly moves at first, since the few large edges rule it (**P**)
`l2`                 Euclidean length of the difference; has the unit of the scores, so class counts change it
`kendall`            1 - Kendall's tau-b
`weighted_jaccard`   1 - sum min(|a|, |b|) / sum max(|a|, |b|); blind to signs
===================  ===============================================================================================

The released code gives correlations where we give distances: ours is 1 minus theirs (**X**). Its spectra of Laplacians,
NetLSD and degree distributions are not offered.

`top_mass=0.95` (**X**) keeps the edges that carry 95 % of the absolute mass of either side, and drops the others: the
ranks of tens of thousands of edges near zero are noise. `top_mass=1` keeps all, as the published distance does.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown

Distance = Literal["spearman", "pearson", "cosine", "l2", "kendall", "weighted_jaccard"]
DISTANCES = ("spearman", "pearson", "cosine", "l2", "kendall", "weighted_jaccard")

Weights = Float[np.ndarray, " edge"]


def distance(first: Weights, second: Weights, kind: Distance = "spearman", *, top_mass: float = 0.95) -> float:
    """Distance of two weight vectors; exactly 0 for equal ones.

    Args:
        first: signed scores of all edges.
        second: the same edges, other images.
        kind: see the module.
        top_mass: share of the absolute mass that the kept edges carry, of either side; 1 keeps all edges.

    Raises:
        UnknownName: no such distance.
        ShapeMismatch: not two vectors of one length.
        NotFinite: NaN or Inf.
        BadData: fewer than two edges are kept, or all scores of a side are equal, so that it has no order.
        OutOfRange: top_mass outside (0, 1].

    Example:
        >>> round(distance(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), top_mass=1), 12)
        2.0
    """
    if kind not in DISTANCES:
        raise unknown("distance", kind, DISTANCES)
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ShapeMismatch(
            f"a distance needs the scores of the same edges twice, got {list(first.shape)} and {list(second.shape)}."
        )
    for side, values in (("first", first), ("second", second)):
        if not np.isfinite(values).all():
            raise NotFinite(f"the {side} scores hold NaN or Inf at edge {int(np.argmin(np.isfinite(values)))}.")
    kept = top_edges(first, top_mass) | top_edges(second, top_mass)
    first, second = first[kept], second[kept]
    if len(first) < 2:
        raise BadData(f"only {len(first)} edge carries {top_mass:.0%} of the mass; raise top_mass, or pass 1.")
    if kind == "l2":
        return float(np.linalg.norm(first - second))
    if np.array_equal(first, second):
        return 0.0
    if kind == "weighted_jaccard":
        sizes = np.abs(first), np.abs(second)
        return 1 - float(np.minimum(*sizes).sum() / np.maximum(*sizes).sum())
    if kind == "cosine":
        return 1 - _cosine(first, second)
    for side, values in (("first", first), ("second", second)):
        if np.ptp(values) == 0:
            raise BadData(f"all {len(values)} kept edges of the {side} side score {values[0]:.4g}: they have no order.")
    if kind == "kendall":
        from scipy.stats import kendalltau

        return 1 - float(kendalltau(first, second).statistic)
    if kind == "spearman":
        from scipy.stats import rankdata

        first, second = rankdata(first), rankdata(second)
    return 1 - _cosine(first - first.mean(), second - second.mean())


def top_edges(weights: Weights, top_mass: float) -> Bool[np.ndarray, " edge"]:
    """The fewest edges, largest first, that carry a share of the absolute mass.

    Args:
        weights: signed scores.
        top_mass: the share; 1 keeps all edges, also those that score exactly 0.

    Raises:
        OutOfRange: outside (0, 1].

    Example:
        >>> top_edges(np.array([5.0, -4.0, 0.5, 0.5]), 0.9)
        array([ True,  True, False, False])
    """
    if not 0 < top_mass <= 1:
        raise OutOfRange(f"top_mass={top_mass}: a share above 0 and at most 1.")
    size = np.abs(weights)
    if top_mass == 1 or not size.any():
        return np.ones(len(size), dtype=bool)
    order = np.argsort(-size, kind="stable")
    carried = np.cumsum(size[order])
    # A hair less than asked: sums that are equal in exact arithmetic must count as equal.
    n = int(np.searchsorted(carried, top_mass * carried[-1] * (1 - 1e-12))) + 1
    kept = np.zeros(len(size), dtype=bool)
    kept[order[:n]] = True
    return kept


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    if lengths == 0:
        raise BadData("all scores of one side are 0: there is no angle. Were the edges measured?")
    return float(np.clip(first @ second / lengths, -1, 1))
