"""Attribution maps over their images: what the model saw, and below it the map on the patch grid.

The image lies in grey under the colours, so that no colour of the image is mistaken for a value. All maps share one
scale, so that they can be compared. Tokens that lie nowhere in the image (CLS, registers) are written below the map
with their value: a map that leaves most of its sum there is no map of the image.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import AMOUNTS, DIVERGING, GREY, INK, blank, colour_bar, headline, numbers, sample, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPACITY = 0.64
_DARKEST = -140
"""What black stands for under a map: the image is lifted to light greys, so that it does not darken the values."""


def image_overlay(
    maps: Sequence[np.ndarray],
    images: Sequence[np.ndarray] | None = None,
    *,
    titles: Sequence[str] | None = None,
    signed: bool | None = None,
    prefix: Mapping[str, np.ndarray] | None = None,
    columns: int = 6,
    title: str = "",
    label: str = "attribution",
    n: int | None = None,
    limit: float | None = None,
) -> "Figure":
    """Images in rows, each with its map below it; or maps alone.

    Args:
        maps: values on the patch grid `[down across]` each; NaN patches stay clear.
        images: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, as the model sees them
            (resized and cropped), so that patches lie where they belong; None: the maps alone.
        titles: one per map, above it: class names, or what the map explains.
        signed: True: red for, blue against, white at zero; False: amounts from 0 up; None: signed if a value is
            negative.
        prefix: token name -> its value per image `[image]`; written below the map.
        columns: images per row.
        title: above the figure.
        label: at the colour bar; says what is measured, and in which unit.
        n: images that the shown ones are chosen from.
        limit: value of full colour; by default the largest absolute value of all maps.

    Raises:
        BadImages: not uint8, or wrong axes; names the image.
        ShapeMismatch: no map, or not one image, title or prefix value per map.
        OutOfRange: a negative value where `signed=False`.
        NotFinite: Inf, or no value at all.

    Example:
        >>> figure = image_overlay([np.eye(2)], [np.zeros((8, 8, 3), np.uint8)], titles=["star"], prefix={"CLS": [0.5]})
        >>> figure.axes[0].get_title(), figure.axes[1].get_xlabel()
        ('star', 'CLS +0.5')
    """
    from matplotlib.figure import Figure

    if not len(maps):
        raise ShapeMismatch("there is no map to show.")
    values = [numbers(f"map {i}", entry, ndim=2) for i, entry in enumerate(maps)]
    pictures = None if images is None else checked_images(images)
    for what, extra in {"images": pictures, "titles": titles, **(prefix or {})}.items():
        if extra is not None and len(extra) != len(values):
            raise ShapeMismatch(f"{what} needs one entry per map: {len(values)} maps, {len(extra)} entries.")
    if columns < 1:
        raise ShapeMismatch(f"columns must be at least 1, got {columns}.")
    beside = {name: numbers(f"prefix {name!r}", entry) for name, entry in (prefix or {}).items()}
    signed = any(bool((entry < 0).any()) for entry in values) if signed is None else signed
    low, high = limits(values, signed, limit)
    columns, each = min(columns, len(values)), 1 if pictures is None else 2
    rows = -(-len(values) // columns)
    tall = 1.31 * each + 0.16 * len(beside) + 0.18 * (titles is not None)
    figure = Figure(figsize=(max(1.3 * columns + 1.0, 3.4), rows * tall), layout="constrained")
    grid = figure.subplots(each * rows, columns, squeeze=False)
    drawn = None
    for place in range(rows * columns):
        cells = grid[each * (place // columns) : each * (place // columns + 1), place % columns]
        if place >= len(values):
            for axes in cells:
                axes.remove()
            continue
        if pictures is not None:
            cells[0].imshow(pictures[place], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        drawn = lay_over(cells[-1], None if pictures is None else pictures[place], values[place], signed, low, high)
        for axes in cells:
            blank(axes)
        if titles is not None:
            cells[0].set_title(wrapped(titles[place], 20), size=8, color=INK, pad=3)
        outside = [f"{wrapped(name, 12, 1)} {entry[place]:+.3g}" for name, entry in beside.items()]
        cells[-1].set_xlabel("\n".join(outside), size=7, color=GREY, labelpad=2)
    colour_bar(figure, drawn, list(figure.axes), label, aspect=26 if rows * each > 1 else 14)
    said = "one scale for all maps"
    if beside:
        said += f"; {', '.join(beside)}: outside of the image, value below the map"
    headline(figure, title, f"{said}{sample(n)}")
    return figure


def limits(maps: Sequence[np.ndarray], signed: bool, limit: float | None = None) -> tuple[float, float]:
    """Values of the two ends of the colours, for maps that share a scale.

    Args:
        maps: any shapes.
        signed: the scale has its middle at zero, or starts there.
        limit: value of full colour; default: the largest.

    Raises:
        NotFinite: no value at all.
        OutOfRange: a negative value on a scale of amounts, or a limit that is not positive.

    Example:
        >>> limits([np.array([[1.0, -3.0]])], True)
        (-3.0, 3.0)
    """
    known = np.concatenate([np.ravel(entry)[np.isfinite(np.ravel(entry))] for entry in maps])
    if not known.size:
        raise NotFinite("the maps are NaN everywhere: there is nothing to show.")
    if not signed and known.min() < 0:
        raise OutOfRange(f"a scale of amounts starts at 0, got {known.min():.4g}; use signed=True.")
    if limit is not None and not limit > 0:
        raise OutOfRange(f"the limit of a scale must be positive, got {limit}.")
    high = limit or float(np.abs(known).max()) or 1.0
    return (-high if signed else 0.0), high


def lay_over(axes, image: np.ndarray | None, values: np.ndarray, signed: bool, low: float, high: float):
    """A map over its image in light grey (or alone); returns what the colour bar needs."""
    colours = {"cmap": DIVERGING if signed else AMOUNTS, "vmin": low, "vmax": high, "interpolation": "nearest"}
    if image is None:
        return axes.imshow(np.ma.masked_invalid(values), **colours)
    height, width = image.shape[:2]
    place = (-0.5, width - 0.5, height - 0.5, -0.5)
    grey = image.mean(-1) if image.ndim == 3 else image
    axes.imshow(grey, cmap="gray", vmin=_DARKEST, vmax=255, interpolation="nearest", extent=place)
    return axes.imshow(np.ma.masked_invalid(values), alpha=_OPACITY, extent=place, **colours)
