"""Scores by depth: one line per token choice with its interval band, controls dashed, baselines as levels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.plots.curve import Line
from mechvis.plots.look import DASHES, GREY, INK, LINES, MARKERS, PALE, bare, headline, numbers, sample, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_curve(
    places: Sequence[str],
    lines: Sequence[Line],
    *,
    levels: Mapping[str, float] | None = None,
    title: str = "",
    y_label: str = "accuracy",
    percent: bool = True,
    n: int | str | None = None,
) -> "Figure":
    """Lines over named depths, with interval bands; baselines that have no depth are level lines.

    Args:
        places: names of the depths, first to last; `x` of a line counts them from 0.
        lines: at least one; a name such as `cls: control` shares the colour of the other lines of `cls`, and is dashed.
        levels: name -> value, drawn across.
        title: above the figure.
        y_label: beside it, with the unit.
        percent: values are shares; show them as percentages.
        n: images behind the figure, for the note below the title.

    Raises:
        ShapeMismatch: no line or place, arrays that differ in length, or an interval with one end only.
        NotFinite: Inf, or a place that there is none of.

    Example:
        >>> line = Line(name="cls: task", x=np.arange(2), y=np.array([0.4, 0.9]))
        >>> figure = layer_curve(["L0", "L1"], [line], levels={"commonest class": 0.1})
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['L0', 'L1']
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    if not len(lines) or not len(places):
        raise ShapeMismatch(f"a curve over depth needs a line and a place, got {len(lines)} and {len(places)}.")
    figure = Figure(figsize=(max(5.6, 0.42 * len(places) + 3.2), 3.8), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    families: dict[str, list[Line]] = {}
    for line in lines:
        families.setdefault(line.name.partition(":")[0], []).append(line)
    for family, members in enumerate(families.values()):
        for number, line in enumerate(members):
            x = numbers(f"x of {line.name!r}", line.x, nan=False)
            if x.min() < 0 or x.max() > len(places) - 1:
                raise NotFinite(
                    f"{line.name!r} has points at {x.min():g} to {x.max():g}; places are 0 to {len(places) - 1}."
                )
            y = numbers(f"y of {line.name!r}", line.y, like=x.shape)
            if (line.low is None) != (line.high is None):
                raise ShapeMismatch(f"the line {line.name!r} has one end of its interval only; give low and high.")
            colour = LINES[family % len(LINES)]
            if line.low is not None:
                low = numbers(f"low of {line.name!r}", line.low, like=x.shape)
                high = numbers(f"high of {line.name!r}", line.high, like=x.shape)
                axes.fill_between(x, low, high, color=colour, alpha=0.16 if not number else 0.08, linewidth=0)
            axes.plot(
                x,
                y,
                color=colour,
                alpha=1.0 if not number else 0.8,
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.9 if not number else 1.2,
                marker=MARKERS[family % len(MARKERS)],
                markersize=4 if not number else 2.5,
                label=short(line.name, 30),
            )
    for number, (name, value) in enumerate((levels or {}).items()):
        if np.isfinite(value):
            style = (0, (1 + 2 * number, 2))
            axes.axhline(
                value, color=GREY, linewidth=1.1, linestyle=style, zorder=1, label=f"{short(name)}: {value:.2f}"
            )
    crowded = sum(map(len, places)) > 40
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(places)), [short(place, 20) for place in places], **slanted)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(wrapped(y_label, 40), color=INK)
    legend = axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if any(line.low is not None for line in lines):
        legend.set_title("band: 95 % interval", prop={"size": 7})
        legend.get_title().set_color(GREY)
    headline(figure, title, sample(n, first=True))
    return figure
