"""Do methods agree on what matters? A matrix of rank correlations (Kendall's tau), one row and column per method.

The lower triangle holds the values, the upper one their intervals: each pair is told once. A pair whose interval
includes zero does not agree more than two random orders do, and is not printed bold.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.look import DIVERGING, GREY, INK, colour_bar, headline, numbers, on, sample, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 14


def rank_agreement(
    tau: np.ndarray,
    names: Sequence[str],
    *,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    title: str = "",
    label: str = "Kendall's tau",
    n: int | None = None,
) -> "Figure":
    """Matrix of agreement between methods.

    Args:
        tau: `[method method]`, symmetric, -1 to 1; NaN: not defined (ties only). The diagonal is not looked at.
        names: of the methods.
        low: lower ends of the intervals, symmetric.
        high: upper ends.
        title: above the matrix.
        label: at the colour bar.
        n: images that the values are averaged over.

    Raises:
        ShapeMismatch: not square, not one name per method, one end only, or fewer than two methods.
        OutOfRange: not symmetric, or outside of -1 to 1.
        NotFinite: Inf.

    Example:
        >>> figure = rank_agreement(np.array([[1.0, 0.5], [0.5, 1.0]]), ["IG", "RISE"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.50']
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    tau = numbers("tau", tau, ndim=2)
    size = len(names)
    if tau.shape != (size, size) or size < 2:
        raise ShapeMismatch(f"agreement needs two methods or more, and one name each: {list(tau.shape)}, {size} names.")
    if (low is None) != (high is None):
        raise ShapeMismatch("one end of the intervals only; give low and high.")
    ends = None
    if low is not None:
        ends = [numbers(name, end, ndim=2, like=tau.shape) for name, end in (("low", low), ("high", high))]
    off = ~np.eye(size, dtype=bool)
    if not np.allclose(tau[off], tau.T[off], atol=1e-6, equal_nan=True):
        raise OutOfRange("tau is not symmetric: the agreement of a with b is that of b with a.")
    if np.nanmax(np.abs(np.where(off, tau, 0.0))) > 1 + 1e-6:
        raise OutOfRange(
            f"rank correlations lie between -1 and 1, got {np.nanmax(np.abs(np.where(off, tau, 0.0))):.4g}."
        )
    shown = np.where(off, tau, np.nan)
    written = size <= _WRITTEN
    cell = (0.72 if ends else 0.5) if written else max(0.14, 7 / size)
    figure = Figure(figsize=(max(3.8, cell * size + 2.4), max(2.6, 0.46 * size + 1.5)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#f4f5f7")
    drawn = axes.imshow(np.ma.masked_invalid(shown), cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
    for row, column in np.argwhere(off & written):
        value = tau[row, column]
        if np.isnan(value):
            axes.text(column, row, "\N{EN DASH}", ha="center", va="center", size=7, color=GREY)
            continue
        text, sure = f"{value:.2f}", True
        if ends is not None:
            least, most = ends[0][row, column], ends[1][row, column]
            sure = bool(least > 0 or most < 0)
            text = text if row > column else f"{least:.2f}\nto {most:.2f}"
        elif row < column:
            continue
        below = row > column
        axes.text(
            column,
            row,
            text.replace("-", "\N{MINUS SIGN}"),
            ha="center",
            va="center",
            linespacing=1.05,
            size=7.5 if below else 6.5,
            weight="bold" if sure and below and ends is not None else "normal",
            color=on(colormaps[DIVERGING](0.5 + 0.5 * float(np.clip(value, -1, 1)))[:3]),
        )
    words = [short(name, 22) for name in names]
    axes.set_xticks(range(size), words, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), words)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour_bar(figure, drawn, axes, label)
    said = "1: the same order, 0: as two random orders"
    if ends is not None:
        said += "; above the diagonal: 95 % interval; bold: it excludes zero"
    headline(figure, title, said + sample(n))
    return figure
