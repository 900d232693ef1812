"""Effects of patching by layer and place: a grid whose cells carry their interval, framed where it excludes zero."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import DIVERGING, INK, colour_bar, framed, headline, numbers, on, sample, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 14
"""Grids of at most this many columns have value and interval written into each cell."""


def patching_grid(
    effects: np.ndarray,
    columns: Sequence[str],
    *,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    significant: np.ndarray | None = None,
    rows: Sequence[str] | None = None,
    title: str = "",
    label: str = "effect (clean - patched)",
    row_label: str = "layer",
    column_label: str = "tokens",
    n: int | None = None,
    limit: float | None = None,
) -> "Figure":
    """Heat map of layers by tokens or groups of tokens, red where the place supports the metric, blue where it opposes.

    Args:
        effects: `[layer column]`, in the unit of the metric; NaN where nothing was patched.
        columns: name of each column: tokens, or groups such as `object`, `background`, `CLS`.
        low: lower ends of the intervals, of the same shape.
        high: upper ends.
        significant: bool, which cells get a frame; by default those whose interval excludes zero.
        rows: name of each row; default: 0, 1, ...
        title: above the grid.
        label: at the colour bar; says what is measured, and in which unit.
        row_label: beside the rows.
        column_label: below the columns.
        n: images under each effect.
        limit: effect at which the colour is full; by default the largest absolute effect.

    Raises:
        ShapeMismatch: names, ends or marks that do not fit, or one end only.
        NotFinite: Inf.

    Example:
        >>> effects = np.array([[0.5, 0.0]])
        >>> figure = patching_grid(effects, ["CLS", "object"], low=effects - 0.1, high=effects + 0.1)
        >>> [text.get_text() for text in figure.axes[0].texts][0].splitlines()
        ['0.50', '[0.40, 0.60]']
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    effects = numbers("effects", effects, ndim=2)
    shape = effects.shape
    rows = [str(i) for i in range(shape[0])] if rows is None else list(rows)
    if shape != (len(rows), len(columns)):
        raise ShapeMismatch(f"effects {list(shape)} need one name per row and column: {len(rows)} and {len(columns)}.")
    if (low is None) != (high is None):
        raise ShapeMismatch("one end of the intervals only; give low and high.")
    ends = None
    if low is not None:
        ends = [numbers(name, end, ndim=2, like=shape) for name, end in (("low", low), ("high", high))]
    marks = np.zeros(shape, bool) if ends is None else (ends[0] > 0) | (ends[1] < 0)
    if significant is not None:
        marks = numbers("significant", significant, ndim=2, like=shape).astype(bool)
    largest = float(np.nanmax(np.abs(effects))) if np.isfinite(effects).any() else 0.0
    limit = (limit or largest) or 1.0
    written = shape[1] <= _WRITTEN
    cell = (0.95 if ends else 0.62) if written else max(0.12, 10 / shape[1])
    figure = Figure(
        figsize=(max(3.8, 1.9 + cell * shape[1]), max(2.0, 1.1 + (0.42 if written else 0.26) * shape[0])),
        layout="constrained",
    )
    axes = figure.add_subplot()
    axes.set_facecolor("#f4f5f7")
    drawn = axes.imshow(
        np.ma.masked_invalid(effects), cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    # Three figures of the largest effect, one fewer where it starts behind the point.
    digits = int(np.clip(2 - np.floor(np.log10(limit)) - (limit < 1), 0, 5))

    def number(value: float) -> str:
        # Rounded first: no minus sign before a zero.
        return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")

    for (row, column), effect in np.ndenumerate(effects):
        if np.isnan(effect):
            axes.text(column, row, "\N{EN DASH}", ha="center", va="center", size=7, color=INK)
            continue
        if written:
            text = number(effect)
            if ends is not None and np.isfinite([end[row, column] for end in ends]).all():
                text += f"\n[{number(ends[0][row, column])}, {number(ends[1][row, column])}]"
            shade = colormaps[DIVERGING](0.5 + 0.5 * float(np.clip(effect / limit, -1, 1)))[:3]
            axes.text(column, row, text, ha="center", va="center", size=6.5, color=on(shade), linespacing=1.1,
                      weight="bold" if marks[row, column] else "normal")  # fmt: skip
        if marks[row, column]:
            margin = 0.04 if written else 0.0
            side = 1 - 2 * margin
            framed(axes, column - 0.5 + margin, row - 0.5 + margin, side, side, line=1.4 if written else 0.7)
    crowded = written and sum(len(short(name, 18)) for name in columns) > 11 * shape[1] * cell
    step = 1 if written else max(1, shape[1] // 16)
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded or not written else {}
    axes.set_xticks(range(0, shape[1], step), [short(name, 18) for name in list(columns)[::step]], **slanted)
    axes.set_yticks(range(shape[0]), [short(name, 18) for name in rows])
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.set_xlabel(wrapped(column_label, 50), size=9, color=INK)
    axes.set_ylabel(wrapped(row_label, 30), size=9, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour_bar(figure, drawn, axes, label)
    said = ["framed: survives the correction" if significant is not None else "framed: 95 % interval excludes zero"]
    said = said if marks.any() or significant is not None or ends is not None else []
    headline(figure, title, "; ".join(said) + sample(n, first=not said))
    return figure
