"""Which head is about which property: one cell per property and head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import INK, colour_bar, framed, headline, numbers, on, sample, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 20
"""Maps of at most this many heads have the value written into each cell."""


def property_heads(
    scores: np.ndarray,
    properties: Sequence[str],
    heads: Sequence[str],
    *,
    significant: np.ndarray | None = None,
    title: str = "",
    label: str = "share of what the head's texts explain",
    n: int | str | None = None,
) -> "Figure":
    """Heat map of scores between 0 and 1, framed where they are sure.

    Args:
        scores: `[property head]`, 0 to 1; NaN cells stay clear.
        properties: a name per row.
        heads: a name per column.
        significant: bool `[property head]`; these cells get a frame and bold print.
        title: above the map.
        label: at the colour bar.
        n: images behind the figure, for the note below the title.

    Raises:
        ShapeMismatch: names or marks that do not fit the scores.
        NotFinite: Inf.

    Example:
        >>> figure = property_heads(np.array([[0.9, 0.1]]), ["colour"], ["L1H0", "L1H1"])
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['colour']
    """
    from matplotlib.figure import Figure

    scores = numbers("scores", scores, ndim=2)
    if scores.shape != (len(properties), len(heads)):
        raise ShapeMismatch(
            f"scores {list(scores.shape)} need {len(properties)} rows and {len(heads)} columns, one per name."
        )
    sure = (
        np.zeros(scores.shape, bool)
        if significant is None
        else numbers("significant", significant, ndim=2, like=scores.shape).astype(bool)
    )
    rows, columns = scores.shape
    written = columns <= _WRITTEN
    cell = 0.52 if written else max(0.14, 11 / columns)
    beside = 1.5 + 0.065 * min(32, max(len(str(name)) for name in properties))
    figure = Figure(figsize=(max(3.6, beside + columns * cell), max(1.8, 1.3 + rows * 0.36)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(scores, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for row, column in np.ndindex(scores.shape):
        if written and np.isfinite(scores[row, column]):
            axes.text(
                column,
                row,
                f"{scores[row, column]:.2f}",
                ha="center",
                va="center",
                size=7,
                weight="bold" if sure[row, column] else "normal",
                color=on(image.cmap(float(scores[row, column]))[:3]),
            )
        if sure[row, column]:
            framed(axes, column - 0.45, row - 0.43, 0.9, 0.86)
    axes.set_xticks(np.arange(columns), [short(name, 20) for name in heads], rotation=90, size=7)
    axes.set_yticks(np.arange(rows), [short(name) for name in properties], size=8)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour_bar(figure, image, axes, label, fraction=0.05, pad=0.02)
    headline(figure, title, sample(n, first=True))
    return figure
