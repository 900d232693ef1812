"""Histograms of token lengths, one per layer, with the limit between normal and long tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.plots.look import INK, LINES, PALE, bare, headline, numbers, plain, sample, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4


def norm_histogram(
    names: Sequence[str],
    lengths: Sequence[np.ndarray],
    thresholds: Sequence[float | None] | None = None,
    *,
    bins: int = 60,
    title: str = "",
) -> "Figure":
    """Lengths on a logarithmic axis, counts on another: a few long tokens among thousands stay visible.

    Args:
        names: one per histogram.
        lengths: positive lengths `[token]` of each.
        thresholds: where to draw a line; None (or NaN): none.
        bins: of each histogram; all share their edges, so that layers can be compared.
        title: above the figure.

    Raises:
        ShapeMismatch: no histogram, or not one name and threshold for each.
        NotFinite: NaN or Inf, or a length that is not positive.

    Example:
        >>> norm_histogram(["layer 0"], [np.linspace(1, 2, 50)], [1.8]).axes[0].get_xscale()
        'log'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    thresholds = [None] * len(lengths) if thresholds is None else list(thresholds)
    if not len(lengths) or not len(names) == len(lengths) == len(thresholds):
        raise ShapeMismatch(
            f"{len(lengths)} histograms need as many names and thresholds, got {len(names)} and {len(thresholds)}."
        )
    values = [numbers(f"lengths of {name!r}", each, nan=False) for name, each in zip(names, lengths, strict=True)]
    smallest, largest = min(each.min() for each in values), max(each.max() for each in values)
    if not smallest > 0:
        raise NotFinite(f"lengths must be positive for a logarithmic axis, got {smallest:g}.")
    edges = np.geomspace(smallest * 0.98, largest * 1.02, bins + 1)
    columns = min(_COLUMNS, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(2.3 * columns + 0.5, 1.9 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for place, axes in enumerate(grid.ravel()):
        if place >= len(values):
            axes.set_visible(False)
            continue
        bare(axes)
        axes.grid(axis="y", color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.hist(values[place], bins=edges, color=LINES[0], histtype="stepfilled")
        axes.set_xscale("log")
        # Lengths span about a decade: round numbers between the powers of ten, written as they are.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yscale("log")
        axes.set_title(short(names[place]), size=8, color=INK)
        limit = thresholds[place]
        if limit is not None and limit == limit:
            axes.axvline(limit, color=LINES[1], linewidth=1.4, linestyle=(0, (3, 2)))
            axes.annotate(
                plain(f"{limit:.3g}"), (limit, 1), xycoords=("data", "axes fraction"), size=7, color=INK, va="top"
            )
    for axes in grid[:, 0]:
        axes.set_ylabel("tokens", size=8, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("length", size=8, color=INK)
    headline(figure, title, sample(sum(map(len, values)), "tokens", first=True))
    return figure
