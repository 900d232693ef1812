"""Intervals for ratios of sums over images: an FVU, a recovered share, an accuracy.

Sums over all images come first and are divided once. (Prisma prints a mean of per-batch ratios beside a ratio of means,
and they differ: an image with little variance, or little at stake, would count as much as one with a lot.)

Images are drawn anew `RESAMPLES` times with the same seed everywhere, so that two dictionaries on the same images see
the same resamples. It is what `mechvis.stats.interval_of` does, as one matrix product; the tests compare them.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.stats import RESAMPLES

Interval = tuple[float, float, float]
"""Value, lower and upper end of its 95 % interval."""

_PIECE, _KEEP = 2**22, 2**24
"""Entries of a piece of the resampling weights, and of all of them up to which they are kept for the next call."""


def of_sums(
    statistic: Callable[..., np.ndarray],
    *columns: Float[np.ndarray, " image"],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A function of sums over images, with a 95 % bootstrap interval over images.

    Args:
        statistic: of the sums of the columns; works on arrays of any shape.
        columns: a number per image each.
        seed: of the resamples.
        resamples: how many.

    Returns:
        Value, lower and upper end; the ends are NaN with fewer than two images, or if the statistic is undefined in
        more than 5 % of the resamples.

    Raises:
        ShapeMismatch: no images, or columns of different lengths.
        NotFinite: NaN or Inf in a column.

    Example:
        >>> of_sums(lambda wrong, all: wrong / all, np.ones(9), np.full(9, 2.0))
        (0.5, 0.5, 0.5)
    """
    table = [np.asarray(column, dtype=np.float64) for column in columns]
    lengths = {len(column) if column.ndim == 1 else -1 for column in table}
    if len(lengths) != 1 or min(lengths) < 1:
        raise ShapeMismatch(f"columns are [image], all as long; got {[list(column.shape) for column in table]}.")
    stacked = np.stack(table)
    if not np.isfinite(stacked).all():
        raise NotFinite(f"column {np.argwhere(~np.isfinite(stacked))[0, 0]} holds NaN or Inf.")
    n = lengths.pop()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*stacked.sum(1)))
        if n < 2:
            return value, float("nan"), float("nan")
        pieces = _kept(n, resamples, seed) if n * resamples <= _KEEP else _weights(n, resamples, seed)
        draws = np.concatenate([statistic(*(piece @ stacked.T).T) for piece in pieces])
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(draws) < 0.95 * resamples:
        return value, float("nan"), float("nan")
    low, high = np.quantile(draws, [0.025, 0.975])
    return value, float(low), float(high)


def _weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, `[resample image]`, in pieces."""
    generator = np.random.default_rng(seed)
    step = max(1, _PIECE // n)
    for start in range(0, resamples, step):
        rows = generator.integers(0, n, (min(step, resamples - start), n))
        yield np.stack([np.bincount(row, minlength=n) for row in rows]).astype(np.float64)


@lru_cache(maxsize=1)
def _kept(n: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """A table has hundreds of intervals over the same images."""
    return tuple(_weights(n, resamples, seed))


def ratio(
    numerator: Float[np.ndarray, " image"], denominator: Float[np.ndarray, " image"], *, seed: int = 0
) -> Interval:
    """Sum over images divided by sum over images; see :func:`of_sums`."""
    return of_sums(np.divide, numerator, denominator, seed=seed)


def mean(values: Float[np.ndarray, " image"], *, seed: int = 0) -> Interval:
    """Mean over images; see :func:`of_sums`."""
    return ratio(values, np.ones(len(values)), seed=seed)


def columns(name: str, found: Interval) -> dict[str, float | None]:
    """Three cells of a table; what is not known is empty."""
    cells = dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
    return {key: value if np.isfinite(value) else None for key, value in cells.items()}
