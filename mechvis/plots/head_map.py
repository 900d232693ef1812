"""The map of effects: one cell per layer and head (or layer and token)."""

from typing import TYPE_CHECKING

import numpy as np

from mechvis.plots.look import DIVERGING, INK, colour_bar, framed, headline, numbers, on, plain, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 20
"""Maps of at most this many columns have the value written into each cell."""


def head_map(
    effects: np.ndarray,
    *,
    significant: np.ndarray | None = None,
    title: str = "",
    label: str = "effect (clean - edited)",
    column: str = "head",
    limit: float | None = None,
    n: int | str | None = None,
) -> "Figure":
    """Heat map of effects, red where the unit supports the metric, blue where it opposes it, white at zero.

    Args:
        effects: `[layer head]`, in the unit of the metric; NaN where there is no unit (hatched).
        significant: bool `[layer head]`; these cells get a frame and bold print.
        title: above the map.
        label: at the colour bar; says what is measured, and in which unit.
        column: what the columns are, `head` or `token`.
        limit: effect at which the colour is full; by default the largest absolute effect. Give the same to maps that
            are to be compared.
        n: images under each effect, for the note below the title.

    Returns:
        A figure of about 0.5 inch per cell, layer 0 at the top.

    Raises:
        ShapeMismatch: not two axes, or `significant` of another shape.
        NotFinite: Inf in the effects.

    Example:
        >>> figure = head_map(np.array([[0.1, -0.2], [0.5, 0.0]]), title="Heads")
        >>> figure.axes[0].get_xlabel()
        'head'
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    effects = numbers("effects", effects, ndim=2)
    marks = (
        np.zeros(effects.shape, bool)
        if significant is None
        else np.asarray(numbers("significant", significant, ndim=2, like=effects.shape), bool)
    )
    layers, columns = effects.shape
    written = columns <= _WRITTEN
    cell = 0.52 if written else max(0.08, 10 / columns)
    width, height = max(3.6, 1.6 + columns * cell), max(2.4, 1.2 + layers * (0.42 if written else 0.3))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    largest = float(np.nanmax(np.abs(effects))) if np.isfinite(effects).any() else 0.0
    limit = (limit or largest) or 1.0
    axes.set_facecolor("#f4f5f7")
    if np.isnan(effects).any():
        axes.add_patch(
            Rectangle(
                (-0.5, -0.5), columns, layers, fill=False, hatch="////", edgecolor="#d4d8dd", linewidth=0, zorder=0
            )
        )
    image = axes.imshow(
        effects, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest", zorder=1
    )
    if written:
        _write_values(axes, effects, marks, limit)
    inset = 0.06 if written else 0.0
    for layer, place in np.argwhere(marks):
        corner, side = (place - 0.5 + inset, layer - 0.5 + inset), 1 - 2 * inset
        framed(axes, *corner, side, side, line=1.4 if written else 0.6)
    axes.set_xlabel(plain(column), color=INK)
    axes.set_ylabel("layer", color=INK)
    axes.set_xticks(np.arange(0, columns, 1 if written else max(1, columns // 16)))
    axes.set_yticks(np.arange(layers))
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if written:
        axes.set_xticks(np.arange(-0.5, columns), minor=True)
        axes.set_yticks(np.arange(-0.5, layers), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2, zorder=2)
        axes.tick_params(which="minor", length=0)
    colour_bar(figure, image, axes, label, fraction=0.05, pad=0.02)
    note = "framed: survives the false-discovery-rate correction" if marks.any() else ""
    note += sample(n, first=not note)
    headline(figure, title, note)
    return figure


def _write_values(axes, effects: np.ndarray, marks: np.ndarray, limit: float) -> None:
    """The value in each cell, in one number format for the whole map, black or white by the colour of the cell."""
    from matplotlib import colormaps

    # As many digits as the largest effect needs to show three figures; a common factor keeps cells narrow.
    digits = int(np.clip(2 - np.floor(np.log10(limit)), 0, 2))
    colours = colormaps[DIVERGING]
    scientific = limit < 0.01 or limit >= 1000
    for (layer, place), effect in np.ndenumerate(effects):
        if not np.isnan(effect):
            text = f"{effect:.0e}" if scientific else f"{effect:.{digits}f}"
            if not scientific and float(text) == 0:
                text = text.lstrip("-")
            axes.text(
                place,
                layer,
                text.replace("-", "\N{MINUS SIGN}"),
                ha="center",
                va="center",
                size=6 if scientific else 7,
                zorder=4,
                weight="bold" if marks[layer, place] else "normal",
                color=on(colours(0.5 + 0.5 * float(np.clip(effect / limit, -1, 1)))[:3]),
            )
