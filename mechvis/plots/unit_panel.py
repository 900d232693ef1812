"""What a unit responds to: its top images and some from its whole range, with where in the image it is active."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import INK, colour_bar, headline, numbers, plain, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAT = "magma"
ROWS = {"top": "most active", "ranged": "from the whole range"}


def unit_panel(
    top: Sequence[np.ndarray],
    ranged: Sequence[np.ndarray] = (),
    *,
    top_values: Sequence[float] = (),
    ranged_values: Sequence[float] = (),
    top_maps: np.ndarray | None = None,
    ranged_maps: np.ndarray | None = None,
    title: str = "",
    label: str = "activation",
    n: int | str | None = None,
) -> "Figure":
    """One or two rows of images; with maps, a row of the same images under the unit's values on the patches.

    Args:
        top: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, most active first.
        ranged: images from the whole range, high to low.
        top_values: activation of each, below the image.
        ranged_values: likewise.
        top_maps: values on the patches `[image down across]`.
        ranged_maps: likewise; one scale for all maps.
        title: above the figure.
        label: at the colour bar.
        n: images behind the figure, for the note below the title.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: not one value or map per image.
        NotFinite: NaN or Inf in a map.

    Example:
        >>> figure = unit_panel([np.zeros((8, 8, 3), np.uint8)] * 2, top_values=[3.0, 2.5])
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['3', '2.5']
    """
    from matplotlib.figure import Figure

    groups = [("top", top, top_values, top_maps)]
    groups += [("ranged", ranged, ranged_values, ranged_maps)] if len(ranged) else []
    rows: list[tuple[str, list[np.ndarray], Sequence[float], np.ndarray | None]] = []
    for name, images, values, maps in groups:
        images = checked_images(images)
        if len(values) and len(values) != len(images):
            raise ShapeMismatch(
                f"{name}_values needs one entry per image: {len(images)} images, {len(values)} entries."
            )
        if maps is not None:
            maps = numbers(f"{name}_maps", maps, ndim=3)
            if len(maps) != len(images):
                raise ShapeMismatch(f"{name}_maps needs one map per image: {len(images)} images, {len(maps)} maps.")
            if np.isnan(maps).any():
                raise NotFinite(f"{name}_maps holds NaN.")
        rows.append((ROWS[name], images, values, None))
        if maps is not None:
            rows.append(("where", images, (), maps))
    every = [maps for *_, maps in rows if maps is not None]
    low = min((float(maps.min()) for maps in every), default=0.0)
    high = max((float(maps.max()) for maps in every), default=1.0)
    columns = max(len(images) for _, images, *_ in rows)
    figure = Figure(
        figsize=(1.2 * columns + (1.1 if every else 0.5), 1.35 * len(rows) + 0.1),
        layout="constrained",
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    drawn, alive = None, []
    for (word, images, values, maps), line in zip(rows, grid, strict=True):
        for place, axes in enumerate(line):
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if place >= len(images):
                axes.remove()
                continue
            alive.append(axes)
            image = images[place]
            height, width = image.shape[:2]
            box = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=box)
            if maps is not None:
                drawn = axes.imshow(
                    maps[place], cmap=_HEAT, vmin=low, vmax=high if high > low else low + 1, alpha=0.6, extent=box,
                    interpolation="nearest",
                )  # fmt: skip
            if len(values):
                axes.set_xlabel(plain(f"{float(values[place]):.3g}"), size=7, color=INK, labelpad=2)
            if place == 0:
                axes.set_ylabel(plain(word), size=7, color=INK)
    if drawn is not None:
        colour_bar(figure, drawn, alive, label, fraction=0.03, pad=0.01)
    headline(figure, title, sample(n, first=True))
    return figure
