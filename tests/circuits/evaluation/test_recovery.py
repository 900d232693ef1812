"""Scores against a planted truth: what counts, what is left out, what is never pooled."""

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edge_patching import patch_edges
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import (
    edge_grades,
    edge_scores,
    false_alarms,
    node_grades,
    node_scores,
    over_models,
    pair_scores,
    recovery,
    recovery_table,
)
from circuits.task import task
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing.planted import cue_pairs

TRUTH = {"a": "active", "b": "out", "c": "out", "d": "structural", "e": "free", "f": "conditional"}
SCORES = {"a": 2.0, "b": 3.0, "c": -1.0, "d": 9.0, "e": 8.0, "f": 7.0}


def test_by_hand():
    found = recovery(SCORES, TRUTH)
    assert (found.auroc, found.ap) == (0.5, 0.5), "a is above c and below b; d, e and f are left out"
    assert (found.n, found.n_positive, found.chance_ap) == (3, 1, pytest.approx(1 / 3))
    assert found.counts == {"active": 1, "structural": 1, "conditional": 1, "free": 1, "out": 2}
    assert found.p_auroc == pytest.approx(2 / 3) and found.p_auroc_exact and found.p_ap_exact and found.few
    assert repr(found).endswith("left out: 1 structural, 1 conditional, 1 free)")


def test_structural_units_count_where_asked():
    found = recovery(SCORES, TRUTH, structural=True)
    assert (found.auroc, found.n_positive, found.positives) == (0.75, 2, "active+structural")


def test_size_or_sign():
    scores = SCORES | {"a": -5.0}
    assert recovery(scores, TRUTH).auroc == 1.0
    assert recovery(scores, TRUTH, signed=True).auroc == 0.0


