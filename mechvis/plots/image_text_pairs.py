"""Words against patches: one small map per word, the image first."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import DIVERGING, INK, blank, colour_bar, headline, numbers, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE, _ACROSS = 1.25, 8


def image_text_pairs(
    maps: np.ndarray, words: Sequence[str], *, image: Any = None, title: str = "", label: str = "part of the cosine"
) -> "Figure":
    """A map per word on one common scale: red where a patch and the word make image and text alike, blue where less so.

    Args:
        maps: `[word down across]`.
        words: one per map.
        image: the picture `[height width channel]` uint8, shown first and under the maps' edges; None: none.
        title: above the figure, e.g. the whole text.
        label: at the colour bar.

    Raises:
        ShapeMismatch: not one map per word.
        NotFinite: NaN or Inf in the maps.
        BadImages: not a picture.

    Example:
        >>> figure = image_text_pairs(np.ones((2, 4, 4)), ["a", "star"])
        >>> [axes.get_xlabel() for axes in figure.axes[:2]]
        ['a', 'star']
    """
    from matplotlib.figure import Figure

    maps = numbers("maps", maps, ndim=3, nan=False)
    if len(maps) != len(words):
        raise ShapeMismatch(f"{len(maps)} maps for {len(words)} words: one per word.")
    picture = None if image is None else checked_images([image])[0]
    n = len(words) + (picture is not None)
    across = min(n, _ACROSS)
    down = math.ceil(n / across)
    figure = Figure(figsize=(_SIDE * across + 0.9, (_SIDE + 0.25) * down + 0.1), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    limit = float(np.abs(maps).max()) or 1.0
    drawn = None
    for place, axes in enumerate(grid.flat):
        blank(axes)
        if place >= n:
            axes.set_visible(False)
            continue
        word = place - (picture is not None)
        if word < 0:
            axes.imshow(picture, interpolation="nearest", cmap="gray")
            axes.set_xlabel("the image", size=8, color=INK)
            continue
        drawn = axes.imshow(maps[word], cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_xlabel(wrapped(words[word], 16), size=8, color=INK)
    colour_bar(figure, drawn, list(grid.flat), label)
    headline(figure, title, "common scale; red: this patch and this word make image and text more alike")
    return figure
