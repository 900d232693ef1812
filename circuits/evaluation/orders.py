"""Orders of edges, and the circuits that are their first so many edges.

A fraction f of the edges can be meant in two ways:

`left`   the longest start of the order of which at most f n edges are left after pruning (**X**)
`asked`  the first `floor(f n)` edges, of which pruning may leave few or none: as published (MIB, **C**)

Why edges are better counted after pruning: a random order of half of the edges is left with a handful, and a straight
line from there to the whole model lies far above anything that was measured. Bad orders would win by it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.search.select import ranking

Count = Literal["left", "asked"]

ORDERS = ("size", "signed", "size reversed", "signed reversed", "random")
"""`random` stands for several draws."""


def orders_of(
    graph: EdgeGraph, scores: Float[np.ndarray, "writer reader"], n_random: int, seed: int
) -> dict[tuple[str, int], Int[np.ndarray, "edge two"]]:
    """The order of edges by size of score and by signed score, both reversed, and at random, by (name, draw).

    Args:
        graph: the architecture.
        scores: `[writer reader]`, NaN where an edge has none.
        n_random: random orders, over all edges: they need not know which ones have a score.
        seed: fixes them.

    Raises:
        ShapeMismatch, NotFinite: as :func:`circuits.search.select.ranking`.
    """
    size, signed = ranking(scores, graph), ranking(scores, graph, signed=True)
    orders = {("size", 0): size, ("signed", 0): signed, ("size reversed", 0): size[::-1]}
    orders["signed reversed", 0] = signed[::-1]
    generator = np.random.default_rng(seed)
    for draw in range(n_random):
        orders["random", draw] = generator.permutation(graph.places)
    return orders


def nested(
    graph: EdgeGraph,
    order: Int[np.ndarray, "edge two"],
    fractions: Sequence[float],
    *,
    count: Count = "left",
    prune: bool = True,
) -> list[tuple[float, int, Bool[np.ndarray, "writer reader"]]]:
    """Circuits of the first edges of an order: (fraction, edges before pruning, mask).

    Args:
        graph: the architecture.
        order: (writer, reader) of the edges, best first.
        fractions: of all edges of the graph; the last one, 1, is the whole model whatever the order holds.
        count: what a fraction limits, see the module.
        prune: drop what dangles.

    Example:
        >>> graph = EdgeGraph((1,))
        >>> [(asked, int(kept.sum())) for _, asked, kept in nested(graph, graph.places, [0.5, 1.0])]
        [(6, 1), (8, 8)]
    """

    def first(n: int) -> Bool[np.ndarray, "writer reader"]:
        kept = np.zeros(graph.shape, dtype=bool)
        kept[order[:n, 0], order[:n, 1]] = True
        return np.array(Circuit(graph=graph, kept=kept).pruned().kept) if prune else kept

    found = []
    for fraction in fractions:
        # 1e-9: 0.29 of 100 is 29, not the 28 that rounding in binary makes of it.
        most = int(np.floor(fraction * graph.n_edges + 1e-9))
        if fraction == 1:
            found.append((1.0, graph.n_edges, graph.allowed.copy()))
        elif count == "asked" or not prune:
            if most <= len(order):
                found.append((float(fraction), most, first(most)))
        else:
            # More edges before pruning never leave fewer after it, so the last start that fits is found by halving.
            asked = bisect_right(range(len(order) + 1), most, key=lambda n: int(first(n).sum())) - 1
            if asked < len(order) or len(order) == graph.n_edges:
                found.append((float(fraction), asked, first(asked)))
    return found


def ties(scores: np.ndarray, order: np.ndarray, asked: int, name: str) -> int:
    """How many edges after the first `asked` ones have the key of the last of them."""
    if name == "random" or not 0 < asked < len(order):
        return 0
    keys = scores[order[:, 0], order[:, 1]]
    keys = np.abs(keys) if name.startswith("size") else keys
    return int((keys[asked:] == keys[asked - 1]).sum())
