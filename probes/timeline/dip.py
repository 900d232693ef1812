"""Is there one peak or are there several? Hartigan's dip (Hartigan and Hartigan 1985; **K**), for layers too.

The dip is the smallest distance (largest difference of distribution functions) between the data and any unimodal
distribution: convex up to its mode, concave after it. It is between 1 / (2 n) and 1 / 4.

1. Take a modal interval, at first all of the data. On it, the greatest convex minorant of the distribution function
   from below, and the least concave majorant from above.
2. Where they are furthest apart, at a corner of either, the interval shrinks to what lies between the two curves'
   corners there. Left of it the data must follow the minorant, right of it the majorant; the largest deviation from
   them there is a candidate for the dip.
3. Repeat until the curves are nowhere further apart than the candidate.

The p-value compares with uniform data, the least favourable unimodal distribution.

Layers are whole numbers, and many images share one. For the dip as it stands each of them is a jump, of which a
unimodal distribution may have one only; a perfect peak over three layers would count as several. So with `anchors=` the
images of an anchor are spread evenly over its cell, half an anchor to either side (**X**), and the comparison data are
drawn uniformly on the same anchors and spread in the same way.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch


@dataclass(frozen=True, kw_only=True)
class Dip:
    """The dip of some numbers, and how often unimodal data have as large a one."""

    dip: float
    """Distance to the nearest unimodal distribution."""
    p: float
    """`(1 + draws with at least this dip) / (1 + draws)`."""
    n: int
    """Numbers."""
    draws: int
    """Sets of uniform data."""


def dip(values: Real[np.ndarray, " image"]) -> float:
    """Hartigan's dip of a sample.

    Args:
        values: at least one number, in any order; ties are allowed.

    Raises:
        ShapeMismatch: not one axis of numbers.
        NotFinite: NaN or Inf.

    Example:
        >>> dip(np.array([0.0, 0.0, 1.0, 1.0]))
        0.25
    """
    return _of_values(_numbers(values))


def dip_test(
    values: Real[np.ndarray, " image"], *, anchors: int | None = None, draws: int = 2000, seed: int = 0
) -> Dip:
    """The dip and its p-value against uniform data of the same size.

    Args:
        values: numbers, or anchors 0 to `anchors - 1`.
        anchors: number of anchors that the values are numbers of; None: continuous values.
        draws: sets of uniform data.
        seed: of the draws.

    Raises:
        BadData: values that are no anchors.
        OutOfRange: no draw.

    Example:
        >>> dip_test(np.repeat([0, 11], 50), anchors=12, draws=200).p < 0.01
        True
    """
    x = _numbers(values)
    if draws < 1:
        raise OutOfRange(f"draws={draws}: at least 1.")
    if anchors is not None and ((x != np.round(x)).any() or x.min() < 0 or x.max() > anchors - 1):
        raise BadData(f"the values are not all anchors 0 to {anchors - 1}: they go from {x.min():g} to {x.max():g}.")
    generator = np.random.default_rng(seed)

    def drawn() -> float:
        if anchors is None:
            return _of_values(generator.random(len(x)))
        return _of_counts(np.bincount(generator.integers(0, anchors, len(x)), minlength=anchors))

    mine = _of_values(x) if anchors is None else _of_counts(np.bincount(x.astype(np.int64), minlength=anchors))
    # 1e-12: dips that are equal in exact arithmetic must count as equal.
    hits = sum(drawn() >= mine - 1e-12 for _ in range(draws))
    return Dip(dip=mine, p=(1 + hits) / (1 + draws), n=len(x), draws=draws)


def _of_values(values: Real[np.ndarray, " image"]) -> float:
    """The dip of a sample: its distribution function jumps at every value."""
    x, counts = np.unique(values, return_counts=True)
    upper = np.cumsum(counts) / len(values)
    return _dip(x, upper - counts / len(values), upper, 0.5 / len(values))


def _of_counts(counts: np.ndarray) -> float:
    """The dip of counts per anchor, spread evenly over its cell: the distribution function bends at the edges."""
    n = counts.sum()
    edges = np.append(0, np.cumsum(counts)) / n
    return _dip(np.arange(len(edges), dtype=float), edges, edges, 0.5 / n)


def _dip(
    x: Float[np.ndarray, " place"], lower: Float[np.ndarray, " place"], upper: Float[np.ndarray, " place"], least: float
) -> float:
    """The dip of a distribution function that goes from `lower` to `upper` at each place, and is straight between."""
    low, high, found = 0, len(x) - 1, 2 * least
    while True:
        minorant, majorant = _corners(x, lower, low, high), _corners(x, -upper, low, high)
        above = np.interp(x[minorant], x[majorant], upper[majorant]) - lower[minorant]
        below = upper[majorant] - np.interp(x[majorant], x[minorant], lower[minorant])
        gap = max(above.max(), below.max())
        if gap <= found + 1e-15:
            break
        if above.max() >= below.max():
            new_low = int(minorant[above.argmax()])
            new_high = int(majorant[np.searchsorted(majorant, new_low)])
        else:
            new_high = int(majorant[below.argmax()])
            new_low = int(minorant[np.searchsorted(minorant, new_high, side="right") - 1])
        # At the modal interval's own ends the distribution may jump; outside it must follow the curves.
        left, right = np.arange(low, new_low), np.arange(new_high + 1, high + 1)
        if len(left):
            found = max(found, (upper[left] - np.interp(x[left], x[minorant], lower[minorant])).max())
        if len(right):
            found = max(found, (np.interp(x[right], x[majorant], upper[majorant]) - lower[right]).max())
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    return float(found / 2)


def _corners(x: np.ndarray, y: np.ndarray, low: int, high: int) -> np.ndarray:
    """Corners of the greatest convex function below the points `low` to `high`: places in `x`."""
    kept: list[int] = []
    for new in range(low, high + 1):
        while len(kept) > 1:
            first, middle = kept[-2], kept[-1]
            if (y[middle] - y[first]) * (x[new] - x[first]) < (y[new] - y[first]) * (x[middle] - x[first]):
                break
            kept.pop()
        kept.append(new)
    return np.array(kept)


def _numbers(values: np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ShapeMismatch(f"the dip is of one axis of numbers, got the shape {list(x.shape)}.")
    if not np.isfinite(x).all():
        raise NotFinite("the values hold NaN or Inf.")
    return x
