"""Curves of deletion and insertion: the score as patches are removed, or shown, in the order of an explanation.

A better order loses the score faster where patches are deleted and wins it faster where they are inserted. The area
under each curve is in the legend, so the picture and the number that is quoted from it stand together.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.curve import Line
from mechvis.plots.look import DASHES, GREY, INK, LINES, MARKERS, PALE, bare, headline, numbers, sample, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def removal_curve(
    deletion: Sequence[Line] = (),
    insertion: Sequence[Line] = (),
    *,
    levels: Mapping[str, float] | None = None,
    title: str = "",
    y_label: str = "score",
    n: int | None = None,
) -> "Figure":
    """One or two panels; a method has the same colour, dash and marker in both.

    Args:
        deletion: one line per method: `x` the share of patches removed, 0 to 1, `y` the score with its interval.
        insertion: likewise, `x` the share of patches shown.
        levels: name -> score drawn across, e.g. of the whole image, or of chance.
        title: above the figure.
        y_label: what the score is, with its unit.
        n: images under each point.

    Raises:
        ShapeMismatch: no line, arrays that differ in length, or an interval with one end only.
        OutOfRange: a share outside of 0 to 1.
        NotFinite: Inf, or NaN among the shares.

    Example:
        >>> line = Line(name="random", x=np.array([0, 0.5, 1]), y=np.array([1.0, 0.5, 0.0]))
        >>> figure = removal_curve([line], title="Deletion", n=64)
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['random (area 0.500)']
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    panels = [(kind, lines) for kind, lines in (("deletion", deletion), ("insertion", insertion)) if len(lines)]
    if not panels:
        raise ShapeMismatch("a removal curve needs at least one line of deletion or insertion.")
    names = list(dict.fromkeys(line.name for _, lines in panels for line in lines))
    figure = Figure(figsize=(4.1 * len(panels), 2.9 + 0.19 * len(names)), layout="constrained")
    banded = False
    for axes, (kind, lines) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        bare(axes)
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        for name, level in (levels or {}).items():
            axes.axhline(level, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
            axes.annotate(
                short(name, 24), (1, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
                textcoords="offset points", size=7, color=GREY, ha="right", va="bottom",
            )  # fmt: skip
        for line in lines:
            number = names.index(line.name)
            x, y, low, high = checked_line(line)
            if x.min() < 0 or x.max() > 1:
                raise OutOfRange(f"shares of {line.name!r} lie between 0 and 1, got {x.min():g} to {x.max():g}.")
            colour = LINES[number % len(LINES)]
            if low is not None:
                banded = True
                axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                x, y, color=colour, linestyle=DASHES[number % len(DASHES)], linewidth=1.7,
                marker=MARKERS[number % len(MARKERS)] if len(x) <= 40 else None, markersize=3.5,
                label=f"{short(line.name, 28)} (area {area(x, y):.3f})",
            )  # fmt: skip
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("patches removed" if kind == "deletion" else "patches shown", size=9, color=INK)
        axes.set_title(f"{kind}: {'lower' if kind == 'deletion' else 'higher'} is better", loc="left", size=8,
                       color=INK)  # fmt: skip
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper left", bbox_to_anchor=(-0.02, -0.2))
    figure.axes[0].set_ylabel(wrapped(y_label, 36), size=9, color=INK)
    headline(figure, title, ("band: 95 % interval" if banded else "") + sample(n, first=not banded))
    return figure


def checked_line(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """`x`, `y`, `low` and `high` of a line as numbers, in the order of `x`.

    Raises:
        ShapeMismatch: arrays that differ in length, or an interval with one end only.
        NotFinite: Inf, or NaN among `x`.
    """
    x = numbers(f"x of {line.name!r}", line.x, nan=False)
    y = numbers(f"y of {line.name!r}", line.y, like=x.shape)
    if (line.low is None) != (line.high is None):
        raise ShapeMismatch(f"the line {line.name!r} has one end of its interval only; give low and high.")
    order = np.argsort(x, kind="stable")
    if line.low is None:
        return x[order], y[order], None, None
    low = numbers(f"low of {line.name!r}", line.low, like=x.shape)
    high = numbers(f"high of {line.name!r}", line.high, like=x.shape)
    return x[order], y[order], low[order], high[order]


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Mean height of a curve: the area by the trapezoid rule over its width; NaN where a point is missing."""
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width > 0 else float("nan")
