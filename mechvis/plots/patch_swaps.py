"""Two images side by side, with the patches that are exchanged between them framed, numbered and joined."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import DASHES, INK, LINES, blank, headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def patch_swaps(
    query: np.ndarray,
    other: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    *,
    grid: tuple[int, int],
    captions: tuple[str, str] = ("query", "other image"),
    title: str = "",
) -> "Figure":
    """Which patch of the other image goes where, in the order of the swaps.

    Args:
        query: uint8 `[height width channel]` or `[height width]`: the image that is changed.
        other: likewise: where patches come from.
        pairs: (patch of the query, patch of the other image), row by row, first swap first.
        grid: patches (down, across).
        captions: below the images.
        title: above the figure.

    Raises:
        BadImages: not uint8, or wrong axes.
        OutOfRange: a patch outside the grid.
        ShapeMismatch: an empty grid.

    Example:
        >>> image = np.zeros((8, 8, 3), np.uint8)
        >>> figure = patch_swaps(image, image, [(0, 3)], grid=(2, 2))
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['query', 'other image']
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import ConnectionPatch, Rectangle
    from matplotlib.patheffects import Normal, Stroke

    images = checked_images([query, other])
    if len(grid) != 2 or min(grid) < 1:
        raise ShapeMismatch(f"grid={grid}: patches (down, across), at least one each.")
    n_patches = grid[0] * grid[1]
    for pair in pairs:
        if not all(0 <= patch < n_patches for patch in pair):
            raise OutOfRange(f"the swap {tuple(pair)} is outside the {grid[0]} x {grid[1]} patches.")
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, image, caption in zip(both, images, captions, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xlabel(caption, size=8, color=INK)
        blank(axes)
    outline = [Stroke(linewidth=3.4, foreground="white"), Normal()]
    for number, pair in enumerate(pairs):
        colour, dash = LINES[number % len(LINES)], DASHES[number // len(LINES) % len(DASHES)]
        middles = []
        for axes, image, patch in zip(both, images, pair, strict=True):
            high, wide = image.shape[0] / grid[0], image.shape[1] / grid[1]
            left, top = patch % grid[1] * wide - 0.5, patch // grid[1] * high - 0.5
            frame = Rectangle((left, top), wide, high, fill=False, color=colour, linestyle=dash, linewidth=1.6)
            frame.set_path_effects(outline)
            axes.add_patch(frame)
            middles.append((left + wide / 2, top + high / 2))
            text = axes.text(*middles[-1], str(number + 1), size=7, color=colour, ha="center", va="center")
            text.set_path_effects([Stroke(linewidth=2, foreground="white"), Normal()])
        line = ConnectionPatch(
            *middles, "data", "data", axesA=both[0], axesB=both[1], color=colour, alpha=0.8, shrinkA=6, shrinkB=6
        )
        line.set_linestyle(dash)
        line.set_in_layout(False)
        figure.add_artist(line)
    headline(figure, title)
    return figure
