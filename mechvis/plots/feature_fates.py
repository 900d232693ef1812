"""What becomes of latents between dictionaries of successive layers: stacked bars, one per step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import GREY, INK, LINES, PALE, bare, headline, numbers, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HATCHES = ("", "//", "..", "xx")


def feature_fates(steps: Sequence[str], counts: Mapping[str, np.ndarray], *, title: str = "") -> "Figure":
    """Horizontal bars of counts, one per step, told apart by colour and hatch.

    Args:
        steps: name of each step, first on top.
        counts: fate -> latents `[step]`.
        title: above the figure.

    Raises:
        ShapeMismatch: no step, no fate, or counts of another length.
        NotFinite: NaN or Inf.

    Example:
        >>> figure = feature_fates(["0 to 1"], {"persists": np.array([15]), "born": np.array([5])})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['persists', 'born']
    """
    from matplotlib.figure import Figure

    if not len(steps) or not counts:
        raise ShapeMismatch("a figure of fates needs at least one step and one fate.")
    values = {name: numbers(f"counts of {name!r}", value, nan=False) for name, value in counts.items()}
    for name, value in values.items():
        if value.shape != (len(steps),):
            raise ShapeMismatch(f"{len(steps)} steps, and counts of {name!r} are {list(value.shape)}.")
    figure = Figure(figsize=(6.2, max(1.6, 1.0 + 0.4 * len(steps))), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    places, left = np.arange(len(steps)), np.zeros(len(steps))
    for number, (name, value) in enumerate(values.items()):
        axes.barh(
            places,
            value,
            left=left,
            height=0.6,
            color=LINES[number % len(LINES)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0.6,
            label=short(name),
        )
        left = left + value
    axes.set_yticks(places, [short(step) for step in steps])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=GREY)
    axes.set_xlabel("latents", color=INK, size=9)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    headline(figure, title)
    return figure
