"""Intervals of anything that is made of means over images: ratios of means, areas under them, their differences.

One bootstrap for all: images are drawn with replacement, and the means of *all* rows (the whole model, the empty one,
every circuit) are taken over the same draw. A ratio of means is then resampled with its numerator and denominator
together, and the difference of two circuits is paired (faithfulness.md 2.7, **C**). Percentiles of 2000 draws.
"""

import numpy as np
from jaxtyping import Float

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.stats import RESAMPLES

_CHUNK = 2**22
"""Entries of the largest intermediate array."""

DEFINED = 0.95
"""Share of the draws in which a number must be defined to have an interval."""

Draws = Float[np.ndarray, "draw *rows"]
"""One number per bootstrap draw (and row)."""


def resampled_means(
    values: Float[np.ndarray, "row image"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Float[np.ndarray, "draw row"]:
    """Means over images of each bootstrap draw; the same images for all rows.

    Args:
        values: one row per circuit.
        seed: fixes the draws.
        resamples: how many.

    Raises:
        ShapeMismatch: not two axes, or no image.
        NotFinite: NaN or Inf.

    Example:
        >>> resampled_means(np.ones((2, 5)), resamples=3)
        array([[1., 1.],
               [1., 1.],
               [1., 1.]])
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise ShapeMismatch(f"values are [row image] with at least one image, got {list(values.shape)}.")
    if not np.isfinite(values).all():
        raise NotFinite("the values to resample hold NaN or Inf.")
    n = values.shape[1]
    generator = np.random.default_rng(seed)
    # Centred, so that a row that is the same on all images has no spread, also not that of rounding.
    centre = values.mean(1)
    rest = values - centre[:, None]
    found = np.empty((resamples, len(values)))
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        rows = generator.integers(0, n, (count, n)) + np.arange(count)[:, None] * n
        weights = np.bincount(rows.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        found[start : start + count] = weights @ rest.T / n
    return centre + found


def interval(draws: Draws, n_images: int, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the draws (first axis).

    Args:
        draws: NaN where a number is undefined.
        n_images: images behind it; fewer than two give no interval.
        level: coverage.

    Returns:
        Lower and upper end; NaN where there is none.

    Example:
        >>> low, high = interval(np.arange(101.0), 10)
        >>> round(float(low), 6), round(float(high), 6)
        (2.5, 97.5)
    """
    draws = np.asarray(draws, dtype=np.float64)
    flat = draws.reshape(len(draws), -1)
    low, high = np.full(flat.shape[1], np.nan), np.full(flat.shape[1], np.nan)
    usable = (~np.isnan(flat)).mean(0) >= DEFINED
    if n_images >= 2 and usable.any():
        ends = [(1 - level) / 2, (1 + level) / 2]
        low[usable], high[usable] = np.nanquantile(flat[:, usable], ends, axis=0)
    return low.reshape(draws.shape[1:]), high.reshape(draws.shape[1:])


def ratio(
    numerator: Float[np.ndarray, "*above"], denominator: Float[np.ndarray, "*below"], sign: float | np.ndarray
) -> Float[np.ndarray, "*both"]:
    """Numerator over denominator; NaN where the denominator is zero or has another sign than `sign`: a draw in which
    cutting everything helps says nothing about a share of what cutting everything costs.

    Example:
        >>> ratio(np.array([1.0, 1.0]), np.array([2.0, -2.0]), 1.0)
        array([0.5, nan])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator * np.sign(sign) > 0, numerator / denominator, np.nan)
