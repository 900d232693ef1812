"""Heat of texts laid over images: one row per image, the image itself first, then one map per text."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.image_panel import checked_images, image_panel
from mechvis.plots.look import numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 22
"""Letters that fit under an image."""


def token_heat(
    images: Sequence[np.ndarray],
    maps: np.ndarray,
    texts: Sequence[str],
    *,
    masks: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    title: str = "",
    label: str = "product with the text",
    limit: float | None = None,
    n: int | str | None = None,
) -> "Figure":
    """Maps over images, red where a patch speaks for the text, blue where against it; one scale for all.

    Args:
        images: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, as the model sees them.
        maps: `[image text down across]`; NaN patches stay clear.
        texts: one per map, below it.
        masks: bool `[height width]` each; outlined on the image.
        captions: one line per image, below it; default: none.
        title: above the figure.
        label: at the colour bar; says what is measured.
        limit: value at which the colour is full; by default the largest absolute value shown.
        n: images that the shown ones are chosen from, for the note below the title.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: maps, texts, masks or captions that do not fit the images.
        NotFinite: Inf in the maps.

    Example:
        >>> figure = token_heat([np.zeros((8, 8, 3), np.uint8)], np.ones((1, 1, 4, 4)), ["a star"], captions=["1"])
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['1', 'a star']
    """
    images = checked_images(images)
    maps = numbers("maps", maps, ndim=4)
    if maps.shape[:2] != (len(images), len(texts)):
        raise ShapeMismatch(
            f"maps {list(maps.shape)} need one entry per image and text: {len(images)} images, {len(texts)} texts."
        )
    for what, extra in (("masks", masks), ("captions", captions)):
        if extra is not None and len(extra) != len(images):
            raise ShapeMismatch(f"{what} need one entry per image: {len(images)} images, {len(extra)} entries.")
    columns = 1 + len(texts)
    clear = np.full((1, *maps.shape[2:]), np.nan)
    return image_panel(
        [image for image in images for _ in range(columns)],
        overlay=[each for own in maps for each in (*clear, *own)],
        masks=None if masks is None else [mask for mask in masks for _ in range(columns)],
        captions=[_wrapped(text) for i in range(len(images)) for text in (captions[i] if captions else "", *texts)],
        columns=columns,
        title=title,
        limit=limit,
        label=label,
        n=n,
    )


def _wrapped(text: str) -> str:
    """A text in lines that fit under an image."""
    return textwrap.fill(text, _WIDTH)
