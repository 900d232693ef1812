"""Components that nobody hears: what they read does not matter, so their inputs need not be made.

A component is heard if it writes to the read-out, or to a component that is heard, through edges that are kept. In a
circuit of few edges most heads are not. Cutting the edges into them changes nothing, but costs a stream of its own for
every input; so they are opened again before the circuit is run. The output is the same, up to rounding.
"""

import numpy as np
from jaxtyping import Bool

from circuits.edges.graph import EdgeGraph


def heard(graph: EdgeGraph, kept: Bool[np.ndarray, "circuit writer reader"]) -> Bool[np.ndarray, "circuit writer"]:
    """Which components reach the read-out.

    Args:
        graph: the architecture.
        kept: edges that are not cut.

    Example:
        >>> graph = EdgeGraph((2,))
        >>> heard(graph, graph.mask(["L0H1->out", "L0H0->L0MLP"])[None])[0].tolist()
        [False, False, True, False]
    """
    owners = owners_of(graph)
    found = np.zeros(kept.shape[:2], dtype=bool)
    for reader in reversed(range(len(owners))):  # from the read-out back: later components are known by then
        if owners[reader] < 0:
            found |= kept[:, :, reader]
        else:
            found |= kept[:, :, reader] & found[:, owners[reader], None]
    return found


def with_unheard_open(
    graph: EdgeGraph, kept: Bool[np.ndarray, "circuit writer reader"]
) -> Bool[np.ndarray, "circuit writer reader"]:
    """The same circuits, with all edges into components that nobody hears.

    Args:
        graph: the architecture.
        kept: edges that are not cut.
    """
    owners = owners_of(graph)
    known = heard(graph, kept)
    matters = np.where(owners < 0, True, known[:, owners])
    return kept | (graph.allowed & ~matters[:, None])


def owners_of(graph: EdgeGraph) -> np.ndarray:
    """The writer that each reader belongs to, int `[reader]`; -1 for the read-out."""
    return np.array([-1 if name == "out" else graph.writer(graph.node_of(name)) for name in graph.readers])
