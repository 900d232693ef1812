"""Effects as bars with their intervals, and an observed value among its controls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import (
    GREY,
    INK,
    LINES,
    OPPOSES,
    PALE,
    SUPPORTS,
    bare,
    headline,
    numbers,
    sample,
    short,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(
    names: Sequence[str],
    effects: np.ndarray,
    *,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    significant: np.ndarray | None = None,
    title: str = "",
    label: str = "effect (clean - edited)",
    n: int | str | None = None,
) -> "Figure":
    """Horizontal bars in the order given, first on top.

    Args:
        names: one per bar.
        effects: `[unit]`, in the unit of the metric.
        low: lower end of the interval `[unit]`; NaN draws none.
        high: upper end.
        significant: bool `[unit]`; other bars are drawn pale.
        title: above the figure.
        label: under the axis; says what is measured, and in which unit.
        n: images under each effect, for the note above the bars.

    Raises:
        ShapeMismatch: arrays of different lengths, or an interval with one end only.
        NotFinite: an effect that is NaN or Inf.

    Example:
        >>> bars(["L0H0", "L0H1"], np.array([0.5, -0.1])).axes[0].get_yticklabels()[0].get_text()
        'L0H0'
    """
    from matplotlib.figure import Figure

    effects = numbers("effects", effects, nan=False)
    if len(names) != len(effects):
        raise ShapeMismatch(f"bars need one name each: {len(names)} names, {len(effects)} effects.")
    if (low is None) != (high is None):
        raise ShapeMismatch("one end of the interval only; give low and high.")
    strong = (
        np.ones(effects.shape, bool)
        if significant is None
        else np.asarray(numbers("significant", significant, like=effects.shape), bool)
    )
    figure = Figure(figsize=(6.2, max(1.6, 0.9 + 0.24 * len(effects))), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    places = np.arange(len(effects))
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    for place, effect, full in zip(places, effects, strong, strict=True):
        axes.barh(place, effect, height=0.66, color=SUPPORTS if effect >= 0 else OPPOSES, alpha=0.85 if full else 0.3)
    if low is not None:
        low, high = numbers("low", low, like=effects.shape), numbers("high", high, like=effects.shape)
        axes.hlines(places, low, high, color=INK, linewidth=1.1)
        axes.plot(low, places, "|", high, places, "|", color=INK, markersize=5)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, [short(name) for name in names])
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(wrapped(label, 50), color=INK, size=9)
    note = "" if strong.all() else "pale: does not survive the false-discovery-rate correction"
    note += sample(n, first=not note)
    headline(figure, title, note)
    return figure


def control_strip(
    controls: np.ndarray,
    observed: float,
    *,
    low: float | None = None,
    high: float | None = None,
    name: str = "observed",
    control_name: str = "random units",
    title: str = "",
    label: str = "",
) -> "Figure":
    """Every control draw as a dot, their 95 % range as a band, and the observed value as a line.

    Args:
        controls: value of each control draw `[draw]`.
        observed: the value that is to be compared with them.
        low: lower end of the observed value's interval.
        high: upper end.
        name: what the observed value is called.
        control_name: what the controls are called.
        title: above the figure.
        label: under the axis.

    Raises:
        ShapeMismatch: no control, or an interval with one end only.
        NotFinite: NaN or Inf.

    Example:
        >>> control_strip(np.array([0.1, 0.0, -0.1]), 0.5, label="BIR").axes[0].get_xlabel()
        'BIR'
    """
    from matplotlib.figure import Figure

    controls = numbers("controls", controls, nan=False)
    observed = float(numbers("observed", [observed], nan=False)[0])
    if (low is None) != (high is None):
        raise ShapeMismatch("one end of the interval only; give low and high.")
    figure = Figure(figsize=(6.2, 1.75), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    who = short(control_name, 24)
    axes.axvspan(*np.quantile(controls, [0.025, 0.975]), color=PALE, linewidth=0, label=f"middle 95 % of {who}")
    # Dots are spread evenly, not at random: the same numbers give the same picture.
    heights = 0.5 + 0.34 * (((np.arange(len(controls)) * 0.618034) % 1) - 0.5) * 2
    axes.plot(
        np.sort(controls),
        heights,
        "o",
        color=GREY,
        markersize=4,
        alpha=0.75,
        markeredgewidth=0,
        label=f"{who}, {len(controls)} draws",
    )
    if low is not None and high is not None:
        axes.axvspan(low, high, color=LINES[1], alpha=0.18, linewidth=0)
    axes.axvline(observed, color=LINES[1], linewidth=2, label=short(name))
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(wrapped(label, 50), color=INK, size=9)
    axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    headline(figure, title)
    return figure
