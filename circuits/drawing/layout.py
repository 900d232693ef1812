"""Where the components of a circuit stand in its picture: layers from bottom to top, heads and MLP of a layer beside
each other, ordered so that few edges cross.

Each layer has two rows: its heads, and above them its MLP, as in the forward pass. Within a row, nodes are sorted by
the mean place of their neighbours (the barycentre rule of layered graph drawing; Sugiyama et al. 1981), a few sweeps up
and down; ties keep the order of the heads.
"""

from dataclasses import dataclass

from circuits.circuit import Circuit
from mechvis.errors import BadData


@dataclass(frozen=True)
class Place:
    """One component in the picture."""

    node: str
    """Its name."""
    x: float
    """Across, in units of one node."""
    y: int
    """Row, counted from the embedding (0) over the rows that are used."""


def layout(circuit: Circuit, sweeps: int = 8) -> dict[str, Place]:
    """Places of the components that have an edge, the embedding and the read-out included where they do.

    Args:
        circuit: what to draw.
        sweeps: how often rows are sorted anew.

    Raises:
        BadData: an empty circuit.
    """
    graph = circuit.graph
    pairs = [tuple(edge.split("->")) for edge in circuit.edges]
    if not pairs:
        raise BadData("the circuit has no edge: there is nothing to draw.")
    links = [(writer, graph.node_of(reader)) for writer, reader in pairs]
    used = {name for link in links for name in link}
    depths = sorted({graph.depth(name) for name in used})
    rows = [[name for name in graph.nodes if name in used and graph.depth(name) == depth] for depth in depths]
    neighbours: dict[str, list[str]] = {name: [] for name in used}
    for writer, node in links:
        neighbours[writer].append(node)
        neighbours[node].append(writer)
    x = {name: place - (len(row) - 1) / 2 for row in rows for place, name in enumerate(row)}
    level = {name: y for y, row in enumerate(rows) for name in row}
    for sweep in range(sweeps):
        up = sweep % 2 == 0
        for row in rows if up else reversed(rows):
            y = level[row[0]]

            def wanted(name: str, y: int = y, up: bool = up) -> float:
                at = [x[other] for other in neighbours[name] if (level[other] < y) == up]
                return sum(at) / len(at) if at else x[name]

            for place, name in enumerate(sorted(row, key=wanted)):
                x[name] = place - (len(row) - 1) / 2
    return {name: Place(name, x[name], level[name]) for name in graph.nodes if name in used}
