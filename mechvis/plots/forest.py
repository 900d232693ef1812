"""A forest plot: measures with their intervals, one per row, beside the values of their controls.

A measure means little alone. Each row shows what the same procedure gives where there is nothing to find (random
order, shuffled labels, random weights): dots in grey. A value among its dots says nothing, however far from zero.
Measures of different units get panels of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots.look import GREY, INK, LINES, PALE, bare, headline, numbers, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """One row of a :func:`forest`."""

    name: str
    """What is measured."""
    value: float
    """The value; NaN: not defined (the row stays, and says so)."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    controls: Sequence[float] = ()
    """The same measure where there is nothing to find, one value per control draw."""
    unit: str = ""
    """Unit, or what the axis says; rows of one unit share a panel."""
    passed: bool | None = None
    """Did it pass its gate? None: there is none."""
    n: int | None = None
    """Images it was measured on."""


def forest(measures: Sequence[Measure], *, title: str = "", zero: bool = True) -> "Figure":
    """One panel per unit, one row per measure, in the order given.

    Args:
        measures: at least one.
        title: above the figure.
        zero: draw a line at zero.

    Raises:
        ShapeMismatch: no measure, or an interval with one end only.
        OutOfRange: an interval upside down.
        NotFinite: Inf, or NaN among the controls.

    Example:
        >>> rows = [Measure(name="deletion", value=0.4, low=0.3, high=0.5, controls=[0.0, 0.05], unit="area", n=64)]
        >>> figure = forest(rows)
        >>> figure.axes[0].get_yticklabels()[0].get_text(), figure.axes[0].get_xlabel()
        ('deletion', 'area')
    """
    from matplotlib.figure import Figure

    if not len(measures):
        raise ShapeMismatch("a forest plot needs at least one measure, got none.")
    groups: dict[str, list[Measure]] = {}
    for measure in measures:
        _check(measure)
        groups.setdefault(measure.unit, []).append(measure)
    sizes = [len(group) for group in groups.values()]
    figure = Figure(figsize=(6.6, sum(0.27 * size + 0.62 for size in sizes)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[size + 0.6 for size in sizes])[:, 0]
    for axes, (unit, group) in zip(panels, groups.items(), strict=True):
        _panel(axes, unit, group, zero)
    said = ["bar: 95 % interval"] if any(measure.low is not None for measure in measures) else []
    said += ["grey dots: the same measure on controls"] if any(len(measure.controls) for measure in measures) else []
    said += ["hollow: gate not passed"] if any(measure.passed is False for measure in measures) else []
    headline(figure, title, "; ".join(said))
    return figure


def _check(measure: Measure) -> None:
    if (measure.low is None) != (measure.high is None):
        raise ShapeMismatch(f"{measure.name!r} has one end of its interval only; give low and high.")
    if np.isinf([x for x in (measure.value, measure.low, measure.high) if x is not None]).any():
        raise NotFinite(f"{measure.name!r} holds Inf.")
    if measure.low is not None and measure.low > measure.high:
        raise OutOfRange(f"the interval of {measure.name!r} is upside down: {measure.low} to {measure.high}.")
    if len(measure.controls):
        numbers(f"controls of {measure.name!r}", measure.controls, nan=False)


def _panel(axes, unit: str, group: Sequence[Measure], zero: bool) -> None:
    bare(axes)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    if zero:
        axes.axvline(0, color=GREY, linewidth=0.8)
    words = []
    for row, measure in enumerate(group):
        controls = np.sort(np.asarray(measure.controls, dtype=float))
        # Spread evenly, not at random: the same numbers give the same picture.
        heights = row + 0.26 * (((np.arange(len(controls)) * 0.618034) % 1) - 0.5) * 2
        axes.plot(controls, heights, "o", color=GREY, markersize=3, alpha=0.6, markeredgewidth=0, zorder=2)
        if measure.low is not None and not np.isnan([measure.low, measure.high]).any():
            axes.plot([measure.low, measure.high], [row, row], color=LINES[0], linewidth=2.2, zorder=3,
                      solid_capstyle="butt")  # fmt: skip
        if np.isnan(measure.value):
            words.append("not defined")
        else:
            hollow = measure.passed is False
            axes.plot([measure.value], [row], "D", color=LINES[0], markersize=6, zorder=4,
                      markerfacecolor="white" if hollow else LINES[0], markeredgewidth=1.4)  # fmt: skip
            words.append(f"{measure.value:.3g}")
        if measure.low is not None and measure.high is not None:
            words[-1] += f" [{measure.low:.3g}, {measure.high:.3g}]"
        words[-1] = words[-1].replace("-", "\N{MINUS SIGN}")
        if measure.n is not None:
            words[-1] += f"  n = {measure.n}"
    axes.set_yticks(range(len(group)), [short(measure.name, 34) for measure in group])
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.06)
    axes.set_xlabel(wrapped(unit, 60), size=8, color=INK)
    for row, word in enumerate(words):
        axes.annotate(word, (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                      size=7.5, color=INK, va="center", ha="left")  # fmt: skip
