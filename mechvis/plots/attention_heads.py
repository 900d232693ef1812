"""What one token attends to in every head: a grid of layers by heads, each map over the image.

Heads differ much in how sharp they are. So each map has its own scale by default, and its largest weight is written
below it; with `common=True` all share one, which shows sharp heads and hides the others. Attention to tokens outside of
the image (CLS, registers) is written below too: it is often most of it, and no map shows it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots.image_overlay import lay_over
from mechvis.plots.image_panel import checked_images
from mechvis.plots.look import GREY, INK, blank, colour_bar, headline, numbers, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARK = "#ffd400"


def attention_heads(
    image: np.ndarray,
    pattern: np.ndarray,
    *,
    grid: tuple[int, int],
    query: str | tuple[int, int] = "CLS",
    prefix: Sequence[str] = ("CLS",),
    layers: Sequence[int] | None = None,
    common: bool = False,
    title: str = "",
) -> "Figure":
    """One row per layer, one column per head; the image itself at the left.

    Args:
        image: uint8 `[height width channel]` (1 or 3 channels) or `[height width]`, as the model sees it.
        pattern: attention weights of one query token `[layer head key]`, prefix tokens first, then the patches in
            reading order (`cache["pattern", layer][0, :, token]`, stacked).
        grid: patches (down, across).
        query: name of the token that looks, or (row, column) of the patch that looks: it is framed in every map.
        prefix: names of the tokens before the patches.
        layers: number of each row of `pattern`; default: 0, 1, ...
        common: one scale for all heads.
        title: above the figure.

    Raises:
        BadImages: not uint8, or wrong axes.
        ShapeMismatch: keys that are not prefix and patches, or layers that do not fit.
        OutOfRange: a patch outside of the grid, or weights that are not between 0 and 1.
        NotFinite: NaN or Inf.

    Example:
        >>> figure = attention_heads(np.zeros((8, 8, 3), np.uint8), np.full((1, 2, 5), 0.2), grid=(2, 2))
        >>> [axes.get_xlabel() for axes in figure.axes[1:3]]
        ['most 0.20 · CLS 0.20', 'most 0.20 · CLS 0.20']
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    (image,) = checked_images([image])
    weights = numbers("pattern", pattern, ndim=3, nan=False)
    down, across = grid
    if down < 1 or across < 1 or weights.shape[2] != len(prefix) + down * across:
        raise ShapeMismatch(
            f"the pattern has {weights.shape[2]} keys; {len(prefix)} prefix tokens and {down} x {across} patches "
            f"are {len(prefix) + down * across}."
        )
    if weights.min() < -1e-6 or weights.max() > 1 + 1e-6:
        raise OutOfRange(f"attention weights lie between 0 and 1, got {weights.min():.4g} to {weights.max():.4g}.")
    n_layers, n_heads = weights.shape[:2]
    layers = list(range(n_layers)) if layers is None else list(layers)
    if len(layers) != n_layers:
        raise ShapeMismatch(f"the pattern has {n_layers} layers, {len(layers)} are named.")
    place = None if isinstance(query, str) else tuple(map(int, query))
    if place is not None and not (len(place) == 2 and 0 <= place[0] < down and 0 <= place[1] < across):
        raise OutOfRange(f"the query patch {query} lies outside of {down} x {across} patches.")
    maps = weights[..., len(prefix) :].reshape(n_layers, n_heads, down, across)
    if not maps.max() > 0:
        raise NotFinite("no head attends to any patch: there is nothing to show.")
    height, width = image.shape[:2]
    side = 1.25 if n_heads <= 8 else 0.95
    size = (max(side * (n_heads + 1) + 1.0, 3.6), (side + 0.14) * n_layers + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    cells = figure.subplots(n_layers, n_heads + 1, squeeze=False)
    for axes in cells[1:, 0]:
        axes.remove()
    whole, cells, drawn = cells[0, 0], cells[:, 1:], None
    whole.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    whole.set_title("image", size=8, color=INK, pad=3)
    blank(whole)
    for (row, head), axes in np.ndenumerate(cells):
        own = maps[row, head]
        largest = float(maps.max() if common else own.max()) or 1.0
        drawn = lay_over(axes, image, own if common else own / largest, False, 0.0, largest if common else 1.0)
        blank(axes)
        words = [f"most {own.max():.2f}"] * (not common)
        words += [f"{wrapped(prefix[0], 6, 1)} {weights[row, head, : len(prefix)].sum():.2f}"] * (len(prefix) == 1)
        words += [f"prefix {weights[row, head, : len(prefix)].sum():.2f}"] * (len(prefix) > 1)
        axes.set_xlabel(" · ".join(words), size=6.5 if n_heads <= 8 else 5.5, color=GREY, labelpad=2)
        if row == 0:
            axes.set_title(f"head {head}", size=8, color=INK, pad=3)
        if head == 0:
            axes.set_ylabel(f"layer {layers[row]}", size=8, color=INK)
    if place is not None:
        tall, wide = height / down, width / across
        corner = (place[1] * wide - 0.5, place[0] * tall - 0.5)
        for axes in (whole, *cells.ravel()):
            for colour, line in (("#000000", 2.6), (_MARK, 1.4)):
                axes.add_patch(Rectangle(corner, wide, tall, fill=False, edgecolor=colour, linewidth=line, zorder=3))
    unit = "attention weight" if common else "share of the head's largest weight"
    colour_bar(figure, drawn, cells.ravel().tolist(), unit, aspect=26)
    who = wrapped(query, 30, 1) if place is None else f"patch (row {place[0]}, column {place[1]}), framed"
    outside = f"; {wrapped(', '.join(prefix), 60, 1)}: weight outside of the image" if prefix else ""
    most = "" if common else "; most: largest weight on a patch"
    headline(figure, title, f"query: {who}; one image{most}{outside}")
    return figure
