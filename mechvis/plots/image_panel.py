"""Images in a grid, with object masks as contours and patch values laid over them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import BadImages, ShapeMismatch
from mechvis.plots.look import DIVERGING, INK, colour_bar, headline, numbers, sample, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTOUR = "#ffd400"


def image_panel(
    images: Sequence[np.ndarray],
    *,
    masks: Sequence[np.ndarray] | None = None,
    overlay: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    columns: int = 6,
    title: str = "",
    limit: float | None = None,
    label: str = "",
    n: int | str | None = None,
) -> "Figure":
    """A grid of images.

    Args:
        images: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each; sizes may differ.
        masks: bool `[height width]` each; outlined (yellow on a dark line, visible on any image).
        overlay: values on the patch grid `[row column]` each, laid over the image in a diverging map with its middle at
            zero; NaN patches stay clear.
        captions: one line each, below the image.
        columns: images per row.
        title: above the panel.
        limit: overlay value of full colour; by default the largest absolute value of all.
        label: at the colour bar of the overlay.
        n: images behind the figure, for the note below the title.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: a mask of another size, or not one mask, overlay or caption per image.

    Example:
        >>> figure = image_panel([np.zeros((8, 8, 3), np.uint8)] * 2, captions=["first", "second"])
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['first', 'second']
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import Normal, Stroke

    images = checked_images(images)
    for name, extra in {"masks": masks, "overlay": overlay, "captions": captions}.items():
        if extra is not None and len(extra) != len(images):
            raise ShapeMismatch(f"{name} needs one entry per image: {len(images)} images, {len(extra)} entries.")
    if columns < 1:
        raise ShapeMismatch(f"columns must be at least 1, got {columns}.")
    maps = None if overlay is None else [numbers(f"overlay {i}", entry, ndim=2) for i, entry in enumerate(overlay)]
    if maps is not None:
        largest = max((float(np.nanmax(np.abs(entry))) for entry in maps if np.isfinite(entry).any()), default=0.0)
        limit = (limit or largest) or 1.0
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns + (0.7 if maps else 0), 1.72 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    drawn = None
    for index, image in enumerate(images):
        axes = grid[index]
        height, width = image.shape[:2]
        place = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=place)
        if maps is not None:
            drawn = axes.imshow(
                maps[index], cmap=DIVERGING, vmin=-limit, vmax=limit, alpha=0.6, extent=place, interpolation="nearest"
            )
        if masks is not None:
            mask = np.asarray(masks[index])
            if mask.shape != (height, width):
                raise ShapeMismatch(f"mask {index} has the shape {list(mask.shape)}, its image {[height, width]}.")
            # A mask without an edge has no contour, and matplotlib would warn.
            if mask.any() and not mask.all():
                # One pixel of margin closes the outline of an object that touches the border.
                around = np.pad(mask.astype(float), 1)
                axes.contour(
                    np.arange(-1, width + 1),
                    np.arange(-1, height + 1),
                    around,
                    levels=[0.5],
                    colors=[_CONTOUR],
                    linewidths=1.2,
                ).set_path_effects([Stroke(linewidth=2.4, foreground="#000000"), Normal()])
                axes.set_xlim(-0.5, width - 0.5)
                axes.set_ylim(height - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if captions is not None:
            axes.set_xlabel(wrapped(captions[index], 26, 4), size=7, color=INK, labelpad=2)
    for axes in grid[len(images) :]:
        axes.remove()
    if drawn is not None:
        colour_bar(figure, drawn, list(grid[: len(images)]), label, fraction=0.04, pad=0.02)
    headline(figure, title, sample(n, first=True))
    return figure


def checked_images(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The images as uint8 `[height width 3]` or `[height width]`.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
    """
    if not len(images):
        raise BadImages("there is no image to show.")
    found = []
    for index, image in enumerate(images):
        image = np.asarray(image)
        if image.dtype != np.uint8:
            raise BadImages(
                f"image {index} holds {image.dtype}, it should be uint8 (0-255). "
                "Undo the model's normalisation first; ImageSet.raw() gives such images."
            )
        if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))):
            raise BadImages(
                f"image {index} has the shape {list(image.shape)}, it should be [height width channel] "
                "with 1 or 3 channels."
            )
        found.append(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    return found
