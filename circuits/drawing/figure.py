"""A circuit as a layered graph: components as boxes, edges as curves whose width is their score and whose colour its
sign.

Edges into a head end at one of three ports: queries left, keys in the middle, values right. A picture per component
(what a head attends to, :mod:`circuits.drawing.attention`) stands in its box. The figure is matplotlib's, so it can be
saved as SVG, PDF or PNG.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.circuit import Circuit
from circuits.drawing.layout import Place, layout
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.plots.look import GREY, INK, OPPOSES, PALE, SUPPORTS, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 1.25, 1.15
"""Inches per node across and per row."""
_HALF = (0.36, 0.17)
"""Half a box without a picture, in the same units."""
_TALL = 0.40
"""Half the height of a box with a picture."""
_PORT = {"q": -0.24, "k": 0.0, "v": 0.24}


def draw(
    circuit: Circuit,
    *,
    pictures: Mapping[str, np.ndarray] | None = None,
    max_edges: int = 80,
    title: str | None = None,
    path: str | Path | None = None,
) -> "Figure":
    """Draw a circuit.

    Args:
        circuit: with or without scores.
        pictures: component -> image `[height width 3]` or `[height width]` in 0 to 1 (or uint8) shown in its box, e.g.
            from :func:`circuits.drawing.attention_pictures`.
        max_edges: of a larger circuit only so many edges are drawn, those with the largest scores; the title says so.
        title: default: the circuit's.
        path: also save it there, e.g. `circuit.svg`.

    Raises:
        BadData: an empty circuit.
        OutOfRange: max_edges below 1.
        UnknownName: a picture of a component that is not drawn.
        ShapeMismatch: a picture that is no image.

    Example:
        >>> from circuits.edges.graph import EdgeGraph
        >>> figure = draw(Circuit.of(EdgeGraph((2,)), ["embed->L0H1.v", "L0H1->out"]))
        >>> [text.get_text() for text in figure.axes[0].texts][:3]
        ['embed', 'L0H1', 'out']
    """
    from matplotlib.figure import Figure

    if max_edges < 1:
        raise OutOfRange(f"max_edges={max_edges}: at least one.")
    shown = _largest(circuit, max_edges)
    places = layout(shown)
    pictures = dict(pictures or {})
    for node in pictures:
        if node not in circuit.nodes:
            raise unknown("component of this circuit", node, circuit.nodes)
    rows = max(place.y for place in places.values()) + 1
    # At least two nodes wide: long edges go around the boxes.
    across = max(2.2, max(abs(place.x) for place in places.values()) * 2 + 1)
    figure = Figure(figsize=(max(3.2, _WIDTH * across + 0.6), _HEIGHT * rows + 0.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-across / 2 - 0.15, across / 2 + 0.15)
    axes.set_ylim(-0.55, rows - 0.45)
    for place in places.values():
        _box(axes, place, pictures.get(place.node))
    _edges(axes, shown, places, pictures)
    words = circuit.title if title is None else title
    if len(shown) < len(circuit):
        words += f" ({len(shown)} of {len(circuit)} edges drawn)"
    axes.set_title(plain(words), loc="left", size=9, color=INK, wrap=True)
    if circuit.scores is not None:
        axes.annotate(
            "red: supports the behaviour, blue: opposes it; width: size of the score",
            (0, 0),
            xycoords="axes fraction",
            size=6.5,
            color=GREY,
            va="top",
        )
    if path is not None:
        save(figure, path)
    return figure


def save(figure: "Figure", path: str | Path) -> Path:
    """Write a figure; the same figure gives the same SVG file.

    Args:
        figure: of :func:`draw`.
        path: its suffix says the format: svg, pdf or png.

    Raises:
        OutputNotWritable: says what and why.
    """
    import io

    import matplotlib

    from mechvis.files import ensure_writable, write_bytes

    path = Path(path)
    kind = path.suffix.lstrip(".").lower() or "svg"
    if kind not in ("svg", "pdf", "png"):
        raise unknown("kind of picture", kind, ("svg", "pdf", "png"))
    ensure_writable(path.parent)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mechvis", "svg.fonttype": "none"}):
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=kind, metadata=dated.get(kind), dpi=160)
    write_bytes(path, buffer.getvalue())
    return path


def _largest(circuit: Circuit, n: int) -> Circuit:
    if len(circuit) <= n:
        return circuit
    order = sorted(circuit.edges, key=lambda edge: -abs(np.nan_to_num(circuit.score(edge))))
    return circuit.with_edges(circuit.graph.mask(order[:n]))


def _height(picture: np.ndarray | None) -> float:
    return _HALF[1] if picture is None else _TALL


def _box(axes, place: Place, picture: np.ndarray | None) -> None:
    from matplotlib.patches import FancyBboxPatch

    wide, high = _HALF[0], _height(picture)
    colour = "#fff7e6" if place.node.endswith("MLP") else "white" if "H" in place.node else PALE
    axes.add_patch(
        FancyBboxPatch(
            (place.x - wide, place.y - high),
            2 * wide,
            2 * high,
            boxstyle="round,pad=0.01,rounding_size=0.05",
            facecolor=colour,
            edgecolor=GREY,
            linewidth=0.9,
            zorder=3,
        )
    )
    if picture is None:
        axes.text(place.x, place.y, plain(place.node), ha="center", va="center", size=8, color=INK, zorder=5)
        return
    image = np.asarray(picture)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or 0 in image.shape:
        raise ShapeMismatch(f"the picture of {place.node} is {list(image.shape)}; an image is [height width 3].")
    if image.dtype != np.uint8 and not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise BadData(f"the picture of {place.node} has values outside 0 to 1; give uint8, or floats in 0 to 1.")
    side = 0.27
    axes.imshow(
        image,
        extent=(place.x - side, place.x + side, place.y - 0.37, place.y + 0.17),
        aspect="auto",
        zorder=4,
        cmap="viridis",
        interpolation="nearest",
    )
    axes.text(place.x, place.y + 0.28, plain(place.node), ha="center", va="center", size=8, color=INK, zorder=5)


def _edges(axes, circuit: Circuit, places: Mapping[str, Place], pictures: Mapping[str, np.ndarray]) -> None:
    from matplotlib.patches import FancyArrowPatch

    scores = [circuit.score(edge) for edge in circuit.edges]
    known = np.abs(np.nan_to_num(scores))
    largest = known.max() if len(known) and known.max() > 0 else 1.0
    for drawn, (edge, score, size) in enumerate(zip(circuit.edges, scores, known, strict=True)):
        writer, reader = edge.split("->")
        node, _, kind = reader.partition(".")
        start, end = places[writer], places[node]
        tail = (start.x, start.y + _height(pictures.get(writer)))
        head = (end.x + _PORT.get(kind, 0.0), end.y - _height(pictures.get(node)))
        colour = GREY if np.isnan(score) else SUPPORTS if score > 0 else OPPOSES
        bend = _bend(start, end, drawn)
        axes.add_patch(
            FancyArrowPatch(
                tail,
                head,
                arrowstyle="-|>",
                mutation_scale=7,
                connectionstyle=f"arc3,rad={bend}",
                linewidth=1.0 if np.isnan(score) else 0.5 + 3.5 * size / largest,
                color=colour,
                alpha=0.75,
                shrinkA=0,
                shrinkB=0,
                zorder=2,
            )
        )
        if kind:
            axes.text(head[0] + 0.04, head[1] - 0.01, kind, ha="left", va="top", size=6, color=INK, zorder=5)


def _bend(start: Place, end: Place, drawn: int) -> float:
    """How far an edge bows out, as a share of its length: over several rows it goes around the boxes between, left and
    right by turns."""
    rows, across = end.y - start.y, abs(end.x - start.x)
    if rows == 1:
        return 0.0
    if across >= 0.5:
        return 0.08 if start.x <= end.x else -0.08
    side = 1 if drawn % 2 else -1
    return side * 2 * (0.55 + 0.05 * rows) * _WIDTH / (_HEIGHT * rows)
