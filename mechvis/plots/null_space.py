"""The plane of a null-space reading: how much the null part means (IS) against how much it turns to texts (|AS|)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from mechvis.errors import ShapeMismatch, unknown
from mechvis.plots.look import GREY, INK, LINES, MARKERS, PALE, bare, headline, numbers, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NEEDED = ("IS", "IS_low", "IS_high", "AS_size", "AS_size_low", "AS_size_high")
_MOST_NAMED = 21
"""More points than this are drawn alike: nobody finds them in a legend."""


def null_space_plane(
    names: Sequence[str],
    table: pl.DataFrame,
    *,
    limits: tuple[float, float] | None = (12.0, 4.0),
    title: str = "",
) -> "Figure":
    """One point per class or model, with 95 % intervals in both directions.

    Args:
        names: one per row.
        table: `IS`, `AS_size` and their `_low` and `_high`, in degrees (tables of a `NullReading`).
        limits: dashed lines at a rule of thumb for a leak, IS and |AS| (of a published demonstration, **A**), where
            they lie in the picture; None: none.
        title: above the figure.

    Raises:
        UnknownName: a column is missing.
        ShapeMismatch: not one name per row, or no row.
        NotFinite: Inf.

    Example:
        >>> table = pl.DataFrame({name: [1.0] for name in ("IS", "IS_low", "IS_high", "AS_size", "AS_size_low",
        ...                                                "AS_size_high")})
        >>> null_space_plane(["a model"], table).axes[0].get_xlabel()
        'IS (degrees)'
    """
    from matplotlib.figure import Figure

    for column in _NEEDED:
        if column not in table.columns:
            raise unknown("column", column, table.columns)
    values = {name: numbers(name, table[name].to_numpy()) for name in _NEEDED}
    if len(names) != len(values["IS"]):
        raise ShapeMismatch(f"{len(values['IS'])} points but {len(names)} names.")
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    named = len(names) <= _MOST_NAMED
    for i, name in enumerate(names):
        x, y = values["IS"][i], values["AS_size"][i]
        axes.errorbar(
            x,
            y,
            xerr=_reach(values, "IS", i),
            yerr=_reach(values, "AS_size", i),
            color=LINES[i % len(LINES)] if named else LINES[0],
            marker=MARKERS[(i + i // len(LINES)) % len(MARKERS)] if named else "o",
            markersize=5,
            linestyle="",
            elinewidth=1.2,
            label=short(name),
        )
    axes.margins(0.12)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.set_xlim(max(left, 0.0), right)
    axes.set_ylim(max(bottom, 0.0), top)
    if limits is not None and left <= limits[0] <= right:
        axes.axvline(limits[0], color=GREY, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    if limits is not None and bottom <= limits[1] <= top:
        axes.axhline(limits[1], color=GREY, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    if named:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("IS (degrees)", color=INK)
    axes.set_ylabel("mean |AS| over texts (degrees)", color=INK)
    headline(figure, title)
    return figure


def _reach(values: dict, name: str, i: int) -> list | None:
    """Distances from the value to the ends of its interval; None where there is none."""
    down, up = values[name][i] - values[f"{name}_low"][i], values[f"{name}_high"][i] - values[name][i]
    return None if not (down == down and up == up) else [[max(down, 0.0)], [max(up, 0.0)]]
