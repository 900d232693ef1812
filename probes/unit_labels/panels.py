"""Which images to show of a unit: the top ones, and some from its whole range.

Top images alone make every unit look like a clean detector. A row that is drawn evenly over the *range* of activations
shows what the middle looks like, where most of a unit's life is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange
from mechvis.record import finite


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """Places of images to show."""

    top: Int[np.ndarray, " top"]
    """The most active, largest first."""
    ranged: Int[np.ndarray, " ranged"]
    """One for each part of the range that holds an image, from high to low."""


def pick_images(values: Float[np.ndarray, " image"], *, top: int = 8, ranged: int = 8, seed: int = 0) -> Picked:
    """Top images, and one at random from each of `ranged` equal parts of the range of values (empty parts give none).

    Args:
        values: a unit's activations.
        top: how many top images.
        ranged: into how many parts the range is cut.
        seed: of the draws.

    Raises:
        OutOfRange: numbers below 1.
        BadData: no image.
        NotFinite: NaN or Inf.

    Example:
        >>> pick_images(np.arange(10.0), top=2, ranged=2).top
        array([9, 8])
    """
    values = finite("activations", np.asarray(values, np.float64))
    if values.ndim != 1 or not len(values):
        raise BadData(f"activations of one unit over images are needed, got {list(values.shape)}.")
    if top < 1 or ranged < 1:
        raise OutOfRange(f"top={top}, ranged={ranged}: give 1 or more.")
    generator = np.random.default_rng(seed)
    low, high = values.min(), values.max()
    width = (high - low) / ranged
    part = np.zeros(len(values), int) if width == 0 else np.minimum(((values - low) / width).astype(int), ranged - 1)
    chosen = [generator.choice(np.flatnonzero(part == i)) for i in range(ranged - 1, -1, -1) if (part == i).any()]
    return Picked(top=np.argsort(-values, kind="stable")[:top], ranged=np.array(chosen, dtype=np.int64))
