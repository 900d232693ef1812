"""What every patch says in every layer: the top class as colour, laid over the image, one picture per layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import GREY, INK, LINES, headline, numbers, plain, sample, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 8
"""Layers shown where none are named."""
_COLOURS = 8
"""Classes with a colour of their own; the rest share one grey."""
_EXTRA = "#7a4a00"


def lens_map(
    images: Sequence[np.ndarray],
    answers: np.ndarray,
    confidence: np.ndarray,
    names: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    layer_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    title: str = "",
    label: str = "opacity: confidence",
    n: int | str | None = None,
) -> "Figure":
    """One row per image: the image, then for each layer the class that every patch says, more opaque where it is surer.

    The classes that are said most often get colours of their own, the rest are grey; the legend says which.

    Args:
        images: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, as the model sees them.
        answers: class index `[image layer down across]`.
        confidence: between 0 and 1, `[image layer down across]`; NaN patches stay clear.
        names: of the classes.
        layers: which to show, by position; default: at most 8, evenly from first to last.
        layer_names: what to write above each layer, one per layer of `answers`; default: `layer 0`, ...
        captions: one line per image, beside its row.
        title: above the figure.
        label: under the legend; says what opacity means.
        n: images behind the figure, for the note below the title.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: maps, names or captions that do not fit.
        OutOfRange: a layer or class that does not exist, or a confidence outside of 0 to 1.
        NotFinite: Inf in the confidence.

    Example:
        >>> figure = lens_map([np.zeros((8, 8, 3), np.uint8)], np.zeros((1, 2, 4, 4)), np.ones((1, 2, 4, 4)), ["cat"])
        >>> [axes.get_title() for axes in figure.axes]
        ['image', 'layer 0', 'layer 1']
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    images = checked_images(images)
    said = numbers("answers", answers, ndim=4, nan=False)
    sure = numbers("confidence", confidence, ndim=4, like=said.shape)
    if len(said) != len(images):
        raise ShapeMismatch(f"answers need one entry per image: {len(images)} images, {len(said)} entries.")
    if captions is not None and len(captions) != len(images):
        raise ShapeMismatch(f"captions need one entry per image: {len(images)} images, {len(captions)} entries.")
    layer_names = [f"layer {i}" for i in range(said.shape[1])] if layer_names is None else list(layer_names)
    if len(layer_names) != said.shape[1]:
        raise ShapeMismatch(f"{said.shape[1]} layers need as many names, got {len(layer_names)}.")
    if (said != np.round(said)).any() or said.min() < 0 or said.max() >= len(names):
        raise OutOfRange(f"answers are class indices 0 to {len(names) - 1}, got {said.min():g} to {said.max():g}.")
    if np.nanmin(sure) < 0 or np.nanmax(sure) > 1:
        raise OutOfRange(f"confidence lies between 0 and 1, got {np.nanmin(sure):g} to {np.nanmax(sure):g}.")
    shown = _layers(said.shape[1], layers)
    said = said.astype(int)
    palette = [*LINES[:6], _EXTRA, "#000000"][:_COLOURS]
    common = np.argsort(-np.bincount(said[:, shown].ravel(), minlength=len(names)), kind="stable")
    common = [int(i) for i in common[:_COLOURS] if (said[:, shown] == i).any()]
    colours = {index: colour for index, colour in zip(sorted(common), palette, strict=False)}
    table = np.array([to_rgb(colours.get(i, GREY)) for i in range(len(names))])
    rows, columns = len(images), 1 + len(shown)
    figure = Figure(figsize=(1.5 * columns + 1.6, 1.6 * rows + 0.25), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        place = (-0.5, width - 0.5, height - 0.5, -0.5)
        for column, axes in enumerate(grid[row]):
            # Grey under the colours that mean classes.
            shown_image = image.mean(-1) if column and image.ndim == 3 else image
            axes.imshow(shown_image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=place)
            if column:
                layer = shown[column - 1]
                opacity = 0.15 + 0.75 * np.nan_to_num(sure[row, layer])
                opacity[np.isnan(sure[row, layer])] = 0
                overlay = np.concatenate([table[said[row, layer]], opacity[..., None]], axis=-1)
                axes.imshow(overlay, extent=place, interpolation="nearest")
            if row == 0:
                axes.set_title("image" if not column else short(layer_names[shown[column - 1]], 18), size=8, color=INK)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        if captions is not None:
            grid[row, 0].set_ylabel(wrapped(captions[row], 20, 3), size=8, color=INK)
    handles = [Patch(color=colour, label=short(names[index])) for index, colour in colours.items()]
    if len(np.unique(said[:, shown])) > len(colours):
        handles.append(Patch(color=GREY, label="other"))
    legend = figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    legend.set_title(plain(label), prop={"size": 7})
    legend.get_title().set_color(GREY)
    headline(figure, title, sample(n, first=True))
    return figure


def _layers(n: int, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(range(n)) if n <= _MOST else np.round(np.linspace(0, n - 1, _MOST)).astype(int).tolist()
    if not len(layers):
        raise ShapeMismatch("layers=[] shows nothing; leave it out for all.")
    for layer in layers:
        if not 0 <= layer < n:
            raise OutOfRange(f"layer {layer} has no map: there are layers 0 to {n - 1}.")
    return [int(layer) for layer in layers]
