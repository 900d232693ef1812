"""The search of ACDC itself: which edge is tried when, what is run for it, and how it is decided.

See :mod:`circuits.search.acdc` for the algorithm and its engines. A search is a state (what was decided so far) and a
generator that decides further, so that whoever drives it can show progress, keep a ledger, or stop.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.edges.graph import EdgeGraph
from circuits.search.drops import Counts, Drops
from circuits.search.unheard import heard, owners_of
from mechvis.errors import OutOfRange, unknown

Engine = Literal["sequential", "suffix", "speculative"]
ENGINES = ("sequential", "suffix", "speculative")
Order = Literal["late", "early"]
ORDERS = ("late", "early")
Increments = Float[np.ndarray, "writer reader"]

_NEAR = 0.01
"""Share of tau within which a speculative increment is measured again by itself (**X**)."""
_FIRST_WIDTH = 4
"""Edges tried ahead at the start (**X**)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one search is done."""

    tau: float
    """Threshold."""
    engine: str
    """One of ENGINES."""
    order: str
    """One of ORDERS."""
    ahead: int | None
    """Most edges tried ahead."""

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise unknown("ACDC engine", self.engine, ENGINES)
        if self.order not in ORDERS:
            raise unknown("order of edges", self.order, ORDERS)
        if self.ahead is not None and (not isinstance(self.ahead, int) or self.ahead < 1):
            raise OutOfRange(f"ahead={self.ahead!r}: at least one edge is tried at a time.")


@dataclass(kw_only=True)
class State:
    """Where a search stands."""

    increments: Increments
    """What each edge was judged by; NaN: not yet."""
    kept: Bool[np.ndarray, "writer reader"]
    """Edges that are not cut."""
    current: float = 0.0
    """Drop of `kept`."""
    cost: dict[str, float] = field(default_factory=dict)
    """See `provenance["acdc"]`."""

    @classmethod
    def at_start(cls, graph: EdgeGraph) -> "State":
        """Nothing is decided, nothing cut."""
        cost = Counts().as_dict() | {"wasted": 0, "unread": 0, "measured_again": 0, "rounding": 0.0, "seconds": 0.0}
        return cls(increments=np.full(graph.shape, np.nan), kept=graph.allowed.copy(), cost=cost)

    def decide(self, edge: tuple[int, int], increment: float, value: float, tau: float) -> bool:
        """Note an edge's increment, and the drop without the edge; True: it is cut."""
        cut = bool(increment < tau)
        if cut:
            self.current = float(value)
            self.kept[edge] = False
        self.increments[edge] = increment
        return cut


def search(
    graph: EdgeGraph,
    drops: Drops,
    settings: Settings,
    places: Int[np.ndarray, "edge two"],
    state: State,
    earlier: Increments | None = None,
) -> Iterator[int]:
    """Decide the edges that are left.

    Args:
        graph: the architecture.
        drops: what runs circuits.
        settings: how.
        places: all edges, in the order in which they are tried (:func:`order_of`).
        state: what was decided; it is changed.
        earlier: increments at another threshold, to guess by.

    Yields:
        How many edges were decided since the last time.
    """
    speculative = settings.engine == "speculative"
    most = 1 if not speculative else min(drops.most, settings.ahead or drops.most)
    width = min(_FIRST_WIDTH, most)
    for own in _stages(graph, places):
        todo = own[np.isnan(state.increments[own[:, 0], own[:, 1]])]
        if speculative:
            owners = owners_of(graph)[todo[:, 1]]
            dead = (owners >= 0) & ~heard(graph, state.kept[None])[0, owners]
            for edge in todo[dead]:
                state.decide(tuple(edge), 0.0, state.current, settings.tau)
            state.cost["unread"] += int(dead.sum())
            todo = todo[~dead]
            yield int(dead.sum())
        while len(todo):
            some = todo[:width]
            guesses = _guess(graph, some, state, earlier, settings.tau) if len(some) > 1 else [False]
            rows = state.kept[None].repeat(len(some), 0)
            for place, ((writer, reader), stays) in enumerate(zip(some, guesses, strict=True)):
                rows[place : place + 1 if stays else None, writer, reader] = False
            if len(some) > 1 and drops.knows(rows[0]):
                some, rows = some[:1], rows[:1]  # decided without a run; the rows behind may not be needed
            values = drops(rows)
            taken, right = 0, True
            for edge, stays, row, value in zip(some, guesses, rows, values, strict=False):
                increment = value - state.current
                if speculative and abs(increment - settings.tau) <= _NEAR * settings.tau:
                    value, increment = _again(drops, row, state, value)
                taken += 1
                if state.decide(tuple(edge), increment, value, settings.tau) == stays:
                    right = False
                    break
            state.cost["wasted"] += len(some) - taken
            if len(some) == width:
                width = min(most, 2 * width) if right else max(1, width // 2)
            todo = todo[taken:]
            yield taken


def _guess(
    graph: EdgeGraph,
    some: Int[np.ndarray, "edge two"],
    state: State,
    earlier: Increments | None,
    tau: float,
) -> list[bool]:
    """Which of the coming edges are likely to stay. A wrong guess costs time, nothing else."""
    if earlier is not None:
        return [bool(earlier[writer, reader] >= tau) for writer, reader in some]
    kinds = [name.rpartition(".")[2] for name in (*graph.readers, "")]

    def stays(writer: int, reader: int) -> bool:
        # The neighbour: the same input of the next head, which was decided before (NaN: it was not).
        return kinds[reader] == kinds[reader + 1] and bool(state.increments[writer, reader + 1] >= tau)

    return [stays(writer, reader) for writer, reader in some]


def _again(drops: Drops, row: Bool[np.ndarray, "writer reader"], state: State, value: float) -> tuple[float, float]:
    """Value and increment of a row and of what came before it, each run alone."""
    alone, current = drops.alone(row), drops.alone(state.kept)
    state.cost["measured_again"] += 1
    state.cost["rounding"] = max(state.cost["rounding"], abs(alone - value), abs(current - state.current))
    return alone, alone - current


def order_of(graph: EdgeGraph, order: Order = "late") -> Int[np.ndarray, "edge two"]:
    """(writer, reader) of all edges in the order in which ACDC tries them: readers from `out` back, and per reader late
    writers first (or early ones).

    Args:
        graph: the architecture.
        order: `late` or `early`.

    Example:
        >>> graph = EdgeGraph((1,))
        >>> [graph.writers[writer] for writer, _ in order_of(graph)][:3]
        ['L0MLP', 'L0H0', 'embed']
    """
    writers, readers = graph.places.T
    return graph.places[np.lexsort((writers if order == "early" else -writers, -readers))]


def _stages(graph: EdgeGraph, places: Int[np.ndarray, "edge two"]) -> list[Int[np.ndarray, "edge two"]]:
    """The edges in runs whose readers stand beside each other: `out`, a layer's MLP, a layer's attention. No reader of
    a stage belongs to a component that another reader of it reads."""
    depths = np.array([graph.depth(graph.node_of(name)) for name in graph.readers])
    stage = (depths @ [2, 1])[places[:, 1]]
    return np.split(places, np.flatnonzero(np.diff(stage)) + 1)
