"""Lines with interval bands over K: what happens as more units are removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import (
    DASHES,
    GREY,
    INK,
    LINES,
    MARKERS,
    PALE,
    bare,
    headline,
    numbers,
    plain,
    sample,
    short,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One line of a :func:`curve`."""

    name: str
    """What it is called in the legend."""
    x: np.ndarray
    """Places, e.g. the number of heads removed, `[point]`."""
    y: np.ndarray
    """Values `[point]`; NaN leaves a gap."""
    low: np.ndarray | None = None
    """Lower end of the interval `[point]`."""
    high: np.ndarray | None = None
    """Upper end of the interval `[point]`."""


def curve(
    lines: Sequence[Line],
    *,
    chosen: float | None = None,
    title: str = "",
    x_label: str = "K",
    y_label: str = "",
    percent: bool = False,
    n: int | str | None = None,
) -> "Figure":
    """Several lines with their interval bands, told apart by colour, dash and marker.

    Args:
        lines: at least one.
        chosen: where to draw the vertical mark, e.g. the K that was chosen.
        title: above the figure.
        x_label: under it.
        y_label: beside it, with the unit.
        percent: values are shares; show them as percentages.
        n: images under each point, for the legend.

    Raises:
        ShapeMismatch: no line, a line whose arrays differ in length, or an interval with one end only.
        NotFinite: Inf.

    Example:
        >>> line = Line(name="conflicting", x=np.arange(3), y=np.array([0.5, 0.6, 0.7]))
        >>> curve([line], chosen=2, y_label="accuracy").axes[0].get_ylabel()
        'accuracy'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not len(lines):
        raise ShapeMismatch("a curve needs at least one line, got none.")
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    whole = True
    for number, line in enumerate(lines):
        x = numbers(f"x of {line.name!r}", line.x, nan=False)
        y = numbers(f"y of {line.name!r}", line.y, like=x.shape)
        whole = whole and bool((x == np.round(x)).all())
        colour = LINES[number % len(LINES)]
        if (line.low is None) != (line.high is None):
            raise ShapeMismatch(f"the line {line.name!r} has one end of its interval only; give low and high.")
        if line.low is not None:
            low = numbers(f"low of {line.name!r}", line.low, like=x.shape)
            high = numbers(f"high of {line.name!r}", line.high, like=x.shape)
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            x,
            y,
            color=colour,
            linestyle=DASHES[number % len(DASHES)],
            linewidth=1.8,
            marker=MARKERS[number % len(MARKERS)] if len(x) <= 40 else None,
            markersize=4,
            label=short(line.name, 30),
        )
    if chosen is not None:
        axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            plain(f"chosen: {chosen:g}"),
            (chosen, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            size=8,
            color=INK,
            va="bottom",
            ha="left",
            annotation_clip=False,
        )
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(wrapped(x_label, 48), color=INK)
    axes.set_ylabel(wrapped(y_label, 40), color=INK)
    legend = axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    banded = any(line.low is not None for line in lines)
    if banded or n is not None:
        parts = ["band: 95 % interval"] * banded + [sample(n, first=True)] * (n is not None)
        legend.set_title("\n".join(parts), prop={"size": 7})
        legend.get_title().set_color(GREY)
    headline(figure, title)
    return figure
