"""How short a probe makes the labels: the online (prequential) code of Voita and Titov (2020; **K**, methods.md 3.2).

1. The images in a random order are cut at 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 per cent.
2. The first block costs `t_1 log2 C` bits: nothing is known yet.
3. Each further block costs `-log2 p(labels)` by the probe that was trained on all blocks before it. Classes that it has
   not seen get the probability `floor` before all are renormalised (**X**), so that no label costs endless bits.
4. `compression = n log2 C / bits`: above 1 the labels can be read, far above 1 they can be read from few images. Labels
   that cannot be read cost more than telling them one by one: below 1.

Unlike accuracy, this punishes a probe that needs all the data.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.linear.batches import Rows, matrix
from probes.linear.estimators import ClassProbe

BOUNDARIES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
FLOOR = 1e-3
MOST = 20_000


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineCode:
    """Length of labels under a probe."""

    bits: float
    """All blocks together."""
    uniform_bits: float
    """`n log2 C`: each label told by itself."""
    blocks: tuple[tuple[int, int, float], ...]
    """Per block: first row, one past the last, bits."""
    n: int
    """Labels."""

    @property
    def compression(self) -> float:
        """`uniform_bits / bits`."""
        return self.uniform_bits / self.bits


def online_code(
    x: np.ndarray | Rows,
    y: np.ndarray,
    *,
    n_classes: int | None = None,
    boundaries: tuple[float, ...] = BOUNDARIES,
    floor: float = FLOOR,
    most: int = MOST,
    seed: int = 0,
    **settings: Any,
) -> OnlineCode:
    """The online code length of labels, given features.

    Args:
        x: features `[row d]`.
        y: class of each row.
        n_classes: how many classes could occur; default: as many as do.
        boundaries: ends of the blocks as shares of the rows, rising to 1.
        floor: probability of a class that was not seen, before renormalising.
        most: rows that are told at most, drawn at random (they are held in memory).
        seed: of the order.
        settings: of the :class:`ClassProbe` that is trained for each block; its default weight decay is scikit-learn's
            `C=1` at every size.

    Raises:
        BadData: boundaries or a floor without sense, or fewer than two classes.
        ShapeMismatch, NotFinite: as the probe.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(200) % 2
        >>> bool(online_code(rng.normal(size=(200, 3)) + 4 * y[:, None], y).compression > 3)
        True
    """
    if not boundaries or min(boundaries) <= 0 or boundaries[-1] != 1 or list(boundaries) != sorted(set(boundaries)):
        raise BadData(f"boundaries={boundaries}: shares of the rows above 0, rising, the last one 1.")
    if not 0 < floor < 1:
        raise OutOfRange(f"floor={floor}: a probability between 0 and 1.")
    x, y = matrix(x), np.asarray(y)
    classes, coded = np.unique(y, return_inverse=True)
    count = len(classes) if n_classes is None else n_classes
    if len(x) != len(y):
        raise ShapeMismatch(f"{len(x)} rows of features and {len(y)} labels: they must be as many.")
    if count < max(2, len(classes)):
        raise BadData(
            f"{len(classes)} classes occur and n_classes={n_classes}: a code needs at least two, and all of them."
        )
    order = np.random.default_rng(seed).permutation(len(y))[:most]
    # Read in one direction, for a matrix on disk, and then brought into the order of the code.
    x, coded = np.asarray(x[np.sort(order)])[order.argsort().argsort()], coded[order]
    # At least one row in each block; blocks that a small set would leave empty are joined with the next.
    ends = np.unique(np.maximum(1, np.round(np.array(boundaries) * len(coded)).astype(int)))
    first = int(ends[0])
    blocks = [(0, first, first * float(np.log2(count)))]
    for start, stop in pairwise(ends):
        p = _probabilities(x[:start], coded[:start], x[start:stop], count, floor, settings)
        bits = -np.log2(p[np.arange(stop - start), coded[start:stop]]).sum()
        blocks.append((int(start), int(stop), float(bits)))
    total = sum(bits for _, _, bits in blocks)
    return OnlineCode(bits=total, uniform_bits=len(coded) * float(np.log2(count)), blocks=tuple(blocks), n=len(coded))


def _probabilities(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, count: int, floor: float, settings: dict[str, Any]
) -> np.ndarray:
    """Probability of every class for new rows, by a probe that saw `x` and `y`: `[row class]`."""
    seen = np.unique(y)
    p = np.zeros((len(new), count))
    p[:, seen] = 1.0 if len(seen) == 1 else ClassProbe(**settings).fit(x, y).predict_proba(new)
    # A probability that underflows to 0 would cost endless bits as an unseen class does.
    p[:, seen] = np.maximum(p[:, seen], 1e-12)
    p[:, np.setdiff1d(np.arange(count), seen)] = floor
    return p / p.sum(1, keepdims=True)
