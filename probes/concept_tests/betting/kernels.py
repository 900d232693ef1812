"""Gaussian kernels for many runs at once, whose width is learnt from the past only.

A test by betting stays valid as long as everything that decides on a bet comes before the point that is bet on. So the
width of a kernel at step t is a quantile of the distances between points that were seen before t. Taking it anew at
every step from all pairs costs more than the test itself; therefore (X, both named) it is taken again when the past has
grown by `growth`, and from at most `points` of the past. With `growth=1` and `points=None` it is the plain rule.

Arrays have the runs (permutations of the data, or repetitions) as their first axis: `[run point d]`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import OutOfRange

WIDTH_SHARE = 0.9
"""The width is this quantile of past distances (C)."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How widths of kernels are taken from the past."""

    share: float = WIDTH_SHARE
    """Quantile of the distances."""
    growth: float = 1.1
    """Taken again when the past has grown by this factor; 1: at every step (X)."""
    points: int | None = 100
    """At most so many points of the past, evenly spaced over it; None: all (X)."""

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise OutOfRange(f"share={self.share}: a quantile of distances lies in (0, 1].")
        if self.growth < 1:
            raise OutOfRange(f"growth={self.growth}: at least 1 (a new width at every step).")
        if self.points is not None and self.points < 2:
            raise OutOfRange(f"points={self.points}: a distance needs two points.")

    def of(self, past: Float[np.ndarray, "run point d"]) -> Float[np.ndarray, " run"]:
        """Width per run; 1 where all distances are 0."""
        n = past.shape[1]
        if self.points is not None and n > self.points:
            past = past[:, np.linspace(0, n - 1, self.points).astype(int)]
        first, second = np.triu_indices(past.shape[1], k=1)
        if not len(first):
            return np.ones(len(past))
        apart = np.sqrt(np.square(past[:, first] - past[:, second]).sum(-1))
        width = np.quantile(apart, self.share, axis=1)
        return np.where(width > 0, width, 1.0)


class Kernel:
    """One variable's kernel in all runs; remembers its width until the past has grown enough."""

    def __init__(self, widths: Widths):
        self.widths = widths
        self.width: Float[np.ndarray, " run"] | None = None
        self.taken_at = 0

    def __call__(
        self, new: Float[np.ndarray, "run new d"], past: Float[np.ndarray, "run point d"]
    ) -> Float[np.ndarray, "run new point"]:
        """`exp(-|new - past|^2 / 2 w^2)`, with the width of what is past now."""
        n = past.shape[1]
        if self.width is None or n >= self.widths.growth * self.taken_at:
            self.width, self.taken_at = self.widths.of(past), n
        return gaussian(new, past, self.width)

    def keep(self, runs: np.ndarray) -> None:
        """Go on with some of the runs only."""
        self.width = None if self.width is None else self.width[runs]


def gaussian(
    new: Float[np.ndarray, "run new d"], past: Float[np.ndarray, "run point d"], width: Float[np.ndarray, " run"]
) -> Float[np.ndarray, "run new point"]:
    """The Gaussian kernel between new and past points, run by run.

    Example:
        >>> gaussian(np.zeros((1, 1, 1)), np.array([[[0.0], [1.0]]]), np.ones(1)).round(3)
        array([[[1.   , 0.607]]])
    """
    if new.shape[2] == 1:
        squared = np.square(new - past[:, None, :, 0])
    else:
        lengths = np.square(new).sum(-1)[:, :, None] + np.square(past).sum(-1)[:, None]
        squared = np.maximum(lengths - 2 * np.einsum("rad,rnd->ran", new, past), 0.0)
    return np.exp(squared / (-2 * np.square(width))[:, None, None])
