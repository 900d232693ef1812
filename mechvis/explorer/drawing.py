"""Drawings that are there without a script: a circuit, and intervals of measures, as numbers for the template.

Colours come from the style sheet; places, widths and names are attributes, so nothing needs a style of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mechvis.explorer.graph import Node, layout
from mechvis.explorer.panels import Edge, Graph

MOST_EDGES = 400
"""Edges that are drawn; of more, the strongest of the circuit."""
BOX, GAP, HEIGHT, STEP, MARGIN = 62, 14, 24, 62, 14
_LABEL = 9


def strongest(graph: Graph, most: int = MOST_EDGES) -> Graph:
    """The graph with the edges that are drawn: those of the circuit before others, then by the size of their score."""
    if len(graph.edges) <= most:
        return graph
    order = sorted(range(len(graph.edges)), key=lambda i: (not graph.edges[i].kept, -_size(graph.edges[i]), i))
    return replace(graph, edges=tuple(graph.edges[i] for i in sorted(order[:most])))


def circuit_drawing(graph: Graph) -> dict[str, Any]:
    """Boxes and lines of a circuit.

    Args:
        graph: what is drawn; see :func:`strongest`.

    Returns:
        `width`, `height`, `nodes` (`name`, `text`, `kind`, `x`, `y`: centre) and `edges` (`name`, `path`, `width`,
        `sign`: positive, negative or unknown, `kept`), in the order of the graph.
    """
    nodes = layout(graph.edges)
    across = max(node.x for node in nodes.values()) - min(node.x for node in nodes.values()) + 1
    rows = max(node.y for node in nodes.values()) + 1
    width, height = across * (BOX + GAP) + 2 * MARGIN, rows * STEP + 2 * MARGIN
    left = min(node.x for node in nodes.values())
    at = {
        name: (MARGIN + (node.x - left + 0.5) * (BOX + GAP), height - MARGIN - (node.y + 0.5) * STEP)
        for name, node in nodes.items()
    }
    most = max(map(_size, graph.edges)) or 1.0
    return {
        "width": round(width),
        "height": round(height),
        "nodes": [_box(node, *at[name]) for name, node in nodes.items()],
        "edges": [
            {
                "name": f"{edge.source} \N{RIGHTWARDS ARROW} {edge.target}{'.' + edge.entry if edge.entry else ''}",
                "path": _path(at[edge.source], at[edge.target], edge.entry),
                "width": f"{0.8 + 4.2 * _size(edge) / most:.2f}",
                "sign": "unknown" if edge.score is None else "negative" if edge.score < 0 else "positive",
                "kept": edge.kept,
            }
            for edge in graph.edges
        ],
    }


def interval_drawing(measures: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Measures with their intervals on one axis; None where fewer than two have numbers of one size.

    Args:
        measures: with `measure`, `value`, `low`, `high`.
    """
    known = [row for row in measures if isinstance(row.get("value"), int | float)]
    shown = [row for row in known if -1.05 <= row["value"] <= 1.5]
    if len(shown) < 2:
        return None
    ends = [
        float(row[name]) for row in shown for name in ("value", "low", "high") if isinstance(row.get(name), int | float)
    ]
    low, high = max(-2.0, min([0.0, *ends])), min(2.0, max([1.0, *ends]))
    left, width, row_height = 250, 380, 22

    def x(value: float) -> str:
        return f"{left + width * (min(max(value, low), high) - low) / (high - low):.1f}"

    rows = []
    for i, row in enumerate(shown):
        both = all(isinstance(row.get(name), int | float) for name in ("low", "high"))
        rows.append(
            {
                "name": _short(_said(row), 34),
                "control": bool(row.get("control")),
                "y": i * row_height + 12,
                "x": x(float(row["value"])),
                "low": x(float(row["low"])) if both else None,
                "high": x(float(row["high"])) if both else None,
                "text": f"{row['value']:.3g}",
            }
        )
    ticks = [{"x": x(tick), "text": f"{tick:g}"} for tick in (-1.0, 0.0, 0.5, 1.0) if low <= tick <= high]
    return {
        "width": left + width + 70,
        "left": left,
        "height": len(shown) * row_height + 26,
        "rows": rows,
        "ticks": ticks,
    }


def _said(row: Mapping[str, Any]) -> str:
    """A measure by its name, how things were removed, and of which control it is."""
    how = f" ({row['operator']})" if row.get("operator") else ""
    return f"{row.get('measure')}{how}{', ' + str(row['control']) if row.get('control') else ''}"


def _box(node: Node, x: float, y: float) -> dict[str, Any]:
    return {
        "name": node.name,
        "text": _short(node.name, _LABEL),
        "kind": node.kind,
        "x": round(x, 1),
        "y": round(y, 1),
        "left": round(x - BOX / 2, 1),
        "top": round(y - HEIGHT / 2, 1),
    }


def _path(start: tuple[float, float], end: tuple[float, float], entry: str) -> str:
    # Queries, keys and values come in at different places, so that three edges to one head are three lines.
    shift = {"q": -16, "k": 0, "v": 16}.get(entry, 0)
    x0, y0, x1, y1 = start[0], start[1] - HEIGHT / 2, end[0] + shift, end[1] + HEIGHT / 2
    bend = max(18.0, (y0 - y1) / 2)
    return f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 - bend:.1f} {x1:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}"


def _size(edge: Edge) -> float:
    return abs(edge.score) if edge.score is not None else 0.0


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
