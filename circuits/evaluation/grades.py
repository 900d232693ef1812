"""What is true about a planted circuit, as one grade per unit and family of pairs (benchmark_apps.md A.3, **X**).

==============  =======================================================================================================
grade           meaning
==============  =======================================================================================================
`active`        carries a planted variable that this family of pairs changes, and the output reads it
`structural`    in the circuit, but constant under this family: only zero ablation, or another family, shows it
`conditional`   matters only when another unit is gone (a backup head)
`free`          trained without constraint, below the first planted node: neither right nor wrong
`out`           everything else
==============  =======================================================================================================

"The circuit" depends on the pairs: scored against the full list of planted edges, *exact* patching has an AUROC of 0.43
on pairs that change two of seven (A.6 **M**). So `active` is scored against `out`, `free` is left out and counted.

Truth about trained models is at the level of heads: there the scores of q, k and v are promoted to node pairs
(:func:`pair_scores`) or nodes (:func:`node_scores`).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from circuits.circuit import Circuit, scores_of
from circuits.edges.graph import EdgeGraph
from mechvis.errors import BadData, ShapeMismatch, unknown

GRADES = ("active", "structural", "conditional", "free", "out")
Grades = Mapping[str, str]
"""Unit -> grade."""


def edge_grades(
    graph: EdgeGraph,
    active: Iterable[str],
    *,
    structural: Iterable[str] = (),
    conditional: Iterable[str] = (),
    free: Iterable[str] = (),
) -> dict[str, str]:
    """A grade for every edge; what is not named is `out`.

    Args:
        graph: the architecture.
        active: edges.
        structural: edges.
        conditional: edges.
        free: edges.

    Raises:
        UnknownName, BadData: a name that is no edge, or one with two grades.

    Example:
        >>> edge_grades(EdgeGraph((1,)), ["L0H0->out"])["L0H0->out"]
        'active'
    """
    lists = {"active": active, "structural": structural, "conditional": conditional, "free": free}
    return _grades(graph.edges, lists, graph.edge)


def node_grades(
    graph: EdgeGraph,
    active: Iterable[str],
    *,
    structural: Iterable[str] = (),
    conditional: Iterable[str] = (),
    free: Iterable[str] = (),
) -> dict[str, str]:
    """A grade for every component that writes; what is not named is `out`. Arguments as for :func:`edge_grades`."""
    lists = {"active": active, "structural": structural, "conditional": conditional, "free": free}
    return _grades(graph.writers, lists, graph.writer)


def _grades(names: Iterable[str], lists: Mapping[str, Iterable[str]], place: Any) -> dict[str, str]:
    found = dict.fromkeys(names, "out")
    for grade, listed in lists.items():
        for name in listed:
            place(name)
            if found[name] != "out":
                raise BadData(f"{name!r} is called {found[name]} and {grade}; a unit has one grade.")
            found[name] = grade
    return found


def check_grades(grades: Grades) -> None:
    """Refuse words that are no grade.

    Raises:
        UnknownName: names the unit.
    """
    for name, grade in grades.items():
        if grade not in GRADES:
            raise unknown(f"grade of {name!r}:", grade, GRADES)


def edge_scores(scores: Any, graph: EdgeGraph | None = None, metric: str | None = None) -> dict[str, float]:
    """Scores of edges by name.

    Args:
        scores: a `Result` of edges, a `Circuit` with scores, `[writer reader]`, or a mapping already.
        graph: for arrays.
        metric: of a result; default: the first.

    Raises:
        BadData: an array without graph, a circuit without scores.
    """
    if isinstance(scores, Mapping):
        return {name: float(value) for name, value in scores.items()}
    if isinstance(scores, Circuit):
        if scores.scores is None:
            raise BadData(f"{scores.title!r} has no scores.")
        graph, scores = scores.graph, scores.scores
    elif hasattr(scores, "rows"):
        if graph is None:
            from circuits.search.select import graph_of

            graph = graph_of(scores)
        scores = scores_of(scores, graph, metric)
    if graph is None:
        raise BadData("scores as an array need graph=, the model's EdgeGraph (circuits.EdgeGraph.of(model)).")
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != graph.shape:
        raise ShapeMismatch(f"the scores are {list(scores.shape)}; {graph!r} needs {list(graph.shape)}.")
    places = graph.places
    return dict(zip(graph.edges, scores[places[:, 0], places[:, 1]].tolist(), strict=True))


def pair_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Edges into q, k and v of one head promoted to the pair of nodes: the score of the largest size, with its sign.

    Example:
        >>> pair_scores({"L0H1->L1H2.q": 1.0, "L0H1->L1H2.v": -3.0, "L0H1->out": 2.0})
        {'L0H1->L1H2': -3.0, 'L0H1->out': 2.0}
    """
    return _largest(scores, lambda name: name.rpartition(".")[0] or name if name[-2:] in (".q", ".k", ".v") else name)


def node_scores(scores: Mapping[str, float], how: Literal["largest", "sum"] = "largest") -> dict[str, float]:
    """Edges promoted to the component that writes: the score of the largest size among those that leave it, with its
    sign, or the sum of sizes.

    Args:
        scores: by edge.
        how: `largest` or `sum`.

    Example:
        >>> node_scores({"L0H1->L1H2.q": 1.0, "L0H1->out": -2.0}), node_scores({"a->b": 1.0, "a->c": -2.0}, "sum")
        ({'L0H1': -2.0}, {'a': 3.0})
    """
    if how == "largest":
        return _largest(scores, lambda name: name.split("->")[0])
    if how != "sum":
        raise unknown("way to promote", how, ("largest", "sum"))
    found: dict[str, float] = {}
    for name, value in scores.items():
        writer = name.split("->")[0]
        found[writer] = found.get(writer, 0.0) + abs(value)
    return found


def _largest(scores: Mapping[str, float], owner: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in scores.items():
        at = owner(name)
        if at not in found or np.isnan(found[at]) or abs(value) > abs(found[at]):
            found[at] = float(value)
    return found
