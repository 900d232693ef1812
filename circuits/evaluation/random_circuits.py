"""Random circuits of the same size and layer profile as a given one.

In every cell (layer and kind of the writer, layer and input of the reader) a random circuit has as many edges as the
circuit has. Without the profile random circuits would differ in depth too, and any circuit near the output would look
good beside them. Two ways to draw:

`edges`   in each cell the same number of edges, any of them. Such circuits mostly hang together badly
`heads`   the circuit itself with the heads of every layer exchanged: as well connected as the circuit, so the harder
          test: is it *these* heads?

The circuit itself is not drawn, and no other one twice; where there are few, all are. They are not pruned: they would
lose their size.
"""

import itertools
import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from mechvis.errors import BadData, OutOfRange, unknown

How = Literal["edges", "heads"]

_TRIES = 20
"""Draws per circuit asked for, before giving up on finding a new one."""


def random_circuits(
    graph: EdgeGraph, kept: Bool[np.ndarray, "writer reader"], n: int, *, how: How = "edges", seed: int = 0
) -> tuple[Bool[np.ndarray, "circuit writer reader"], bool]:
    """Different random circuits of the same profile, without the circuit itself.

    Args:
        graph: the architecture.
        kept: the circuit.
        n: how many; fewer come back where there are fewer.
        how: `edges` or `heads`.
        seed: fixes the draws.

    Returns:
        Masks, and whether they are all that exist.

    Raises:
        OutOfRange: n below 1.
        BadData: there is no other circuit of this profile.

    Example:
        >>> graph = EdgeGraph((2,))
        >>> masks, every = random_circuits(graph, graph.mask(["embed->L0H0.v", "L0H0->out"]), 100)
        >>> len(masks), every
        (3, True)
    """
    if not isinstance(n, int) or n < 1:
        raise OutOfRange(f"n={n!r}: at least one random circuit.")
    if how not in ("edges", "heads"):
        raise unknown("way to draw circuits", how, ("edges", "heads"))
    source = _Edges(graph, kept) if how == "edges" else _Heads(graph, kept)
    generator = np.random.default_rng(seed)
    seen = {np.packbits(kept).tobytes()}
    found = []
    # Twice as many as asked for can be gone through one by one; more are drawn.
    every = source.count <= 2 * (n + 1)
    pool = source.all() if every else (source.draw(generator) for _ in range(_TRIES * n))
    for mask in pool:
        key = np.packbits(mask).tobytes()
        if key not in seen:
            seen.add(key)
            found.append(mask)
        if len(found) == n and not every:
            break
    if not found:
        raise BadData(
            f"there is no other circuit of {int(kept.sum())} edges with this layer profile ({how}), so there is "
            "nothing to compare with. Keep fewer edges, or draw the other way (how=)."
        )
    if len(found) > n:
        order = np.sort(generator.permutation(len(found))[:n])
        return np.stack([found[i] for i in order]), False
    return np.stack(found), every


def profile(graph: EdgeGraph) -> Int[np.ndarray, "writer reader"]:
    """The cell of each edge: (layer and kind of its writer, layer and input of its reader), numbered; -1 where there is
    no edge.

    Example:
        >>> len(np.unique(profile(EdgeGraph((4, 4))))) - 1
        23
    """
    writers = _numbered([(graph.depth(name), "MLP" in name) for name in graph.writers])
    readers = _numbered([(graph.depth(graph.node_of(name)), name.partition(".")[2]) for name in graph.readers])
    cells = writers[:, None] * (readers.max() + 1) + readers[None]
    return np.where(graph.allowed, cells, -1)


class _Edges:
    """In each cell the same number of edges."""

    def __init__(self, graph: EdgeGraph, kept: np.ndarray):
        cells = profile(graph)
        self.shape = kept.shape
        self.cells = [(np.argwhere(cells == cell), int(kept[cells == cell].sum())) for cell in np.unique(cells[kept])]
        self.count = math.prod(math.comb(len(places), k) for places, k in self.cells)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        return self._mask(places[generator.choice(len(places), k, replace=False)] for places, k in self.cells)

    def all(self) -> Any:
        ways = [
            [places[list(some)] for some in itertools.combinations(range(len(places)), k)] for places, k in self.cells
        ]
        return (self._mask(chosen) for chosen in itertools.product(*ways))

    def _mask(self, chosen: Any) -> np.ndarray:
        mask = np.zeros(self.shape, dtype=bool)
        for places in chosen:
            mask[places[:, 0], places[:, 1]] = True
        return mask


class _Heads:
    """The circuit with the heads of each layer exchanged; heads that it does not use are all alike."""

    def __init__(self, graph: EdgeGraph, kept: np.ndarray):
        self.graph, self.kept = graph, kept
        nodes = set(Circuit(graph=graph, kept=kept).nodes)
        self.used = [[h for h in range(n) if f"L{layer}H{h}" in nodes] for layer, n in enumerate(graph.n_heads)]
        self.count = math.prod(math.perm(n, len(used)) for n, used in zip(graph.n_heads, self.used, strict=True))

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        return self._mask([generator.permutation(heads) for heads in self.graph.n_heads])

    def all(self) -> Any:
        layers = zip(self.graph.n_heads, self.used, strict=True)
        places = itertools.product(*(itertools.permutations(range(n), len(used)) for n, used in layers))
        return (self._mask([self._order(layer, at) for layer, at in enumerate(each)]) for each in places)

    def _order(self, layer: int, places: tuple[int, ...]) -> np.ndarray:
        """Which head of the circuit comes to each place: the used ones to these places, the others to the rest."""
        heads, used = self.graph.n_heads[layer], self.used[layer]
        order = np.empty(heads, dtype=np.int64)
        order[list(places)] = used
        order[[h for h in range(heads) if h not in places]] = [h for h in range(heads) if h not in used]
        return order

    def _mask(self, orders: list[np.ndarray]) -> np.ndarray:
        writers, readers = np.arange(self.kept.shape[0]), np.arange(self.kept.shape[1])
        for layer, order in enumerate(orders):
            heads = len(order)
            start = self.graph.writers_of(layer).start
            writers[start : start + heads] = start + order
            start = self.graph.readers_of(layer).start
            for kind in range(3):
                first = start + kind * heads
                readers[first : first + heads] = first + order
        return self.kept[writers][:, readers]


def _numbered(keys: list[Any]) -> Int[np.ndarray, " name"]:
    known = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return np.array([known[key] for key in keys])
