"""Effects of patches laid over the image: one picture per layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import DIVERGING, INK, colour_bar, headline, numbers, sample, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 8
"""Layers shown where none are named: more would be too small to read."""


def patch_map(
    images: Sequence[np.ndarray],
    maps: np.ndarray,
    *,
    layers: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
    title: str = "",
    label: str = "effect (clean - edited)",
    limit: float | None = None,
    n: int | str | None = None,
) -> "Figure":
    """One row per image: the image, then its map for each layer over it, red where the patch supports the metric, blue
    where it opposes it.

    Args:
        images: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, as the model sees them
            (resized and cropped), so that patches lie where they belong.
        maps: `[image layer down across]` from `mechvis.patches.patch_maps`; NaN patches stay clear.
        layers: which to show, by number; default: those with a value, at most 8 of them evenly from first to last.
        captions: one line per image, beside its row.
        title: above the figure.
        label: at the colour bar; says what is measured, and in which unit.
        limit: effect at which the colour is full; by default the largest absolute effect shown. One scale for all.
        n: images behind the figure, for the note below the title.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: maps or captions that do not fit the images.
        OutOfRange: a layer without a map.
        NotFinite: Inf, or no value at all.

    Example:
        >>> figure = patch_map([np.zeros((8, 8, 3), np.uint8)], np.ones((1, 2, 4, 4)))
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'layer 0', 'layer 1']
    """
    from matplotlib.figure import Figure

    images = checked_images(images)
    maps = numbers("maps", maps, ndim=4)
    if len(maps) != len(images):
        raise ShapeMismatch(f"maps need one entry per image: {len(images)} images, {len(maps)} maps.")
    if captions is not None and len(captions) != len(images):
        raise ShapeMismatch(f"captions need one entry per image: {len(images)} images, {len(captions)} entries.")
    shown = _layers(maps, layers)
    largest = np.abs(maps[:, shown])
    if not np.isfinite(largest).any():
        raise NotFinite(f"the maps of layers {shown} are NaN everywhere: there is nothing to show.")
    limit = (limit or float(np.nanmax(largest))) or 1.0
    rows, columns = len(images), 1 + len(shown)
    figure = Figure(figsize=(1.5 * columns + 0.9, 1.6 * rows + 0.25), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        place = (-0.5, width - 0.5, height - 0.5, -0.5)
        for column, axes in enumerate(grid[row]):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=place)
            if column:
                drawn = axes.imshow(
                    maps[row, shown[column - 1]],
                    cmap=DIVERGING,
                    vmin=-limit,
                    vmax=limit,
                    alpha=0.65,
                    extent=place,
                    interpolation="nearest",
                )
            if row == 0:
                axes.set_title("image" if not column else f"layer {shown[column - 1]}", size=8, color=INK)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        if captions is not None:
            grid[row, 0].set_ylabel(wrapped(captions[row], 20, 3), size=8, color=INK)
    colour_bar(figure, drawn, grid.ravel().tolist(), label, fraction=0.03, pad=0.01)
    headline(figure, title, sample(n, first=True))
    return figure


def _layers(maps: np.ndarray, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        known = np.isfinite(maps).any(axis=(0, 2, 3)).nonzero()[0]
        if len(known) > _MOST:
            known = known[np.round(np.linspace(0, len(known) - 1, _MOST)).astype(int)]
        return [int(layer) for layer in known] or [0]
    for layer in layers:
        if not 0 <= layer < maps.shape[1]:
            raise OutOfRange(f"layer {layer} has no map: there are layers 0 to {maps.shape[1] - 1}.")
    if not len(layers):
        raise ShapeMismatch("layers=[] shows nothing; leave it out for all.")
    return [int(layer) for layer in layers]
