"""Histogram of relative decoder norms: latents of one model at the left, of the other at the right, shared between."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import GREY, INK, LINES, PALE, bare, headline, numbers, sample, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def model_diff_histogram(
    relative: np.ndarray,
    classes: Sequence[str],
    *,
    first: str = "a",
    second: str = "b",
    bins: int = 40,
    title: str = "",
) -> "Figure":
    """Counts of latents by relative decoder norm, stacked by class.

    Args:
        relative: Δ of each latent, 0 (only `first`) to 1 (only `second`).
        classes: class of each latent, e.g. by latent scaling.
        first: name of the first model.
        second: name of the second.
        bins: between 0 and 1.
        title: above the figure.

    Raises:
        ShapeMismatch: no latent, not one class per latent, or a value that is no share.
        NotFinite: NaN or Inf.

    Example:
        >>> figure = model_diff_histogram(np.array([0.0, 0.5, 1.0]), ["only a", "shared", "only b"])
        >>> figure.axes[0].get_ylabel()
        'latents'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = numbers("relative", relative, nan=False)
    if len(classes) != len(values) or values.min() < 0 or values.max() > 1:
        raise ShapeMismatch(
            f"{len(values)} relative norms from 0 to 1 need as many classes, got {len(classes)} and values from "
            f"{values.min():g} to {values.max():g}."
        )
    figure = Figure(figsize=(6.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    names = sorted(dict.fromkeys(classes), key=lambda name: (name != "shared", name))
    of = np.asarray(classes)
    parts = [values[of == name] for name in names]
    colours = [LINES[number % len(LINES)] for number in range(len(names))]
    axes.hist(parts, bins=np.linspace(0, 1, bins + 1), stacked=True, color=colours, label=[short(n) for n in names])
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlim(-0.01, 1.01)
    axes.set_xticks([0, 0.5, 1], [f"only {short(first, 16)}", "equal norms", f"only {short(second, 16)}"])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("latents", color=INK)
    axes.set_xlabel("relative decoder norm", color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    headline(figure, title, sample(len(values), "latents", first=True))
    return figure
