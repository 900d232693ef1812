"""Optimised pictures side by side, faint where their objective did not look, each with a note."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.look import INK, blank, headline, numbers, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE, _ACROSS = 1.9, 4


def pictures(
    images: np.ndarray, transparency: np.ndarray | None = None, notes: Sequence[str] = (), *, title: str = ""
) -> "Figure":
    """Pictures with one note each below.

    Args:
        images: `[picture height width channel]`, 0 to 1, of 1 or 3 channels.
        transparency: `[picture height width]`, 0 (white) to 1; None: all of the picture is shown.
        notes: one per picture, or none.
        title: above the figure.

    Raises:
        ShapeMismatch: arrays or notes that do not belong together.
        OutOfRange: values outside 0..1.
        NotFinite: NaN or Inf.

    Example:
        >>> figure = pictures(np.full((2, 4, 4, 3), 0.5), notes=["seed 0", "seed 1"])
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['seed 0', 'seed 1']
    """
    from matplotlib.figure import Figure

    images = numbers("images", images, ndim=4, nan=False)
    if images.shape[3] not in (1, 3):
        raise ShapeMismatch(f"pictures have 1 or 3 channels in the last axis, got {list(images.shape)}.")
    if notes and len(notes) != len(images):
        raise ShapeMismatch(f"{len(notes)} notes for {len(images)} pictures.")
    if images.min() < 0 or images.max() > 1:
        raise OutOfRange(f"pictures lie between 0 and 1, these between {images.min():.3g} and {images.max():.3g}.")
    if transparency is not None:
        clear = numbers("transparency", transparency, ndim=3, like=images.shape[:3], nan=False).clip(0, 1)
        # Never quite white, so that the frame of a picture can be seen.
        images = 1 - (0.15 + 0.85 * clear[..., None]) * (1 - images)
    across = min(len(images), _ACROSS)
    down = math.ceil(len(images) / across)
    figure = Figure(figsize=(max(_SIDE * across, 3.2), (_SIDE + 0.35) * down), layout="constrained")
    for place, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        blank(axes)
        if place >= len(images):
            axes.set_visible(False)
            continue
        axes.imshow(np.broadcast_to(images[place], (*images.shape[1:3], 3)), interpolation="nearest")
        if notes:
            axes.set_xlabel(wrapped(notes[place], 28), size=8, color=INK)
    headline(figure, title)
    return figure
