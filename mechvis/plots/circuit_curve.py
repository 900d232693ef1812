"""How much of the behaviour circuits of growing size explain: faithfulness against edges kept, on a logarithmic axis.

Methods compete on the same axis with random circuits of the same size. Two levels are always drawn: 1, the whole model,
and 0, the model with everything ablated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.curve import Line
from mechvis.plots.look import DASHES, GREY, INK, LINES, MARKERS, PALE, bare, headline, sample, short, wrapped
from mechvis.plots.removal_curve import checked_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def circuit_curve(
    lines: Sequence[Line],
    *,
    controls: Sequence[Line] = (),
    total: int | None = None,
    chosen: float | None = None,
    title: str = "",
    x_label: str = "edges kept",
    y_label: str = "faithfulness (1: the whole model)",
    levels: bool = True,
    n: int | None = None,
) -> "Figure":
    """Lines over the number of edges (or heads, or latents) kept.

    Args:
        lines: one per method; `x` counts what is kept, at least 1.
        controls: lines of random circuits; grey, thin.
        total: how many there are in the model; a second axis shows shares of it.
        chosen: where to draw the vertical mark.
        title: above the figure.
        x_label: what is counted.
        y_label: what is measured, with its unit.
        levels: draw the levels 0 and 1.
        n: images under each point.

    Raises:
        ShapeMismatch: no line, arrays that differ in length, or an interval with one end only.
        OutOfRange: a size below 1 (a logarithmic axis has no 0), or above the total.
        NotFinite: Inf, or NaN among the sizes.

    Example:
        >>> line = Line(name="EAP", x=np.array([1, 10, 100]), y=np.array([0.1, 0.8, 1.0]))
        >>> axes = circuit_curve([line], total=100).axes[0]
        >>> axes.get_xscale(), axes.get_xlabel()
        ('log', 'edges kept')
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    if not len(lines):
        raise ShapeMismatch("a circuit curve needs at least one line, got none.")
    found = [(line, number, *checked_line(line)) for number, line in enumerate([*lines, *controls])]
    for line, _, x, *_ in found:
        if x.min() < 1 or (total is not None and x.max() > total):
            raise OutOfRange(
                f"sizes of {line.name!r} are {x.min():g} to {x.max():g}; they should lie between 1 and "
                f"{total if total is not None else 'the number of all'}. Leave out the empty circuit: its faithfulness "
                "is 0 by definition."
            )
    figure = Figure(figsize=(6.6, 3.7), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.set_xscale("log")
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    if levels:
        for level, style in ((1.0, (0, (4, 2))), (0.0, "-")):
            axes.axhline(level, color=GREY, linewidth=1, linestyle=style, zorder=1)
    banded = False
    for line, number, x, y, low, high in found:
        control = number >= len(lines)
        colour = GREY if control else LINES[number % len(LINES)]
        if low is not None:
            banded = True
            axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            x, y, color=colour, linestyle=(0, (1, 1.5)) if control else DASHES[number % len(DASHES)],
            linewidth=1.1 if control else 1.8, marker=None if control else MARKERS[number % len(MARKERS)],
            markersize=4, label=short(line.name, 28),
        )  # fmt: skip
    if chosen is not None:
        axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(f"chosen: {chosen:g}", (chosen, 0), xycoords=("data", "axes fraction"), xytext=(3, 3),
                      textcoords="offset points", size=7.5, color=INK)  # fmt: skip
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(wrapped(x_label, 50), size=9, color=INK)
    axes.set_ylabel(wrapped(y_label, 40), size=9, color=INK)
    if total is not None:
        there_and_back = (lambda kept: np.asarray(kept) / total, lambda share: np.asarray(share) * total)
        share = axes.secondary_xaxis("top", functions=there_and_back)
        share.set_xscale("log")
        share.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        share.tick_params(labelsize=7, colors=GREY, length=2)
        share.tick_params(which="minor", length=0)
        share.set_xlabel(f"share of all {total}", size=7.5, color=GREY)
        share.spines["top"].set_visible(False)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    headline(figure, title, ("band: 95 % interval" if banded else "") + sample(n, first=not banded))
    return figure
