"""Circuits from scores: the best n edges, all above a threshold, or grown from the read-out backwards.

`top`        the n edges with the largest score
`threshold`  all edges whose score reaches a value
`greedy`     like `top`, but an edge is taken only when its reader's component is in the circuit already, starting at
the
             read-out, so nothing dangles at that end (**C**)

Scores are compared by size, or signed: by size for CMD (what matches the model), signed for CPR (what performs best)
(methods.md 5.7 **X**). Ties are broken by the order of the forward pass. Dangling edges are pruned at the end, so a
circuit can have fewer edges than asked for; evaluation counts what remains.
"""

import heapq
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from circuits.circuit import Circuit, scores_of
from circuits.edges.graph import EdgeGraph
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown

How = Literal["top", "greedy"]


def select(
    scores: Any,
    n: int | None = None,
    *,
    threshold: float | None = None,
    graph: EdgeGraph | None = None,
    how: How = "top",
    signed: bool = False,
    prune: bool = True,
    metric: str | None = None,
) -> Circuit:
    """A circuit from the scores of edges.

    Args:
        scores: a `Result` of edge attribution or edge patching, or `[writer reader]` (NaN: no score, never taken).
        n: number of edges before pruning.
        threshold: instead of n: all edges that score at least this.
        graph: the architecture, for scores as an array; a result knows its own.
        how: `top` or `greedy`.
        signed: compare scores with their sign instead of by size.
        prune: drop edges on no path from the embedding to the read-out.
        metric: which metric of a result; default: the first.

    Raises:
        OutOfRange: n below 0 or above the number of scored edges.
        BadData: neither n nor threshold, or both; no edge reaches the threshold.
        NotFinite: no score at all, or Inf.

    Example:
        >>> circuit = circuits.select(scores, 50)                                                  # doctest: +SKIP
    """
    if how not in ("top", "greedy"):
        raise unknown("way to select", how, ("top", "greedy"))
    if (n is None) == (threshold is None):
        raise BadData("say how many edges (n) or from which score on (threshold=): one of the two.")
    title, facts, model = "selected edges", {}, {}
    if hasattr(scores, "rows"):
        graph = graph_of(scores) if graph is None else graph
        title, facts, model = scores.title, dict(scores.provenance), scores.provenance.get("model") or {}
        scores = scores_of(scores, graph, metric)
    if graph is None:
        raise BadData("scores as an array need graph=, the model's EdgeGraph (circuits.EdgeGraph.of(model)).")
    scores = np.asarray(scores, dtype=np.float64)
    order = ranking(scores, graph, signed=signed)
    if threshold is not None:
        key = scores if signed else np.abs(scores)
        n = int((key[graph.allowed] >= threshold).sum())
        if n == 0:
            raise BadData(f"no edge scores {threshold:g} or more; the largest is {np.nanmax(key[graph.allowed]):.4g}.")
    if not 0 <= n <= len(order):
        raise OutOfRange(f"n={n}: there are {len(order)} edges with a score.")
    kept = np.zeros(graph.shape, dtype=bool)
    chosen = order[:n] if how == "top" else _grown(scores, graph, n, signed)
    kept[chosen[:, 0], chosen[:, 1]] = True
    circuit = Circuit(
        graph=graph,
        kept=kept,
        scores=scores,
        title=f"{how} {n} by {title}",
        model=model,
        provenance={**facts, "selection": {"n": n, "threshold": threshold, "how": how, "signed": signed}},
    )
    return circuit.pruned() if prune else circuit


def ranking(
    scores: Float[np.ndarray, "writer reader"], graph: EdgeGraph, *, signed: bool = False
) -> Int[np.ndarray, "edge two"]:
    """(writer, reader) of the scored edges, best first.

    Raises:
        ShapeMismatch: scores that do not fit the graph.
        NotFinite: Inf, or no score at all.
    """
    if scores.shape != graph.shape:
        raise ShapeMismatch(f"the scores are {list(scores.shape)}; {graph!r} needs {list(graph.shape)}.")
    places = graph.places
    values = scores[places[:, 0], places[:, 1]]
    if np.isinf(values).any():
        raise NotFinite("the scores hold Inf.")
    known = ~np.isnan(values)
    if not known.any():
        raise NotFinite("every score is NaN: there is nothing to choose by.")
    places, values = places[known], values[known]
    return places[np.argsort(-(values if signed else np.abs(values)), kind="stable")]


def graph_of(result: Any) -> EdgeGraph:
    """The architecture that a result of edges is about, from the names in it.

    Raises:
        BadData: its units are no edges, or not all heads of the model appear in it.
    """
    rows = result.rows()
    if not {"writer", "reader"} <= set(rows.columns):
        raise BadData(f"a result of kind {result.kind!r} has no edges; use circuits.eap or circuits.patch_edges.")
    heads = (result.provenance.get("task") or {}).get("n_heads")
    if heads:
        return EdgeGraph(tuple(heads))
    raise BadData("this result does not say of which architecture its edges are; pass graph=.")


def _grown(scores: np.ndarray, graph: EdgeGraph, n: int, signed: bool) -> np.ndarray:
    """The best n edges, each of whose readers belongs to a component that already writes to the circuit."""
    key = np.where(np.isnan(scores), -np.inf, scores if signed else np.abs(scores))
    readers_of: dict[str, list[int]] = {}
    for reader, name in enumerate(graph.readers):
        readers_of.setdefault(graph.node_of(name), []).append(reader)
    waiting: list[tuple[float, int, int]] = []
    inside: set[str] = set()
    taken = []

    def enter(node: str) -> None:
        if node in inside:
            return
        inside.add(node)
        for reader in readers_of.get(node, []):
            for writer in range(int(graph.n_before[reader])):
                if key[writer, reader] > -np.inf:
                    heapq.heappush(waiting, (-key[writer, reader], reader, writer))

    enter("out")
    while waiting and len(taken) < n:
        _, reader, writer = heapq.heappop(waiting)
        taken.append((writer, reader))
        enter(graph.writers[writer])
    return np.array(taken, dtype=np.int64).reshape(-1, 2)
