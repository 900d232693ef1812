"""The texts that say what heads write: a column per head, its best texts first, with the share that each explains.

The bar behind a text is its share, so that a list whose first text explains nearly all looks different from one whose
texts all explain a little. Texts come from people and files: they are wrapped, cut, and never read as markup.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.look import GREY, INK, headline, numbers, sample, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = "#c9d9ea"
"""Behind text: INK on it has a contrast of more than 10:1."""
_WIDE, _LETTERS = 2.15, 33
"""Inches of a column, and letters of its lines."""


def text_table(
    heads: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    shares: Sequence[Sequence[float]] | None = None,
    notes: Sequence[str] | None = None,
    per_row: int = 4,
    title: str = "",
    label: str = "share of the head's variance",
    n: int | None = None,
) -> "Figure":
    """Heads side by side, `per_row` of them, each with its texts from best to worst.

    Args:
        heads: name of each head.
        texts: texts of each head, the best first; numbers may differ.
        shares: share that each text explains, 0 to 1, drawn as a bar behind it and written; default: none.
        notes: one line per head under its name, e.g. what all its texts explain, or a property.
        per_row: heads side by side.
        title: above the figure.
        label: what the shares are.
        n: images that the heads' outputs come from.

    Raises:
        ShapeMismatch: no head, a head without a text, or shares or notes that do not fit.
        OutOfRange: a share that is none.
        NotFinite: NaN or Inf.

    Example:
        >>> figure = text_table(["L3H1"], [["a red image", "a star"]], shares=[[0.5, 0.1]])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['L3H1', '50 %', 'a red image', '10 %', 'a star']
    """
    from matplotlib.figure import Figure

    if not len(heads) or len(texts) != len(heads) or any(len(own) == 0 for own in texts):
        raise ShapeMismatch(f"a text table needs a head and a text for each: {len(heads)} heads, {len(texts)} lists.")
    if per_row < 1:
        raise ShapeMismatch(f"per_row must be at least 1, got {per_row}.")
    if notes is not None and len(notes) != len(heads):
        raise ShapeMismatch(f"notes need one entry per head: {len(heads)} heads, {len(notes)} notes.")
    if shares is not None and [len(own) for own in shares] != [len(own) for own in texts]:
        raise ShapeMismatch("shares need one entry per text of each head.")
    weights = None
    if shares is not None:
        weights = [numbers(f"shares of {head!r}", own, nan=False) for head, own in zip(heads, shares, strict=True)]
        for head, own in zip(heads, weights, strict=True):
            if own.min() < -1e-9 or own.max() > 1 + 1e-9:
                raise OutOfRange(f"shares of {head!r} lie between 0 and 1, got {own.min():.4g} to {own.max():.4g}.")
    across = min(per_row, len(heads))
    rows = [range(start, min(start + across, len(heads))) for start in range(0, len(heads), across)]
    top = 0.26 + (0.17 if notes is not None else 0.0)
    cells = [[wrapped(text, _LETTERS - (6 if weights is not None else 0)) for text in own] for own in texts]
    heights = [
        [max((0.09 + 0.145 * (cells[head][rank].count("\n") + 1)) for head in row if rank < len(cells[head]))
         for rank in range(max(len(cells[head]) for head in row))]
        for row in rows
    ]  # fmt: skip
    tall = [top + sum(own) + 0.14 for own in heights]
    figure = Figure(figsize=(_WIDE * across + 0.1, sum(tall)), layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False, height_ratios=tall)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, hspace=0, wspace=0)
    for line, row in enumerate(rows):
        for place, axes in enumerate(grid[line]):
            axes.set_axis_off()
            axes.set_xlim(0, _WIDE)
            axes.set_ylim(tall[line], 0)
            if place >= len(row):
                continue
            head = row[place]
            axes.text(0.04, 0.04, wrapped(heads[head], 23, 1), size=9, weight="bold", color=INK, va="top")
            if notes is not None:
                axes.text(0.04, 0.24, wrapped(notes[head], 38, 1), size=7, color=GREY, va="top")
            axes.plot([0, _WIDE - 0.08], [top, top], color=GREY, linewidth=0.8)
            y = top
            for rank, text in enumerate(cells[head]):
                high = heights[line][rank]
                if weights is not None:
                    share = float(np.clip(weights[head][rank], 0, 1))
                    axes.barh(y + high / 2, share * (_WIDE - 0.08), height=high - 0.03, color=_BAR, linewidth=0)
                    axes.text(_WIDE - 0.1, y + high / 2, f"{share:.0%}".replace("%", " %"), size=7, color=INK,
                              va="center", ha="right")  # fmt: skip
                axes.text(0.04, y + high / 2, text, size=7.5, color=INK, va="center", linespacing=1.1)
                y += high
    said = f"bar: {wrapped(label, 80, 1)}" if weights is not None else "best first"
    headline(figure, title, said + sample(n))
    return figure
