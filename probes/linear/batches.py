"""Rows in pieces: from a matrix in memory, a matrix on disk, or anything that can be read again and again.

A probe on more than fits into memory sees its data as batches. A source says how many rows there are, what their mean
and deviation are (one pass, sums in float64), and yields batches as often as a solver asks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, ShapeMismatch

Batch = tuple[np.ndarray, np.ndarray]
"""Rows `[row d]` and what they are to be read as `[row ...]`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Rows with targets that can be read again and again."""

    read: Callable[[np.random.Generator | None], Iterator[Batch]] = field(repr=False)
    """Yields all batches once; with a generator in a new order, if the source can."""
    n: int
    """Rows."""
    width: int
    """Numbers per row."""
    mean: Float[np.ndarray, " d"] = field(repr=False)
    """Mean of each column."""
    scale: Float[np.ndarray, " d"] = field(repr=False)
    """Deviation of each column; 1 where it does not vary."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a matrix, fetched when they are asked for: a part of a matrix on disk that is never copied whole."""

    matrix: np.ndarray
    """`[row d]`, in memory or on disk."""
    rows: np.ndarray
    """Which of its rows, in this order."""

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.matrix.shape[1]

    @property
    def size(self) -> int:
        """Numbers in all."""
        return len(self.rows) * self.matrix.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix[self.rows[which]])


def some(x: "np.ndarray | Rows", rows: np.ndarray) -> "np.ndarray | Rows":
    """Some rows of a matrix; what lies on disk stays there."""
    if isinstance(x, Rows):
        return Rows(x.matrix, x.rows[rows])
    return Rows(x, rows) if isinstance(x, np.memmap) else x[rows]


def rows_of(matrix: np.ndarray, n_images: int, images: np.ndarray, *, keep: int = 2**31) -> "np.ndarray | Rows":
    """The rows of some images of a feature matrix, whose images may have several rows each.

    Args:
        matrix: `[image*row d]`.
        n_images: images in it.
        images: positions.
        keep: bytes (in float64) up to which the rows are fetched at once; above, or on disk, they stay where they are.
    """
    each = len(matrix) // n_images
    rows = (np.asarray(images)[:, None] * each + np.arange(each)).ravel()
    found = Rows(matrix, rows)
    return found[:] if not isinstance(matrix, np.memmap) and found.size * 8 <= keep else found


def matrix_source(x: "np.ndarray | Rows", target: np.ndarray, *, batch_size: int, standardise: bool = True) -> Source:
    """Rows of a matrix, in memory or on disk (a memory map is read piece by piece, never as a whole).

    Args:
        x: `[row d]`.
        target: `[row ...]`.
        batch_size: rows at once.
        standardise: False leaves mean 0 and scale 1.

    Raises:
        ShapeMismatch: not a matrix, or another number of targets.
        NotFinite: NaN or Inf; says in which row.
        BadData: no row.
    """
    x = matrix(x)
    if len(target) != len(x):
        raise ShapeMismatch(f"{len(x)} rows of features and {len(target)} targets: they must be as many.")

    def read(generator: np.random.Generator | None = None) -> Iterator[Batch]:
        order = np.arange(len(x)) if generator is None else generator.permutation(len(x))
        for start in range(0, len(x), batch_size):
            # Sorted inside a batch: a disk is read in one direction.
            rows = slice(start, start + batch_size) if generator is None else np.sort(order[start : start + batch_size])
            yield np.asarray(x[rows]), np.asarray(target[rows])

    return _measured(read, standardise, what="features")


def batches_source(batches: Iterable[Batch], *, standardise: bool = True) -> Source:
    """Batches from anything that can be iterated again, e.g. an object whose `__iter__` runs a model.

    Args:
        batches: yields `(rows, targets)`; read once for mean and deviation and once per epoch, in its own order.
        standardise: False leaves mean 0 and scale 1.

    Raises:
        BadData: an iterator, which can be read only once; or no batch.
        ShapeMismatch: batches that differ in width.
    """
    if isinstance(batches, Iterator):
        raise BadData(
            f"a {type(batches).__name__} can be read only once, and fitting reads the data several times. Pass a list, "
            "or an object whose __iter__ starts anew each time."
        )
    return _measured(lambda generator=None: iter(batches), standardise, what="batches")


def matrix(x: Any) -> "np.ndarray | Rows":
    """`x` as a matrix of numbers with at least one row.

    Raises:
        ShapeMismatch, BadData.
    """
    x = x if isinstance(x, np.ndarray | Rows) else np.asarray(x)
    if x.ndim != 2:
        raise ShapeMismatch(f"features are a matrix [row d], got the shape {list(x.shape)}.")
    if not x.shape[0] or not x.shape[1]:
        raise BadData(f"features of the shape {list(x.shape)}: there is nothing to read from.")
    return x


def _measured(read: Callable[..., Iterator[Batch]], standardise: bool, *, what: str) -> Source:
    """One pass: number of rows, mean and deviation by Chan's update, and whether all is finite."""
    n, mean, squares = 0, np.zeros(0), np.zeros(0)
    for x, target in read(None):
        x = np.asarray(matrix(x), np.float64)
        if n and x.shape[1] != len(mean):
            raise ShapeMismatch(f"a batch has {x.shape[1]} columns, those before it {len(mean)}.")
        if len(target) != len(x):
            raise ShapeMismatch(f"a batch has {len(x)} rows and {len(target)} targets.")
        if not np.isfinite(x).all():
            bad = n + int((~np.isfinite(x)).any(1).argmax())
            raise NotFinite(f"the {what} hold NaN or Inf, first in row {bad}. Look at the image it comes from.")
        if not n:
            mean, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        here, own = len(x), x.mean(0)
        squares = squares + ((x - own) ** 2).sum(0) + (own - mean) ** 2 * n * here / (n + here)
        mean = mean + (own - mean) * here / (n + here)
        n += here
    if not n:
        raise BadData(f"the {what} hold no row.")
    deviation = np.sqrt(squares / n)
    # Rounding leaves a constant column with a deviation of about 1e-16 of its size: blown up, it would be noise.
    constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-12)
    scale = np.where(constant, 1.0, deviation)
    if not standardise:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    return Source(read=read, n=n, width=len(mean), mean=mean, scale=scale)
