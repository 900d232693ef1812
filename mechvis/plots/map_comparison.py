"""Maps of several methods side by side: one row per image, one column per method.

Methods have units of their own, so each column is scaled by its own largest value over all rows; a column is read from
top to bottom, and columns are compared by shape, not by depth of colour. Methods with negative values have the
diverging map, the others the sequential one.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.plots.image_overlay import lay_over
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import INK, blank, colour_bar, headline, numbers, sample, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def map_comparison(
    images: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    captions: Sequence[str] | None = None,
    below: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
    n: int | None = None,
) -> "Figure":
    """One row per image: the image, then the map of each method over it.

    Args:
        images: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, as the model sees them.
        maps: method -> its maps `[image down across]`; grids may differ between methods; NaN patches stay clear.
        captions: one per image, beside its row: class names.
        below: method -> one text per image under its map, e.g. its score.
        title: above the figure.
        n: images that the shown ones are chosen from.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: no method, or maps or texts that do not fit the images.
        NotFinite: Inf, or a method without any value.

    Example:
        >>> figure = map_comparison([np.zeros((8, 8, 3), np.uint8)], {"random": np.ones((1, 2, 2))})
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['image', 'random']
    """
    from matplotlib.figure import Figure

    images = checked_images(images)
    if not maps:
        raise ShapeMismatch("a comparison of maps needs at least one method, got none.")
    values = {name: numbers(f"maps of {name!r}", entry, ndim=3) for name, entry in maps.items()}
    for name, entry in values.items():
        if len(entry) != len(images):
            raise ShapeMismatch(f"maps of {name!r} need one map per image: {len(images)} images, {len(entry)} maps.")
        if not np.isfinite(entry).any():
            raise NotFinite(f"the maps of {name!r} are NaN everywhere: there is nothing to show.")
    for what, extra in {"captions": captions, **(below or {})}.items():
        if extra is not None and len(extra) != len(images):
            raise ShapeMismatch(f"{what} needs one entry per image: {len(images)} images, {len(extra)} entries.")
    if strange := [name for name in below or () if name not in values]:
        raise ShapeMismatch(f"texts below {strange[0]!r}, which has no maps. Methods: {', '.join(values)}.")
    rows, columns = len(images), 1 + len(values)
    signed = {name: bool(np.nanmin(entry) < 0) for name, entry in values.items()}
    high = 1.27 + (0.16 if below else 0)
    figure = Figure(
        figsize=(1.27 * columns + 0.95 * len(set(signed.values())) + 0.2, high * rows + 0.4), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    bars = {}
    for row, image in enumerate(images):
        grid[row, 0].imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if captions is not None:
            grid[row, 0].set_ylabel(wrapped(captions[row], 18), size=8, color=INK)
        for axes, (name, entry) in zip(grid[row, 1:], values.items(), strict=True):
            largest = float(np.nanmax(np.abs(entry))) or 1.0
            low = -1.0 if signed[name] else 0.0
            bars[signed[name]] = lay_over(axes, image, entry[row] / largest, signed[name], low, 1.0)
            if below is not None and name in below:
                axes.set_xlabel(wrapped(below[name][row], 20, 1), size=7, color=INK, labelpad=2)
    for axes in grid.ravel():
        blank(axes)
    for axes, name in zip(grid[0], ("image", *values), strict=True):
        axes.set_title(wrapped(name, 20), size=8, color=INK)
    for drawn in bars.values():
        colour_bar(figure, drawn, grid.ravel().tolist(), "share of the method's largest value", aspect=26)
    headline(figure, title, f"each method on its own scale, the same in all rows{sample(n)}")
    return figure
