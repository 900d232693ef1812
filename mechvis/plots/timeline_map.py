"""Where images are decided and what the running prediction is until then: a depth histogram over lines by depth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.curve import Line
from mechvis.plots.look import DASHES, GREY, INK, LINES, MARKERS, PALE, bare, headline, numbers, sample, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def timeline_map(
    places: Sequence[str],
    decided: Mapping[str, np.ndarray],
    never: Mapping[str, float],
    lines: Sequence[Line] = (),
    *,
    y_label: str = "decided",
    title: str = "",
    n: int | str | None = None,
) -> "Figure":
    """Above: share of images decided at each anchor, by group, with those that never are as bars of their own. Below:
    shares of the running prediction by anchor (accuracy, or what it follows), with interval bands.

    Args:
        places: names of the anchors, first to last.
        decided: per group the share decided at each anchor, `[anchor]`.
        never: per group the share that is stable nowhere; drawn apart, at the right.
        lines: named `group: what`; `x` counts anchors from 0. Lines of one group share its colour.
        y_label: beside the histogram: what happens at an anchor.
        title: above the figure.
        n: images behind the figure, for the note below the title.

    Raises:
        ShapeMismatch: no group, or arrays that do not fit the places.
        OutOfRange: a share that is none.

    Example:
        >>> figure = timeline_map(["L0", "L1"], {"all": np.array([0.2, 0.5])}, {"all": 0.3})
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['L0', 'L1', 'never']
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    if not decided or set(decided) != set(never):
        raise ShapeMismatch(
            f"groups decided ({', '.join(decided) or 'none'}) and never ({', '.join(never) or 'none'}) differ."
        )
    rows = 2 if lines else 1
    figure = Figure(figsize=(max(6.4, 0.55 * len(places) + 3.4), 2.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    axes, width = panels[0], 0.8 / len(decided)
    colours = {name: LINES[at % len(LINES)] for at, name in enumerate(decided)}
    x = np.append(np.arange(len(places), dtype=float), len(places) + 0.5)
    for at, (name, shares) in enumerate(decided.items()):
        shares = numbers(f"shares of {name!r}", shares, like=(len(places),), nan=False)
        heights = np.append(shares, never[name])
        if heights.min() < 0 or heights.sum() > 1 + 1e-6:
            raise OutOfRange(
                f"the shares of {name!r} lie between 0 and 1 and sum to at most 1, got {np.round(heights, 3).tolist()}."
            )
        place = x + (at - (len(decided) - 1) / 2) * width
        bars = axes.bar(place, heights, width=0.92 * width, color=colours[name], label=short(name))
        # The fallback is no depth: hollow, and away from the others.
        bars[-1].set(facecolor="white", edgecolor=colours[name], hatch="///", linewidth=1.2)
    axes.axvline(len(places) - 0.25, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_ylabel(wrapped(y_label, 40), color=INK, size=8)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if lines:
        _lines(panels[1], lines, colours, len(places))
        panels[1].set_xlim(axes.get_xlim())
    for panel in panels:
        bare(panel)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.grid(axis="y", color=PALE, linewidth=0.8)
        panel.set_axisbelow(True)
        words = (
            [*(short(place, 20) for place in places), "never"]
            if panel is axes
            else list(short(place, 20) for place in places)
        )
        crowded = len(places) > 6 or sum(map(len, words)) > 40
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        panel.set_xticks(x[: len(words)], words, size=8, **slanted)
    headline(figure, title, sample(n, first=True))
    return figure


def _lines(axes, lines: Sequence[Line], colours: Mapping[str, str], places: int) -> None:
    seen: dict[str, int] = {}
    for line in lines:
        x = numbers(f"x of {line.name!r}", line.x, nan=False)
        y = numbers(f"y of {line.name!r}", line.y, like=x.shape)
        if x.min() < 0 or x.max() > places - 1:
            raise OutOfRange(
                f"the line {line.name!r} has points at {x.min():g} to {x.max():g}; anchors are 0 to {places - 1}."
            )
        if (line.low is None) != (line.high is None):
            raise ShapeMismatch(f"the line {line.name!r} has one end of its interval only; give low and high.")
        group = line.name.partition(":")[0]
        colour, number = colours.get(group, INK), seen.get(group, 0)
        seen[group] = number + 1
        if line.low is not None:
            low = numbers(f"low of {line.name!r}", line.low, like=x.shape)
            high = numbers(f"high of {line.name!r}", line.high, like=x.shape)
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        style, marker = DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
        axes.plot(
            x, y, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=4, label=short(line.name, 30)
        )
    axes.set_ylabel("running prediction is", color=INK, size=8)
    legend = axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if any(line.low is not None for line in lines):
        legend.set_title("band: 95 % interval", prop={"size": 7})
        legend.get_title().set_color(GREY)
