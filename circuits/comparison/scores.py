"""Edge scores of a data set, in whatever form they come: the vector that a circuit is here (methods.md 4.1 **C**).

    c(e) = mean over images of the score of edge e        signed; positive: the edge keeps the model's output as it is

A `Result` of edge attribution or edge patching knows its architecture; a bare array needs `graph=`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.edges.graph import EdgeGraph
from circuits.search.select import graph_of
from mechvis.errors import BadData, NotFinite, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeScores:
    """Signed scores of every edge of a graph, per image where they are known."""

    graph: EdgeGraph
    """The architecture."""
    values: Float[np.ndarray, "edge image"]
    """In the order of `graph.edges`; one column where only the mean is known."""

    def __len__(self) -> int:
        return self.values.shape[1]

    @cached_property
    def weights(self) -> Float[np.ndarray, " edge"]:
        """c(e): the mean over images, in float64."""
        return self.values.mean(1, dtype=np.float64)

    def of(self, rows: np.ndarray) -> Float[np.ndarray, " edge"]:
        """c(e) of some of the images."""
        return self.values[:, rows].mean(1, dtype=np.float64)


def edge_scores(scores: Any, graph: EdgeGraph | None = None, metric: str | None = None) -> EdgeScores:
    """Read edge scores.

    Args:
        scores: a `Result` of `circuits.eap` or `circuits.patch_edges`; `[edge image]` or `[edge]` in the order of
            `graph.edges`; or `[writer reader]`.
        graph: the architecture; a result knows its own.
        metric: which metric of a result; default: the first.

    Raises:
        BadData: an array without a graph; a result whose units are no edges, or that lacks edges.
        ShapeMismatch: scores that do not fit the graph.
        NotFinite: NaN or Inf on an edge.

    Example:
        >>> edge_scores(np.ones(13), EdgeGraph((2,))).weights.sum()
        np.float64(13.0)
    """
    if isinstance(scores, EdgeScores):
        return scores
    if hasattr(scores, "rows"):
        graph = graph_of(scores) if graph is None else graph
        values = _of_result(scores, graph, metric)
    else:
        if graph is None:
            raise BadData("scores as an array need graph=, the model's EdgeGraph (circuits.EdgeGraph.of(model)).")
        values = _of_array(np.asarray(scores), graph)
    if not np.isfinite(values).all():
        edge = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise NotFinite(f"the score of {graph.edges[edge]} is NaN or Inf; a comparison needs a score of every edge.")
    return EdgeScores(graph=graph, values=values)


def _of_result(result: Any, graph: EdgeGraph, metric: str | None) -> np.ndarray:
    rows = result.rows(metric)
    known = {name: place for place, name in enumerate(rows["unit"].to_list())}
    missing = [name for name in graph.edges if name not in known]
    if missing or len(known) != graph.n_edges:
        raise BadData(
            f"the result scores {len(known)} units, {graph!r} has other edges: "
            f"{len(missing)} have no score, such as {missing[0] if missing else 'none'}. Score all edges of the model."
        )
    order = [known[name] for name in graph.edges]
    name = rows["metric"][0]
    if name in result.values:
        return np.asarray(result.values[name])[order]
    return rows["effect"].to_numpy()[order][:, None]


def _of_array(scores: np.ndarray, graph: EdgeGraph) -> np.ndarray:
    if scores.shape == graph.shape and len(scores) != graph.n_edges:
        return scores[graph.places[:, 0], graph.places[:, 1]][:, None]
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.ndim != 2 or len(scores) != graph.n_edges or not scores.shape[1]:
        raise ShapeMismatch(
            f"scores of {graph!r} are [edge image] = [{graph.n_edges}, n], [edge], or [writer reader] = "
            f"{list(graph.shape)}; got {list(scores.shape)}."
        )
    return scores
