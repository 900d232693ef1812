"""The graph that circuits are cut out of: every component that writes into the stream, and every input that reads it.

Writers are the embedding, each head and each MLP. Readers are the query, key and value input of each head, the input of
each MLP, and the read-out. Since the stream is a sum, each reader's input is a sum over all earlier writers, and one
term of that sum is an edge: `L0H1->L1H2.q` is what head 1 of layer 0 contributes to the queries of head 2 of layer 1.

A ViT-B has 157 writers, 445 readers and 32,491 edges (methods.md 4.1 **C**). Output biases belong to no component: they
are in every run alike, and no edge carries them. An attention pooling (SigLIP) is part of the read-out `out`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mechvis.errors import BadData, UnknownName, UnsupportedModel, nearest

INPUTS = ("q", "k", "v")
_NODE = re.compile(r"L(\d+)(?:H(\d+)|MLP)")


@dataclass(frozen=True)
class EdgeGraph:
    """Writers, readers and edges of one tower, by names and by index."""

    n_heads: tuple[int, ...]
    """Heads of each layer."""

    @classmethod
    def of(cls, model: Any) -> "EdgeGraph":
        """The graph of a wrapped model.

        Args:
            model: a `HookedViT`.

        Raises:
            UnsupportedModel: its stream is no sum of its components (a norm after the sub-layers).

        Example:
            >>> EdgeGraph.of(mechvis.load("scenes-vit"))                                          # doctest: +SKIP
            EdgeGraph(4 layers x 4 heads: 21 writers, 53 readers, 605 edges)
        """
        if model.parts.modality != "image":
            raise UnsupportedModel(f"{model.parts.family} is a text tower; edges are cut in image towers only.")
        for layer, block in enumerate(model.parts.blocks):
            if not block.linear_writes:
                raise UnsupportedModel(
                    f"block {layer} of {model.parts.family} has a norm after its sub-layers: its stream is no sum of "
                    "heads and MLPs, so there are no edges to cut."
                )
        return cls(tuple(block.attn.n_heads for block in model.parts.blocks))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.n_heads)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """`embed`, then per layer its heads and its MLP."""
        names = ["embed"]
        for layer, heads in enumerate(self.n_heads):
            names += [*(f"L{layer}H{head}" for head in range(heads)), f"L{layer}MLP"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Per layer the queries of all heads, the keys, the values, and the MLP; last `out`."""
        names = []
        for layer, heads in enumerate(self.n_heads):
            names += [f"L{layer}H{head}.{kind}" for kind in INPUTS for head in range(heads)]
            names.append(f"L{layer}MLP")
        return (*names, "out")

    @cached_property
    def n_before(self) -> np.ndarray:
        """How many of the writers come before each reader `[reader]`: the first so many of them are its edges."""
        counts, before = [], 1
        for heads in self.n_heads:
            counts += [before] * (3 * heads) + [before + heads]
            before += heads + 1
        return np.array([*counts, before])

    @cached_property
    def allowed(self) -> np.ndarray:
        """Which edges exist: bool `[writer reader]`."""
        return np.arange(len(self.writers))[:, None] < self.n_before[None]

    @property
    def shape(self) -> tuple[int, int]:
        """(writers, readers)."""
        return len(self.writers), len(self.readers)

    @cached_property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.n_before.sum())

    @cached_property
    def places(self) -> np.ndarray:
        """(writer, reader) of each edge `[edge 2]`, in the order of :attr:`edges`: by reader, then by writer."""
        return np.argwhere(self.allowed.T)[:, ::-1]

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Names of all edges, by reader in the order of the forward pass, then by writer."""
        return tuple(f"{self.writers[writer]}->{self.readers[reader]}" for writer, reader in self.places)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Components: the writers, and `out`."""
        return (*self.writers, "out")

    def writers_of(self, layer: int) -> slice:
        """Where the heads of a layer are among the writers; its MLP follows."""
        start = 1 + sum(self.n_heads[:layer]) + layer
        return slice(start, start + self.n_heads[layer])

    def readers_of(self, layer: int) -> slice:
        """Where the query, key and value inputs of a layer are among the readers; its MLP follows."""
        start = 3 * sum(self.n_heads[:layer]) + layer
        return slice(start, start + 3 * self.n_heads[layer])

    def node_of(self, reader: str) -> str:
        """The component that an input belongs to: `L1H2` of `L1H2.q`."""
        return reader.split(".")[0]

    def depth(self, node: str) -> tuple[int, int]:
        """Where a component stands in the forward pass, for sorting: (layer, 0 for heads and 1 for the MLP)."""
        if node == "embed":
            return -1, 0
        if node == "out":
            return self.n_layers, 0
        layer, head = _NODE.fullmatch(node).groups()
        return int(layer), int(head is None)

    @cached_property
    def _writer_index(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.writers)}

    @cached_property
    def _reader_index(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.readers)}

    def writer(self, name: str) -> int:
        """Index of a writer.

        Raises:
            UnknownName: names the nearest.
        """
        return _index(self._writer_index, name, "component that writes")

    def reader(self, name: str) -> int:
        """Index of a reader.

        Raises:
            UnknownName: names the nearest.
        """
        return _index(self._reader_index, name, "input that reads")

    def edge(self, name: str) -> tuple[int, int]:
        """(writer, reader) of an edge such as `L0H1->L1H2.q`.

        Raises:
            UnknownName: no such writer or reader.
            BadData: not the name of an edge, or of one from late to early.
        """
        ends = name.split("->") if isinstance(name, str) else []
        if len(ends) != 2:
            raise BadData(f"{name!r} is not the name of an edge; write for example 'L0H1->L1H2.q' or 'L0MLP->out'.")
        writer, reader = self.writer(ends[0]), self.reader(ends[1])
        if not self.allowed[writer, reader]:
            raise BadData(f"there is no edge {name!r}: {ends[0]} does not come before {ends[1]}.")
        return writer, reader

    def mask(self, edges: Iterable[str]) -> np.ndarray:
        """Named edges as bool `[writer reader]`."""
        mask = np.zeros(self.shape, dtype=bool)
        for name in edges:
            mask[self.edge(name)] = True
        return mask

    def names(self, mask: np.ndarray) -> tuple[str, ...]:
        """Names of the edges of a mask `[writer reader]`, in the order of :attr:`edges`."""
        return tuple(
            name for name, (writer, reader) in zip(self.edges, self.places, strict=True) if mask[writer, reader]
        )

    def without_nodes(self, nodes: Iterable[str]) -> np.ndarray:
        """All edges but those that leave these components: the mask of a node ablation."""
        mask = self.allowed.copy()
        for name in nodes:
            mask[self.writer(name)] = False
        return mask

    def inner_edges(self, nodes: Iterable[str]) -> np.ndarray:
        """The edges between these components (and the embedding and the read-out): a circuit of nodes."""
        kept = {"embed", "out", *nodes}
        for name in kept - {"out"}:
            self.writer(name)
        writers = np.array([name in kept for name in self.writers])
        readers = np.array([self.node_of(name) in kept for name in self.readers])
        return self.allowed & writers[:, None] & readers[None]

    def __iter__(self) -> Iterator[str]:
        return iter(self.edges)

    def __repr__(self) -> str:
        heads = "/".join(map(str, sorted(set(self.n_heads))))
        return (
            f"EdgeGraph({self.n_layers} layers x {heads} heads: {len(self.writers)} writers, {len(self.readers)} "
            f"readers, {self.n_edges} edges)"
        )


def _index(known: dict[str, int], name: Any, what: str) -> int:
    if name not in known:
        raise UnknownName(f"no {what} is called {name!r}. Nearest: {', '.join(nearest(str(name), list(known)))}.")
    return known[name]
