"""A circuit as one JSON file that any viewer can draw: components with their places, edges with their scores."""

from pathlib import Path
from typing import Any

import numpy as np

from circuits.circuit import Circuit
from circuits.drawing.layout import layout
from mechvis.files import ensure_writable, plain_json, write_json

FORMAT, FORMAT_VERSION = "mechvis.circuit-graph", 1


def as_json(circuit: Circuit) -> dict[str, Any]:
    """Nodes and edges as plain values.

    Args:
        circuit: a circuit with at least one edge.

    Returns:
        `nodes` (`name`, `kind`, `layer`, `x`, `y`, `in`, `out`: sums of the sizes of scores) and `edges` (`source`,
        `target`, `input`: q, k, v or empty, `score` or None).

    Raises:
        BadData: an empty circuit.
    """
    graph, places = circuit.graph, layout(circuit)
    edges, arriving, leaving = [], dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
    for edge in circuit.edges:
        writer, reader = edge.split("->")
        node, _, kind = reader.partition(".")
        score = circuit.score(edge)
        size = abs(np.nan_to_num(score))
        leaving[writer] += size
        arriving[node] += size
        edges.append({"source": writer, "target": node, "input": kind, "score": None if np.isnan(score) else score})
    nodes = []
    for name, place in places.items():
        kind = name if name in ("embed", "out") else "mlp" if name.endswith("MLP") else "head"
        layer = graph.depth(name)[0] if kind in ("mlp", "head") else None
        sums = {"in": arriving[name], "out": leaving[name]}
        nodes.append({"name": name, "kind": kind, "layer": layer, "x": place.x, "y": place.y, **sums})
    return plain_json(
        {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "title": circuit.title,
            "n_heads": list(graph.n_heads),
            "model": dict(circuit.model),
            "nodes": nodes,
            "edges": edges,
        },
        "circuit",
    )


def export_json(circuit: Circuit, path: str | Path) -> Path:
    """Write :func:`as_json` to a file, atomically.

    Raises:
        OutputNotWritable: says what and why.
        BadData: an empty circuit.
    """
    content = as_json(circuit)
    path = Path(path)
    ensure_writable(path.parent)
    write_json(path, content)
    return path
