"""How sure is a mean effect: intervals over images, p-values, and corrections for many comparisons.

The unit of resampling is the image, never the patch or the token: images are what a claim generalises over.

1. :func:`bootstrap`: mean effect of every unit with a 95 % interval and a p-value, for `[unit image]` at once.
   All units see the same resampled images, so one weight matrix serves all of them and the work is a matrix product,
   done in pieces of bounded memory whose size does not change the result.
2. :func:`paired_difference`: the same for `first - second`, image by image.
3. :func:`interval_of`: any other statistic of images (a ratio, an accuracy of the worst group).
4. :func:`benjamini_hochberg`, :func:`benjamini_yekutieli`, :func:`holm`: adjusted p-values when many units are tested;
   :func:`max_statistic_p`: the same from the data, where units go together.

NaN marks an image that is undefined for a unit. It is left out of that unit's mean and counted in `excluded`.

Why p comes from a t-test and not from the bootstrap: B resamples cannot show a p below about 1/B, and with 144 heads
one single true head would need 0.05/144 to survive. The t-test has no such floor, but it is too sure of itself when
only a few images change at all (accuracies). So p is never below `2^(1-k)`, the smallest p that the exact sign-flip
test can give when k images have a non-zero effect.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch, unknown

RESAMPLES = 2000
"""Bootstrap resamples by default; the ends of a 95 % interval then rest on 50 resamples each."""

SMALL = 100
"""Below this number of images `method="auto"` takes BCa intervals, which correct for bias and skew."""

_CHUNK = 2**22
"""Entries of the largest intermediate array (32 MB as float64)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """Mean effects of units with what is known about their sampling error. All arrays are `[unit]`."""

    effect: np.ndarray = field()
    """Mean over the images used, in the unit of the values; NaN where no image is defined."""
    low: np.ndarray = field()
    """Lower end of the interval; NaN with fewer than two images."""
    high: np.ndarray = field()
    """Upper end of the interval."""
    p: np.ndarray = field()
    """Two-sided p-value of "the mean is zero"; NaN with fewer than two images."""
    n: np.ndarray = field()
    """Images used, int64."""
    excluded: np.ndarray = field()
    """Images left out because their value is NaN, int64."""


