"""Concepts, one per row: the images (or crops) that hold most of each, with the concept's map over them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import INK, headline, numbers, sample, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP = "magma"
"""From dark to bright, readable in grey: amounts are never negative."""


def concept_panel(
    pictures: Sequence[Sequence[np.ndarray]],
    *,
    maps: Sequence[Sequence[np.ndarray]] | None = None,
    captions: Sequence[str],
    title: str = "",
    smooth: bool = True,
    n: int | str | None = None,
) -> "Figure":
    """One row per concept: its best images, and under each the same image with the concept's map over it.

    Args:
        pictures: per concept, uint8 `[height width channel]` images, the best first; numbers may differ.
        maps: per picture the concept's amounts on the patch grid `[down across]`, 0 or more.
        captions: one per concept, beside its row.
        title: above the figure.
        smooth: draw the maps smoothly, or patch by patch.
        n: images behind the figure, for the note below the title.

    Raises:
        BadImages: no image, not uint8, or wrong axes.
        ShapeMismatch: maps or captions that do not fit the pictures.
        OutOfRange: a negative amount.
        NotFinite: Inf.

    Example:
        >>> picture = np.zeros((8, 8, 3), np.uint8)
        >>> figure = concept_panel([[picture]], maps=[[np.eye(2)]], captions=["c0"])
        >>> len(figure.axes), figure.axes[0].get_ylabel()
        (2, 'c0')
    """
    from matplotlib.figure import Figure

    if not len(pictures):
        raise ShapeMismatch("there is no concept to show.")
    if len(captions) != len(pictures):
        raise ShapeMismatch(f"captions need one entry per concept: {len(pictures)} concepts, {len(captions)} captions.")
    if maps is not None and [len(row) for row in maps] != [len(row) for row in pictures]:
        raise ShapeMismatch("maps need one entry per picture of each concept.")
    rows = [checked_images(row) for row in pictures]
    columns, each = max(len(row) for row in rows), 1 if maps is None else 2
    figure = Figure(figsize=(1.15 * columns + 0.9, 1.15 * each * len(rows) + 0.1), layout="constrained")
    grid = figure.subplots(each * len(rows), columns, squeeze=False)
    for number, row in enumerate(rows):
        amounts = None if maps is None else [_amounts(number, i, entry) for i, entry in enumerate(maps[number])]
        # One scale per concept: its pictures can be compared with each other.
        most = max((float(np.nanmax(entry)) for entry in amounts or ()), default=0.0) or 1.0
        for column in range(columns):
            cells = grid[each * number : each * (number + 1), column]
            if column >= len(row):
                for axes in cells:
                    axes.remove()
                continue
            image = row[column]
            height, width = image.shape[:2]
            place = (-0.5, width - 0.5, height - 0.5, -0.5)
            for level, axes in enumerate(cells):
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=place)
                if level:
                    axes.imshow(
                        amounts[column],
                        cmap=_MAP,
                        vmin=0,
                        vmax=most,
                        alpha=0.7,
                        extent=place,
                        interpolation="bilinear" if smooth else "nearest",
                    )
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_visible(False)
        grid[each * number, 0].set_ylabel(wrapped(captions[number], 17, 3), size=7, color=INK)
    headline(figure, title, sample(n, first=True))
    return figure


def _amounts(concept: int, number: int, entry: np.ndarray) -> np.ndarray:
    amounts = numbers(f"map {number} of concept {concept}", entry, ndim=2)
    if np.nanmin(amounts) < 0:
        raise OutOfRange(f"map {number} of concept {concept} holds negative amounts; show such maps with patch_map.")
    return amounts