def test_ties_count_half():
    found = recovery({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": "active", "b": "out", "c": "out"})
    assert (found.auroc, found.ap, found.ties) == (0.75, 0.5, 2)
    assert recovery({"a": 1.0, "b": 1.0}, {"a": "active", "b": "out"}).auroc == 0.5


def test_exact_patching_scores_one_on_every_family(cue_model, pairs_of):
    """benchmark_apps.md A.6: 1.000 against the active edges of each family, far less against all planted ones."""
    graph, rows, all_planted = EdgeGraph.of(cue_model), [], {}
    for family in ("cue", "payload", "all"):
        pairs = cue_pairs(family, 8)
        scores = patch_edges(task(cue_model, pairs_of(pairs)), progress=False)
        truth = edge_grades(graph, pairs.active, structural=pairs.structural)
        rows.append(recovery(scores, truth, family=family))
        all_planted[family] = recovery(scores, truth, structural=True).auroc
        nodes = node_grades(graph, pairs.active_nodes)
        assert recovery(node_scores(edge_scores(scores)), nodes).auroc == 1.0
    assert [(row.auroc, row.ap, row.n_positive) for row in rows] == [(1, 1, 3), (1, 1, 2), (1, 1, 6)]
    assert rows[1].p_auroc < 0.001 and rows[1].counts["structural"] == 5
    assert all_planted["cue"] < 0.8 and all_planted["payload"] < 0.8
    table = recovery_table({"cue-lookup": rows, "again": rows[:2]})
    assert table.height == 5 and table["n_structural"].to_list() == [4, 5, 1, 4, 5]
    means = over_models(table)
    assert means.select("family", "models", "auroc").rows() == [("cue", 2, 1.0), ("payload", 2, 1.0), ("all", 1, 1.0)]


def test_random_scores_are_at_chance():
    graph = EdgeGraph((4, 4))
    truth = edge_grades(graph, graph.edges[::20])
    generator, found = np.random.default_rng(0), []
    for _ in range(25):
        scores = np.where(graph.allowed, generator.normal(size=graph.shape), np.nan)
        found.append(recovery(scores, truth, graph=graph))
    assert np.mean([one.auroc for one in found]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([one.p_auroc <= 0.2 for one in found]) == pytest.approx(0.2, abs=0.16)


def test_families_and_models_are_not_pooled():
    one = recovery(SCORES, TRUTH, family="cue")
    with pytest.raises(BadData, match="'m' has two rows for the family 'cue'"):
        recovery_table({"m": [one, one]})
    with pytest.raises(BadData, match="no recovery to tabulate"):
        recovery_table({})
    table = recovery_table({"m": [one], "k": [recovery(SCORES | {"a": 4.0}, TRUTH, family="cue")]})
    assert over_models(table).row(0, named=True) == {
        "family": "cue",
        "positives": "active",
        "models": 2,
        "auroc": 0.75,
        "ap": 0.75,
        "lowest auroc": 0.5,
        "lowest ap": 0.5,
    }


def test_nothing_to_find_is_a_matter_of_false_alarms():
    with pytest.raises(BadData, match=r"no unit is active under 'nuisance'.*false alarms"):
        recovery({"a": 1.0, "b": 0.0}, {"a": "out", "b": "structural"}, family="nuisance")
    assert false_alarms({"a": -0.3, "b": 0.01, "c": 0.5}, 0.1) == ["c", "a"]
    with pytest.raises(OutOfRange, match="floor=-1"):
        false_alarms({"a": 1.0}, -1)
    with pytest.raises(NotFinite, match="the first is that of 'b'"):
        false_alarms({"a": 1.0, "b": float("nan")}, 1)


def test_from_edges_to_pairs_and_nodes():
    edges = {"L0H1->L1H2.q": 1.0, "L0H1->L1H2.v": -3.0, "L0H1->out": 2.0, "L1H2->out": float("nan"), "L1H2->L1MLP": 0.5}
    assert pair_scores(edges)["L0H1->L1H2"] == -3.0
    assert node_scores(edges) == {"L0H1": -3.0, "L1H2": 0.5}
    assert node_scores({"a->b": 1.0, "a->c": -2.0}, "sum") == {"a": 3.0}
    graph = EdgeGraph((2, 2))
    promoted = pair_scores(dict.fromkeys(graph.edges, 1.0))
    assert len(promoted) == 2 + 3 + 2 * 4 + 6 + 7 and "L0H1->L1H0" in promoted
    assert not any(name.endswith((".q", ".k", ".v")) for name in promoted)


def test_scores_of_every_kind_are_the_same(f3, core):
    result = patch_edges(f3, progress=False)
    matrix = np.full(f3.graph.shape, np.nan)
    for edge, value in edge_scores(result).items():
        matrix[f3.graph.edge(edge)] = value
    circuit = Circuit(graph=f3.graph, kept=core.kept, scores=matrix)
    assert edge_scores(circuit) == edge_scores(matrix, f3.graph) == edge_scores(result)
    truth = edge_grades(f3.graph, core.edges)
    assert recovery(circuit, truth).auroc == recovery(result, truth).auroc == 1.0


def test_bad_input(f3, core):
    with pytest.raises(ShapeMismatch, match="1 units have a score but no grade: x"):
        recovery(SCORES | {"x": 1.0}, TRUTH)
    with pytest.raises(ShapeMismatch, match="1 units have a grade but no score: a"):
        recovery({name: value for name, value in SCORES.items() if name != "a"}, TRUTH)
    with pytest.raises(UnknownName, match="grade of 'a': 'activ'"):
        recovery(SCORES, TRUTH | {"a": "activ"})
    with pytest.raises(NotFinite, match="1 graded units have no finite score, the first is 'b'"):
        recovery(SCORES | {"b": float("nan")}, TRUTH)
    assert recovery(SCORES | {"e": float("nan")}, TRUTH).auroc == 0.5, "a free unit needs no score"
    with pytest.raises(BadData, match=r"scores as an array need graph="):
        edge_scores(np.zeros(f3.graph.shape))
    with pytest.raises(BadData, match="'the big edges' has no scores"):
        edge_scores(core)
    with pytest.raises(ShapeMismatch, match="needs"):
        edge_scores(np.zeros((2, 2)), f3.graph)
    with pytest.raises(BadData, match="is called active and free; a unit has one grade"):
        edge_grades(f3.graph, ["L0MLP->out"], free=["L0MLP->out"])
    with pytest.raises(UnknownName, match="no component that writes"):
        node_grades(f3.graph, ["L3H1"])
    with pytest.raises(UnknownName, match="unknown way to promote 'mean'"):
        node_scores({"a->b": 1.0}, "mean")