def bootstrap(
    values: np.ndarray, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0, method: str = "auto"
) -> Estimate:
    """Mean of each unit over images, with a bootstrap interval over images and a p-value.

    Args:
        values: effect per image, `[unit image]` (or `[image]` for one unit); NaN = undefined, left out and counted.
        resamples: number of bootstrap resamples.
        level: coverage of the interval, e.g. 0.95.
        seed: fixes the resamples; the same for all units.
        method: `percentile`, `bca` (Efron 1987, eq. 3.8 on), or `auto`: BCa for units with fewer than 100 images.

    Returns:
        One entry per unit, in the unit of `values`.

    Raises:
        ShapeMismatch: not one or two axes, or no image.
        NotFinite: Inf in the values.
        OutOfRange: level not between 0 and 1, or fewer than 1 resample.

    Example:
        >>> found = bootstrap(np.array([[1.0, 2.0, 3.0, 4.0]]))
        >>> float(found.effect[0]), int(found.n[0]), bool(found.low[0] < 2.5 < found.high[0])
        (2.5, 4, True)
    """
    values = _per_image(values)
    _check(resamples, level, method)
    valid = ~np.isnan(values)
    n = valid.sum(1)
    used = valid.any(0)
    values, valid = values[:, used], valid[:, used]
    with np.errstate(invalid="ignore"):
        effect = np.where(n > 0, np.where(valid, values, 0.0).sum(1) / np.maximum(n, 1), np.nan)
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    if values.shape[1]:
        step = max(1, _CHUNK // max(resamples, values.shape[1]))
        for start in range(0, len(values), step):
            part = slice(start, start + step)
            low[part], high[part] = _intervals(values[part], valid[part], effect[part], resamples, level, seed, method)
    low[n < 2], high[n < 2] = np.nan, np.nan
    return Estimate(effect=effect, low=low, high=high, p=_t_test(values, valid, effect, n), n=n, excluded=len(used) - n)


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    method: str = "auto",
) -> Estimate:
    """Mean of `first - second` over images: paired, so what both share of an image's difficulty cancels.

    An image that is NaN in either is left out and counted. Arguments and errors as in :func:`bootstrap`; the two arrays
    must have the same shape and order of images.

    Example:
        >>> float(paired_difference(np.array([3.0, 5.0]), np.array([1.0, 4.0])).effect[0])
        1.5
    """
    first, second = _per_image(first), _per_image(second)
    if first.shape != second.shape:
        raise ShapeMismatch(
            f"a paired difference needs the same units and images on both sides, got "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    return bootstrap(first - second, resamples=resamples, level=level, seed=seed, method=method)


def interval_of(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Percentile bootstrap of any statistic of images: a ratio, a worst-group accuracy, a rank correlation.

    Args:
        statistic: called with the resampled columns, returns one number. It may return NaN for a resample in which it
            is undefined (an empty group).
        columns: arrays whose first axis is the image; resampled together.
        resamples: number of bootstrap resamples.
        level: coverage of the interval.
        seed: fixes the resamples.

    Returns:
        The statistic of the data, and the lower and upper end of its interval; the ends are NaN if the statistic is
        undefined in more than 5 % of the resamples.

    Example:
        >>> interval_of(lambda wrong, all: wrong.sum() / all.sum(), np.ones(9), np.full(9, 2.0))
        (0.5, 0.5, 0.5)
    """
    _check(resamples, level, "percentile")
    arrays = [np.asarray(column) for column in columns]
    lengths = {len(array) if array.ndim else 0 for array in arrays}
    if len(lengths) != 1 or not min(lengths):
        raise ShapeMismatch(f"columns need the same number of images, at least one, got {sorted(lengths)}.")
    generator = np.random.default_rng(seed)
    n = lengths.pop()
    draws = np.empty(resamples)
    for draw in range(resamples):
        rows = generator.integers(0, n, n)
        draws[draw] = statistic(*(array[rows] for array in arrays))
    value = float(statistic(*arrays))
    defined = draws[~np.isnan(draws)]
    if len(defined) < 0.95 * resamples:
        return value, float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def sign_flip_p(values: np.ndarray, *, flips: int = 10_000, seed: int = 0) -> np.ndarray:
    """Two-sided p-value of "effects are symmetric around zero" by flipping the sign of each image's effect.

    All sign patterns are tried where there are at most `flips` of them (then p is exact), else `flips` random ones
    (then p is at least 1 / (flips + 1)).

    Args:
        values: `[unit image]` or `[image]`; NaN = left out.
        flips: largest number of sign patterns.
        seed: fixes the random patterns.

    Returns:
        p `[unit]`; NaN where no image is defined.

    Example:
        >>> sign_flip_p(np.array([1.0, 1.0, 1.0]))
        array([0.25])
    """
    if flips < 1:
        raise OutOfRange(f"flips must be at least 1, got {flips}.")
    values = _per_image(values)
    generator = np.random.default_rng(seed)
    p = np.full(len(values), np.nan)
    for unit, row in enumerate(values):
        row = row[~np.isnan(row)]
        if not len(row):
            continue
        # Zeros do not change under a flip, so they need no pattern.
        moved = row[row != 0]
        exact = len(moved) < 63 and 2 ** len(moved) <= flips
        total = 2 ** len(moved) if exact else flips
        hits = 0
        # 1e-9: sums that are equal in exact arithmetic must count as equal.
        bar = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()
        step = max(1, _CHUNK // max(1, len(moved)))
        for start in range(0, total, step):
            count = min(step, total - start)
            if exact:
                bits = (np.arange(start, start + count)[:, None] >> np.arange(len(moved))) & 1
            else:
                bits = generator.integers(0, 2, (count, len(moved)))
            hits += int((np.abs((2 * bits - 1) @ moved) >= bar).sum())
        p[unit] = hits / total if exact else (hits + 1) / (total + 1)
    return p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate (Benjamini and Hochberg 1995).

    Rejecting where the result is <= 0.05 keeps the expected share of false ones among the rejected below 5 %, for
    independent or positively dependent tests. NaN stays NaN and does not count as a test.

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.02, 0.03, 0.5]))
        array([0.04, 0.04, 0.04, 0.5 ])
    """
    p, known, order = _ordered(p)
    m = len(order)
    scaled = p[known][order] * m / np.arange(1, m + 1)
    return _restore(p, known, order, np.minimum.accumulate(scaled[::-1])[::-1])


def benjamini_yekutieli(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate under any dependence (Benjamini and Yekutieli 2001):
    those of Benjamini and Hochberg times `1 + 1/2 + ... + 1/m`. NaN as above.

    Example:
        >>> benjamini_yekutieli(np.array([0.01, 0.02])).round(6)
        array([0.03, 0.03])
    """
    m = int((~np.isnan(np.asarray(p, dtype=np.float64))).sum())
    return np.minimum(benjamini_hochberg(p) * (1 / np.arange(1, m + 1)).sum(), 1.0)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the chance of even one false rejection (Holm 1979). NaN as above.

    Example:
        >>> holm(np.array([0.01, 0.02, 0.5]))
        array([0.03, 0.04, 0.5 ])
    """
    p, known, order = _ordered(p)
    m = len(order)
    return _restore(p, known, order, np.maximum.accumulate(p[known][order] * np.arange(m, 0, -1)))


def max_statistic_p(values: np.ndarray, *, flips: int = 2000, seed: int = 0) -> np.ndarray:
    """Adjusted two-sided p-values of "effects are symmetric around zero" for many units at once (Westfall and Young).

    The sign of each image's effects is flipped for all units together, so that correlations between units stay, and
    each unit's |t| is compared with the largest one of all units. Controls the chance of even one false rejection,
    and gives away less than Holm where units go together.

    Args:
        values: `[unit image]`; NaN = left out.
        flips: random sign patterns; p is at least 1 / (flips + 1).
        seed: fixes them.

    Returns:
        p `[unit]`; NaN for a unit with fewer than two images.

    Example:
        >>> float(max_statistic_p(np.ones((1, 12)), flips=99)[0])
        0.01
    """
    if flips < 1:
        raise OutOfRange(f"flips must be at least 1, got {flips}.")
    values = _per_image(values)
    valid = ~np.isnan(values)
    filled, n = np.where(valid, values, 0.0), valid.sum(1)
    used = n > 1
    squares = (filled**2).sum(1)

    def largest(signs: np.ndarray) -> np.ndarray:
        """|t| `[unit flip]`: sums of squares do not change under a flip."""
        sums = filled @ signs
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.maximum(squares[:, None] - sums**2 / n[:, None], 0) / (n[:, None] - 1)
            found = np.abs(sums) / np.sqrt(n[:, None] * spread)
        # Equal effects of all images: infinitely certain, unless they are all zero.
        return np.where(spread > 1e-14 * squares[:, None] / n[:, None], found, np.where(sums == 0, 0.0, np.inf))

    if not used.any():
        return np.full(len(values), np.nan)
    own = largest(np.ones((values.shape[1], 1)))[:, 0]
    generator = np.random.default_rng(seed)
    hits = np.zeros(len(values), dtype=np.int64)
    step = max(1, _CHUNK // max(values.shape))
    for start in range(0, flips, step):
        signs = generator.integers(0, 2, (values.shape[1], min(step, flips - start))) * 2.0 - 1.0
        top = largest(signs)[used].max(0)
        hits += (top[None] >= own[:, None] * (1 - 1e-9)).sum(1)
    return np.where(used, (hits + 1) / (flips + 1), np.nan)


def _intervals(
    values: np.ndarray, valid: np.ndarray, effect: np.ndarray, resamples: int, level: float, seed: int, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Interval ends `[unit]` for some units; the resamples depend on the seed and the number of images only."""
    units, images = values.shape
    # Centred values: a constant row then has resampled means of exactly its mean, not of its mean plus rounding.
    centred = np.where(valid, values - np.nan_to_num(effect)[:, None], 0.0)
    complete = bool(valid.all())
    means = np.empty((units, resamples))
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        rows = generator.integers(0, images, (count, images)) + np.arange(count)[:, None] * images
        weights = np.bincount(rows.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        total = images if complete else valid.astype(np.float64) @ weights.T
        with np.errstate(invalid="ignore"):
            # 0 / 0 where a resample holds none of a unit's images: NaN, sorted to the end and not counted.
            means[:, start : start + count] = centred @ weights.T / total
    means.sort(axis=1)
    drawn = resamples - np.isnan(means).sum(1)
    ends = np.broadcast_to(np.array([(1 - level) / 2, (1 + level) / 2]), (units, 2))
    n = valid.sum(1)
    corrected = n < SMALL if method == "auto" else np.full(units, method == "bca")
    if corrected.any():
        ends = np.where(corrected[:, None], _bca_ends(means, drawn, centred, ends), ends)
    low, high = (effect + _quantile(means, drawn, ends[:, side]) for side in (0, 1))
    constant = np.where(valid, values, -np.inf).max(1) == np.where(valid, values, np.inf).min(1)
    return np.where(constant, effect, low), np.where(constant, effect, high)


def _bca_ends(means: np.ndarray, drawn: np.ndarray, centred: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which quantiles to take instead of `ends` `[unit 2]`: bias-corrected and accelerated."""
    from scipy.special import ndtr, ndtri

    below = ((means < 0).sum(1) + (means <= 0).sum(1)) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        bias = ndtri(below / drawn)[:, None]
        # The jackknife deviations of a mean are those of the values, scaled: the acceleration is their skew / 6.
        acceleration = ((centred**3).sum(1) / (6 * (centred**2).sum(1) ** 1.5))[:, None]
        shifted = bias + ndtri(ends)
        corrected = ndtr(bias + shifted / (1 - acceleration * shifted))
    return np.where(np.isfinite(corrected), corrected, ends)


def _quantile(ordered: np.ndarray, counts: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quantile `share[unit]` of the first `counts[unit]` entries of each sorted row, by linear interpolation."""
    place = np.clip(share, 0, 1) * np.maximum(counts - 1, 0)
    floor = np.floor(place).astype(np.int64)
    ceiling = np.minimum(floor + 1, np.maximum(counts - 1, 0))
    rows = np.arange(len(ordered))
    low, high = ordered[rows, floor], ordered[rows, ceiling]
    return low + (high - low) * (place - floor)


def _t_test(values: np.ndarray, valid: np.ndarray, effect: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Two-sided one-sample t-test `[unit]`, never below the sign-flip test's smallest possible p (see the top)."""
    from scipy.special import stdtr

    centred = np.where(valid, values - np.nan_to_num(effect)[:, None], 0.0)
    moved = (valid & (values != 0)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt((centred**2).sum(1) / (n - 1) / n)
        p = 2 * stdtr(n - 1.0, -np.abs(effect / error))
    p = np.where(error == 0, np.where(effect == 0, 1.0, 0.0), p)
    return np.where(n < 2, np.nan, np.maximum(p, 2.0 ** (1.0 - np.maximum(moved, 1))))


def _per_image(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2:
        raise ShapeMismatch(f"effects need the axes [unit image], got the shape {list(values.shape)}.")
    if values.shape[1] == 0:
        raise ShapeMismatch(f"effects of {values.shape[0]} units over 0 images: there is nothing to average.")
    if np.isinf(values).any():
        unit, image = np.argwhere(np.isinf(values))[0]
        raise NotFinite(f"the effect of unit {unit} on image {image} is infinite. NaN marks an image that is left out.")
    return values


def _check(resamples: int, level: float, method: str) -> None:
    if resamples < 1:
        raise OutOfRange(f"resamples must be at least 1, got {resamples}.")
    if not 0 < level < 1:
        raise OutOfRange(f"level must lie between 0 and 1 (e.g. 0.95), got {level}.")
    if method not in ("auto", "percentile", "bca"):
        raise unknown("interval method", method, ("auto", "percentile", "bca"))


def _ordered(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1:
        raise ShapeMismatch(f"p-values need one axis, got the shape {list(p.shape)}.")
    known = ~np.isnan(p)
    if known.any() and (p[known].min() < 0 or p[known].max() > 1):
        raise OutOfRange(f"p-values lie between 0 and 1, got {p[known].min()} to {p[known].max()}.")
    return p, known, np.argsort(p[known], kind="stable")


def _restore(p: np.ndarray, known: np.ndarray, order: np.ndarray, adjusted: np.ndarray) -> np.ndarray:
    found = np.empty(len(order))
    found[order] = np.minimum(adjusted, 1.0)
    result = np.full(len(p), np.nan)
    result[known] = found
    return result
