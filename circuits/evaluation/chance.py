"""How likely is such a ranking by chance? Exact permutation p-values of AUROC and average precision.

Under "the scores know nothing", every choice of k positives among n units is equally likely. With two positives among a
hundred, a random ranking has been seen to reach an AUROC of 0.745 (benchmark_apps.md A.6 **M**), so few positives never
go without a p-value.

* AUROC: the rank sum of the positives. Its distribution is counted exactly, ties as mid-ranks, by adding one unit after
  the other (dynamic programming over twice the rank sum). Where that takes too long (more than about ten positives in
  800 units) a normal distribution takes its place.
* Average precision: all choices are tried where there are at most 100,000; else 10,000 random ones, and then p is at
  least 1 / 10,001.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mechvis.errors import BadData, NotFinite, ShapeMismatch

MOST_EXACT = 100_000
"""Choices of positives that are gone through one by one."""
DRAWS = 10_000
_MOST_STEPS = 2e8
"""Additions up to which the rank sum is counted; above it is approximated by a normal distribution."""
_ROUNDING = 1e-12


def auroc_p(scores: Float[np.ndarray, " unit"], positive: Bool[np.ndarray, " unit"]) -> tuple[float, bool]:
    """Share of all choices of as many positives whose AUROC is at least as large, and whether it was counted exactly.

    Args:
        scores: one per unit; larger = more likely positive.
        positive: which units are.

    Raises:
        BadData: all units are positive, or none.
        NotFinite, ShapeMismatch.

    Example:
        >>> auroc_p(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, False, False]))
        (0.25, True)
    """
    scores, positive = checked(scores, positive)
    doubled = np.rint(2 * rankdata(scores)).astype(np.int64)
    observed, k = int(doubled[positive].sum()), int(positive.sum())
    if k * 2 > len(scores):  # count the negatives instead: the same distribution, fewer additions
        observed, k = int(doubled.sum()) - observed, len(scores) - k
        tail = _distribution(doubled, k)
        below = True
    else:
        tail, below = _distribution(doubled, k), False
    if tail is None:
        return _normal(doubled, observed, k, below), False
    chosen = tail[: observed + 1] if below else tail[observed:]
    return float(min(1.0, chosen.sum())), True


def _distribution(doubled: np.ndarray, k: int) -> np.ndarray | None:
    """Probability of each doubled rank sum of k units; None: too many to count."""
    most = int(np.sort(doubled)[-k:].sum())
    if len(doubled) * k * float(most) > _MOST_STEPS:
        return None
    # chance[j, s]: a random set has j of the units so far, with the sum s. Units join with the probability that leaves
    # every set of k equally likely; so no number grows beyond 1.
    chance = np.zeros((k + 1, most + 1))
    chance[0, 0] = 1.0
    n = len(doubled)
    for seen, rank in enumerate(doubled):
        left = n - seen
        joins = (k - np.arange(k + 1)) / left
        moved = np.zeros_like(chance)
        moved[1:, rank:] = (chance * np.clip(joins, 0, 1)[:, None])[:-1, : most + 1 - rank]
        chance = chance * np.clip(1 - joins, 0, 1)[:, None] + moved
    return chance[k]


def _normal(doubled: np.ndarray, observed: int, k: int, below: bool) -> float:
    from scipy.special import ndtr

    n = len(doubled)
    mean = k * doubled.mean()
    spread = math.sqrt(k * (n - k) / (n - 1) * doubled.var())
    z = (mean - observed if below else observed - mean) / spread
    return float(ndtr(-(z - 0.5 / spread)))


def ap_p(
    scores: Float[np.ndarray, " unit"], positive: Bool[np.ndarray, " unit"], *, seed: int = 0
) -> tuple[float, bool]:
    """Share of all choices of as many positives whose average precision is at least as large, and whether all of them
    were tried.

    Args:
        scores: one per unit.
        positive: which units are.
        seed: of the random choices, where there are too many.

    Raises:
        BadData: all units are positive, or none.
        NotFinite, ShapeMismatch.

    Example:
        >>> ap_p(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]))
        (0.16666666666666666, True)
    """
    scores, positive = checked(scores, positive)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    observed = average_precision(positive[order][None], ends)[0] - _ROUNDING
    n, k = len(scores), int(positive.sum())
    exact = math.comb(n, k) <= MOST_EXACT
    hits = total = 0
    for some in _every(n, k) if exact else _drawn(n, k, seed):
        hits += int((average_precision(some, ends) >= observed).sum())
        total += len(some)
    return (hits / total if exact else (hits + 1) / (total + 1)), exact


def average_precision(positive: Bool[np.ndarray, "draw unit"], ends: np.ndarray) -> Float[np.ndarray, " draw"]:
    """Average precision of rankings: units sorted best first, `ends` the last unit of each group of equal scores.

    Example:
        >>> average_precision(np.array([[True, False, True]]), np.arange(3))
        array([0.83333333])
    """
    found = np.cumsum(positive, axis=1)[:, ends]
    precision = found / (ends + 1)
    gained = np.diff(found, axis=1, prepend=0)
    return (precision * gained).sum(1) / positive.sum(1)


def checked(scores: Float[np.ndarray, " unit"], positive: Bool[np.ndarray, " unit"]) -> tuple[np.ndarray, np.ndarray]:
    """The two as arrays, or an error."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ShapeMismatch(f"{list(scores.shape)} scores and {list(positive.shape)} truths: one of each per unit.")
    if positive.dtype != bool:
        raise BadData(f"the truth is one bool per unit, got {positive.dtype}.")
    if not np.isfinite(scores).all():
        raise NotFinite("the scores hold NaN or Inf; leave units without a score out, and say how many.")
    if positive.all() or not positive.any():
        raise BadData(f"{int(positive.sum())} of {len(positive)} units are positive: a ranking needs both kinds.")
    return scores, positive


def _every(n: int, k: int) -> Iterator[np.ndarray]:
    ways = itertools.combinations(range(n), k)
    while some := list(itertools.islice(ways, 4096)):
        chosen = np.zeros((len(some), n), dtype=bool)
        np.put_along_axis(chosen, np.array(some), True, axis=1)
        yield chosen


def _drawn(n: int, k: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    step = max(1, 2**22 // n)
    for start in range(0, DRAWS, step):
        keys = generator.random((min(step, DRAWS - start), n))
        yield keys.argsort(1) < k
