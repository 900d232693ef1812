"""From effects in the metric's unit to shares of the difference between clean and corrupt.

With `raw` the effect of a unit on an image, and `total = M(clean) - M(corrupt)`, there are two orders to average in:

* `ratio_of_means`: `mean(raw) / mean(total)`. Every pair counts by how much it moves the model; pairs that move it
  little do no harm. Its interval is a bootstrap over images that resamples numerator and denominator together
  (percentiles of 2000 resamples). The default (**X**).
* `mean_of_ratios`: `mean(raw / total)`. Every pair counts the same, so a pair with a tiny total would drown the others:
  pairs with |total| below a share (`tiny`) of the mean |total| are left out and counted.

p-values are those of "the mean effect is zero" (for the ratio of means that of `raw`, since a fixed non-zero mean total
does not change what is tested).
"""

import numpy as np
from jaxtyping import Float

from mechvis import stats
from mechvis.stats import RESAMPLES, Estimate

ORDERS = ("ratio_of_means", "mean_of_ratios")

_CHUNK = 2**22
"""Entries of the largest intermediate array."""

_NOTHING = 1e-9
"""A mean total that is less than this share of the mean |total| is rounding."""

_DEFINED = 0.95
"""Share of the resamples in which the mean total must have its sign; else the interval is undefined."""


def ratio_of_means(
    raw: Float[np.ndarray, "unit image"], total: Float[np.ndarray, " image"], *, seed: int = 0
) -> tuple[Estimate, Float[np.ndarray, "unit image"]]:
    """Mean effect over mean total, with a bootstrap interval over images.

    Args:
        raw: effects in the metric's unit; NaN = the unit does not exist in that image, which then counts in neither
            mean.
        total: metric(clean) - metric(corrupt) per image.
        seed: fixes the resamples; the same for all units.

    Returns:
        The estimate (interval NaN with fewer than two images, or where the mean total is not clearly different from
        zero: its sign changes in more than 5 % of the resamples), and per-image values whose mean is the effect:
        `raw / mean(total)`. Both NaN where the totals cancel.

    Example:
        >>> found, values = ratio_of_means(np.array([[1.0, 3.0]]), np.array([2.0, 6.0]))
        >>> float(found.effect[0]), values.tolist()
        (0.5, [[0.25, 0.75]])
    """
    raw, total = np.asarray(raw, np.float64), np.asarray(total, np.float64)
    valid = ~np.isnan(raw)
    n = valid.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, sizes = (np.where(valid, of, 0.0).sum(1) / n for of in (total, np.abs(total)))
        means[np.abs(means) <= _NOTHING * sizes] = np.nan
        values = raw / means[:, None]
        effect = np.where(valid, values, 0.0).sum(1) / n
    low, high = np.full(len(raw), np.nan), np.full(len(raw), np.nan)
    step = max(1, _CHUNK // max(RESAMPLES, raw.shape[1]))
    for start in range(0, len(raw), step):
        part = slice(start, start + step)
        low[part], high[part] = _interval(raw[part], valid[part], total, means[part], seed)
    low[n < 2], high[n < 2] = np.nan, np.nan
    of_raw = stats.bootstrap(raw, resamples=1, seed=seed)
    return Estimate(effect=effect, low=low, high=high, p=of_raw.p, n=n, excluded=raw.shape[1] - n), values


def mean_of_ratios(
    raw: Float[np.ndarray, "unit image"], total: Float[np.ndarray, " image"], *, tiny: float = 0.05, seed: int = 0
) -> tuple[Estimate, Float[np.ndarray, "unit image"]]:
    """Mean of the shares, pairs with a tiny total left out.

    Args:
        raw, total, seed: as for :func:`ratio_of_means`.
        tiny: pairs with |total| below this share of the mean |total| are left out.

    Returns:
        The estimate, and the shares per image (NaN where left out).

    Example:
        >>> found, _ = mean_of_ratios(np.array([[1.0, 6.0, 5.0]]), np.array([2.0, 6.0, 1e-9]))
        >>> float(found.effect[0]), int(found.n[0])
        (0.75, 2)
    """
    raw, total = np.asarray(raw, np.float64), np.asarray(total, np.float64)
    shares = raw / np.where(is_tiny(total, tiny), np.nan, total)
    return stats.bootstrap(shares, seed=seed), shares


def is_tiny(total: Float[np.ndarray, " image"], tiny: float) -> np.ndarray:
    """Which pairs move the metric by less than a share of what pairs move it on average."""
    return np.abs(total) <= tiny * np.abs(total).mean()


def _interval(
    raw: np.ndarray, valid: np.ndarray, total: np.ndarray, means: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    units, images = raw.shape
    filled, complete = np.where(valid, raw, 0.0), bool(valid.all())
    draws = np.empty((units, RESAMPLES))
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // images)
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        rows = generator.integers(0, images, (count, images)) + np.arange(count)[:, None] * images
        weights = np.bincount(rows.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        below = (weights @ total)[None] if complete else (valid * total) @ weights.T
        # A resample in which the total has the other sign (or none) says nothing about a share of it.
        below = np.where(below * np.sign(means)[:, None] > 0, below, np.nan)
        draws[:, start : start + count] = filled @ weights.T / below
    defined = np.isfinite(draws).mean(1) >= _DEFINED
    low, high = np.full(units, np.nan), np.full(units, np.nan)
    if defined.any():
        low[defined], high[defined] = np.nanquantile(draws[defined], [0.025, 0.975], axis=1)
    return low, high
