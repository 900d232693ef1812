"""One latent of a dictionary (or any unit): the images that hold most of it, where in them, and how it is distributed.

Top images alone mislead: they show the far end of a distribution. The histogram below them shows all of it, with the
range of the images above marked, and says how often the latent is active at all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.plots.image_overlay import lay_over, limits
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import GREY, INK, LINES, PALE, bare, blank, colour_bar, headline, numbers, short, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latent_panel(
    top: Sequence[np.ndarray],
    maps: np.ndarray,
    activations: np.ndarray,
    *,
    values: Sequence[float] | None = None,
    captions: Sequence[str] | None = None,
    facts: Mapping[str, object] | None = None,
    bins: int = 40,
    title: str = "",
    label: str = "activation",
    what: str = "tokens",
) -> "Figure":
    """Top images, each with its map below it; under them a histogram and what else is known.

    Args:
        top: uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each, most active first.
        maps: activations on the patch grid `[image down across]`; 0 or more; one scale for all.
        activations: of the latent on all tokens (or images) that were looked at `[token]`, zeros included.
        values: activation of each top image; default: the largest of its map.
        captions: one per top image, above it: class names.
        facts: what else is known, name -> value, beside the histogram.
        bins: of the histogram.
        title: above the figure.
        label: at the axis and colour bar; what is measured, with its unit.
        what: what the histogram counts.

    Raises:
        BadImages: no image, not uint8, or wrong axes; names the image.
        ShapeMismatch: not one map, value or caption per image.
        OutOfRange: a negative activation.
        NotFinite: Inf, NaN among the activations, or maps without any value.

    Example:
        >>> figure = latent_panel([np.zeros((8, 8, 3), np.uint8)], np.ones((1, 2, 2)), np.array([0.0, 0.0, 1.0, 2.0]))
        >>> [axes.get_xlabel() for axes in figure.axes], figure.axes[-1].get_ylabel()
        (['', '1', '', 'activation'], 'tokens')
    """
    from matplotlib.figure import Figure

    images = checked_images(top)
    maps = numbers("maps", maps, ndim=3)
    seen = numbers("activations", activations, nan=False)
    if len(maps) != len(images):
        raise ShapeMismatch(f"maps need one entry per image: {len(images)} images, {len(maps)} maps.")
    strongest = np.nanmax(np.where(np.isnan(maps), -np.inf, maps), axis=(1, 2))
    given = numbers("values", strongest if values is None else values, nan=False)
    for name, extra in (("values", given), ("captions", captions)):
        if extra is not None and len(extra) != len(images):
            raise ShapeMismatch(f"{name} need one entry per image: {len(images)} images, {len(extra)} entries.")
    if seen.min() < 0:
        raise OutOfRange(f"activations are 0 or more, got {seen.min():.4g}; show signed units with unit_panel.")
    low, high = limits(list(maps), False)
    columns = len(images)
    wide = max(1.2 * columns + 0.9, 5.0)
    upper = 2.6 + (0.2 if captions is not None else 0.0)
    figure = Figure(figsize=(wide, upper + 1.9), layout="constrained")
    pictures, below = figure.subfigures(2, 1, height_ratios=[upper, 1.9])
    grid = pictures.subplots(2, columns, squeeze=False)
    drawn = None
    for place, image in enumerate(images):
        above, under = grid[:, place]
        above.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        drawn = lay_over(under, image, maps[place], False, low, high)
        for axes in (above, under):
            blank(axes)
        under.set_xlabel(f"{given[place]:.3g}", size=7, color=INK, labelpad=2)
        if captions is not None:
            above.set_title(wrapped(captions[place], 17), size=7.5, color=INK, pad=3)
    colour_bar(pictures, drawn, grid.ravel().tolist(), label, aspect=24)
    # Name and value share a line of the right panel: letters that fit into each half.
    half = max(8, int(wide * 0.36 / 0.062) // 2)
    listed = {short(name, half): short(value, half) for name, value in (facts or {}).items()}
    ratios = [1.6, 1.0] if listed else [1.0]
    parts = below.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    _histogram(parts[0], seen, given, bins, label, what)
    if listed:
        parts[1].set_axis_off()
        for row, (name, value) in enumerate(listed.items()):
            y = 1 - row * min(0.13, 1 / len(listed))
            parts[1].text(0.0, y, name, size=7.5, color=GREY, va="top", transform=parts[1].transAxes)
            parts[1].text(1.0, y, value, size=7.5, color=INK, va="top", ha="right", transform=parts[1].transAxes)
    headline(figure, title, f"{columns} most active images; one scale for all maps; n = {len(seen):,} {what}")
    return figure


def _histogram(axes, seen: np.ndarray, given: np.ndarray, bins: int, label: str, what: str) -> None:
    """Counts of the activations above zero on a logarithmic axis, the range of the top images as a band."""
    bare(axes)
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    active = seen[seen > 0]
    if len(active):
        edges = np.linspace(0, float(active.max()) * 1.0001, bins + 1)
        axes.hist(active, bins=edges, color=LINES[0])
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
        axes.axvspan(float(given.min()), float(given.max()), color=LINES[1], alpha=0.22, linewidth=0.8)
        axes.annotate("shown above", (float(given.max()), 1), xycoords=("data", "axes fraction"), size=7, color=INK,
                      xytext=(0, 2), textcoords="offset points", ha="right", va="bottom")  # fmt: skip
    else:
        axes.text(0.5, 0.5, "never active", transform=axes.transAxes, ha="center", size=9, color=INK)
        axes.set_yticks([])
    share = f"active on {len(active) / len(seen):.3g} of all {wrapped(what, 30, 1)}"
    axes.set_title(share, loc="left", size=8, color=INK, pad=12 if len(active) else 6)
    axes.set_xlabel(wrapped(label, 40), size=8, color=INK)
    axes.set_ylabel(wrapped(what, 30), size=8, color=INK)
