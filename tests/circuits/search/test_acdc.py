"""ACDC: what it finds where the circuit is known, and that its engines find the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from circuits.edges.graph import EdgeGraph
from circuits.search import acdc as module
from circuits.search.acdc import TAUS, acdc, acdc_circuits, acdc_sweep
from circuits.search.acdc_search import ENGINES, Settings, State, order_of, search
from circuits.search.drops import Drops
from circuits.search.select import select
from circuits.task import task as make_task
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, UnknownName
from mechvis.testing import planted


def cost(circuit):
    return circuit.provenance["acdc"]


def find(task, tau, engine="speculative", **options):
    return acdc(task, tau, engine=engine, progress=False, **options)


# known circuits


@pytest.mark.parametrize("engine", ENGINES)
def test_saturation_net(saturation, engine):
    """F3: on the logit difference all five edges count; KL is saturated by the three big ones (methods.md 5.7)."""
    whole = find(saturation, 0.1, engine, metric=None)
    assert set(whole.edges) == planted.SATURATION_EDGES
    core = find(saturation, 0.1, engine)
    assert set(core.edges) == planted.SATURATION_CORE
    measured = saturation.measure(np.stack([whole.kept, core.kept]))
    np.testing.assert_allclose(saturation.faithfulness(measured), [1.0, 0.930], atol=5e-4)
    assert whole.score("embed->L0H0.v") == pytest.approx(16.0, abs=1e-3)
    assert core.score("L0MLP->out") == pytest.approx(7.40, abs=5e-3), "KL of the specification"


@pytest.mark.parametrize("metric", ["kl", None])
@pytest.mark.parametrize("order", ["late", "early"])
def test_cue_lookup_is_found_exactly(cue, cue_active, metric, order):
    found = find(cue, 1e-2, metric=metric, order=order)
    assert set(found.edges) == cue_active
    assert cue.faithfulness(cue.measure(np.stack([found.kept])))[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("family, n_active", [("cue", 3), ("payload", 2)])
def test_each_family_of_pairs_has_its_circuit(family, n_active, as_pairs):
    given = planted.cue_pairs(family, 8)
    assert len(given.active) == n_active
    task = make_task(planted.cue_lookup(), as_pairs(given))
    assert set(find(task, 1e-2).edges) == given.active


def test_sweep_orders_the_edges_of_cue_lookup(cue, cue_active):
    sweep = acdc_sweep(cue, progress=False)
    truth = [edge in cue_active for edge in cue.graph.edges]
    scores = [sweep.score(edge) for edge in cue.graph.edges]
    assert roc_auc_score(truth, scores) == 1.0 and average_precision_score(truth, scores) == 1.0
    assert set(select(sweep.scores, 6, graph=sweep.graph).edges) == cue_active
    assert [run["tau"] for run in sweep.provenance["acdc"]["taus"]] == list(TAUS)
    assert len(TAUS) == 20 and TAUS[0] == 1e-5 and TAUS[-1] == 0.09


def test_shortcut_vit(shortcut):
    """F2: the copying head, the object head and the shortcut are kept; heads that write nothing are not."""
    found = find(shortcut, 0.02, metric=None)
    assert {"L0H0", "L1H0", "L1H1"} <= set(found.nodes)
    assert not {"L0H1", "L0H2", "L1H3", "L0MLP", "L1MLP"} & set(found.nodes)
    assert {"embed->L0H0.v", "L0H0->L1H0.v", "L0H0->L1H1.v", "L1H0->out", "L1H1->out"} <= set(found.edges)


# the same by other ways


def acdc_by_hand(task, tau, order):
    """ACDC over the oracle's forward, where every reader's input is added up term by term."""
    model, names = task.model, list(planted.edges_of(task.model))
    assert sorted(names) == sorted(task.graph.edges)
    names = list(task.graph.edges)  # the same edges; ACDC depends on the order of heads and inputs of a layer
    by_reader = {}
    for name in names:
        by_reader.setdefault(name.split("->")[1], []).append(name)
    kept, clean = set(names), model(task.clean).detach().log_softmax(-1)

    def kl(edges):
        log_q = planted.edge_forward(model, task.clean, task.corrupt, edges).log_softmax(-1)
        return float((clean.exp() * (clean - log_q)).sum(-1).mean())

    current = 0.0
    for reader in reversed(by_reader):
        for edge in by_reader[reader] if order == "early" else reversed(by_reader[reader]):
            new = kl(kept - {edge})
            if new - current < tau:
                kept, current = kept - {edge}, new
    return kept


@pytest.mark.parametrize("order, tau", [("late", 1e-3), ("early", 3e-4)])
def test_agrees_with_acdc_written_over_the_oracle(order, tau, random_task):
    task = random_task("vit", n=2, layers=2)
    expected = acdc_by_hand(task, tau, order)
    assert 5 < len(expected) < task.graph.n_edges
    assert set(find(task, tau, order=order, prune=False).edges) == expected


def test_agrees_with_acdc_written_over_the_oracle_on_planted_models(saturation, cue):
    for task in (saturation, cue[:2]):
        assert set(find(task, 1e-3, prune=False).edges) == acdc_by_hand(task, 1e-3, "late")


CASES = (
    ("vit", "patch", torch.float64),
    ("vit", "zero", torch.float64),
    ("vit", "mean_positional", torch.float32),
    ("dinov2-classifier", "resample", torch.float64),
    ("beit", "mean", torch.float64),
    ("siglip-classifier", "patch", torch.float64),
)


@pytest.mark.parametrize("family, ablation, dtype", CASES)
def test_engines_agree_on_random_models(family, ablation, dtype, random_task):
    task = random_task(family, ablation=ablation, dtype=dtype, n=2, layers=2)
    for tau, order in ((1e-3, "late"), (1e-2, "early")):
        slow = find(task, tau, "sequential", order=order, prune=False)
        assert 0 < len(slow) < task.graph.n_edges, "a threshold that decides something"
        suffix = find(task, tau, "suffix", order=order, prune=False)
        np.testing.assert_array_equal(suffix.kept, slow.kept)
        np.testing.assert_allclose(suffix.scores, slow.scores, atol=1e-14 if dtype == torch.float64 else 1e-6)
        for ahead in (None, 3) if order == "late" else (None,):
            fast = find(task, tau, order=order, prune=False, ahead=ahead)
            np.testing.assert_array_equal(fast.kept, slow.kept)
            tolerance = 1e-10 if dtype == torch.float64 else 1e-4
            np.testing.assert_allclose(fast.scores, slow.scores, atol=tolerance)


@pytest.mark.parametrize("metric", ["logit_diff", "prob", "js", None])
def test_engines_agree_for_other_metrics(cue, shortcut, metric):
    for task in (cue[:2], shortcut[:4]):
        circuits = [find(task, 0.01, engine, metric=metric, prune=False) for engine in ENGINES]
        assert cost(circuits[0])["metric"] == (metric or "logit_diff")
        for other in circuits[1:]:
            np.testing.assert_array_equal(other.kept, circuits[0].kept)


def test_thresholds_together_are_the_thresholds_alone(random_task):
    task = random_task("vit", n=2, layers=2)
    taus = (1e-4, 1e-3, 1e-2)
    together = acdc_circuits(task, reversed(taus), progress=False)
    assert list(together) == sorted(taus)
    for tau, circuit in together.items():
        np.testing.assert_array_equal(circuit.kept, find(task, tau, "sequential").kept)
    assert sum(cost(circuit)["remembered"] for circuit in together.values()) > 0
    sweep = acdc_sweep(task, taus, progress=False, engine="suffix")
    alone = {tau: find(task, tau, "sequential", prune=False).kept for tau in taus}
    for edge in task.graph.edges:
        place = task.graph.edge(edge)
        assert sweep.score(edge) == max([tau for tau in taus if alone[tau][place]], default=0.0)
    np.testing.assert_array_equal(sweep.kept, np.any(list(alone.values()), axis=0))


def test_increments_near_the_threshold_are_measured_alone(random_task):
    task = random_task("vit", n=2, layers=2, dtype=torch.float32)
    scores = find(task, 1e-3, "sequential").scores
    increment = scores[task.graph.allowed & (scores >= 1e-3)].min()  # the search is the same up to this threshold
    for tau in (increment * (1 - 1e-9), increment * (1 + 1e-9)):
        slow, fast = find(task, tau, "sequential", prune=False), find(task, tau, prune=False)
        np.testing.assert_array_equal(slow.kept, fast.kept)
        assert cost(fast)["measured_again"] >= 1 and cost(fast)["rounding"] < 1e-5
    assert cost(find(task, 1e-3, "suffix"))["measured_again"] == 0


# what it costs


def blocks_run(task, engine, tau):
    """Rows that go through the MLP of each layer of the user's module while ACDC runs."""
    rows = [0] * task.graph.n_layers
    circuit = None

    def count(layer):
        def hook(module, inputs, output):
            rows[layer] += len(inputs[0])

        return hook

    layers = task.model.bare.layers
    handles = [layers[layer].fc1.register_forward_hook(count(layer)) for layer in range(len(rows))]
    try:
        circuit = find(task, tau, engine)
    finally:
        for handle in handles:
            handle.remove()
    return rows, circuit


def test_suffix_really_restarts_at_the_readers_layer(cue):
    assert cue.wires is not None  # made before anything is counted
    recorded = 2 * len(cue)  # the clean and the corrupt run of each image
    seen = {engine: blocks_run(cue, engine, 1e-2) for engine in ENGINES}
    n_edges, n = cue.graph.n_edges, len(cue)
    rows, whole = seen["sequential"]
    assert rows == [n_edges * n + recorded] * 2, "the plain twin runs through every block"
    assert cost(whole)["rows"] == n_edges * n and cost(whole)["blocks"] == 2 * n_edges * n
    rows, suffix = seen["suffix"]
    into_0 = sum(1 for edge in cue.graph.edges if edge.split("->")[1].startswith("L0"))
    into_1 = sum(1 for edge in cue.graph.edges if edge.split("->")[1].startswith("L1"))
    assert rows == [into_0 * n + recorded, (into_0 + into_1) * n + recorded]
    assert cost(suffix)["blocks"] == sum(rows) - 2 * recorded < 0.6 * cost(whole)["blocks"]
    rows, fast = seen["speculative"]
    assert cost(fast)["blocks"] == sum(rows) - 2 * recorded < 0.25 * cost(whole)["blocks"]


def test_speculation_needs_few_forwards(cue):
    whole, fast = cost(find(cue, 1e-2, "sequential")), cost(find(cue, 1e-2))
    assert whole["forwards"] == whole["circuits"] == cue.graph.n_edges == 110
    assert fast["forwards"] < whole["forwards"] / 6
    assert fast["circuits"] + fast["unread"] == cue.graph.n_edges + fast["wasted"]


def test_right_guesses_waste_nothing(cue, shortcut):
    """With the increments of the same search to guess by, every row of every forward is used."""
    for task in (cue, shortcut):
        known = find(task, 1e-2, "sequential", prune=False)
        drops, state = Drops(task, remember=False), State.at_start(task.graph)
        settings = Settings(tau=1e-2, engine="speculative", order="late", ahead=8)
        decided = sum(search(task.graph, drops, settings, order_of(task.graph), state, known.scores))
        np.testing.assert_array_equal(state.kept, known.kept)
        assert decided == task.graph.n_edges and state.cost["wasted"] == 0
        assert drops.counts.circuits == task.graph.n_edges - state.cost["unread"]
        wrong = State.at_start(task.graph)
        list(search(task.graph, drops, settings, order_of(task.graph), wrong, 1.0 - known.scores))
        np.testing.assert_array_equal(wrong.kept, known.kept)  # a wrong guess costs time, nothing else
        assert wrong.cost["wasted"] > 0


def test_edges_into_unread_components_count_nothing(cue):
    """What the speculative engine does not run, the sequential one finds to be zero."""
    fast, slow = find(cue, 1e-2, prune=False), find(cue, 1e-2, "sequential", prune=False)
    read = dict(zip(cue.graph.writers, slow.kept.any(1), strict=True)) | {"out": True}
    unread = [edge for edge in cue.graph.edges if not read[cue.graph.node_of(edge.split("->")[1])]]
    assert len(unread) == cost(fast)["unread"] > 50
    assert max(abs(slow.score(edge)) for edge in unread) < 1e-12
    assert {fast.score(edge) for edge in unread} == {0.0}


@pytest.mark.parametrize("kept", [True, False])
def test_a_small_memory_changes_nothing(cue, kept):
    one_row = cue.budget // max(1, cue.budget // (37 * (40 * (11 + 3 * 4 + 12) + 3 * 16) * 8))
    small = replace(cue, budget=3 * one_row)
    assert small.rows_at_once() == 3
    drops = Drops(small, share=1e9 if kept else 0.0)
    assert drops.most == 1 and len(drops._held) == 3
    expected = Drops(cue)(cue.graph.allowed[None] & (np.arange(11) != 6)[:, None])
    found = drops(cue.graph.allowed[None] & (np.arange(11) != 6)[:, None])
    assert drops._held.kept is kept
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(find(small, 1e-2).kept, find(cue, 1e-2).kept)


# the rest


def test_order():
    graph = EdgeGraph((1, 1))
    names = [f"{graph.writers[w]}->{graph.readers[r]}" for w, r in order_of(graph)]
    assert names[:3] == ["L1MLP->out", "L1H0->out", "L0MLP->out"] and names[-1] == "embed->L0H0.q"
    assert sorted(names) == sorted(graph.edges)
    early = [f"{graph.writers[w]}->{graph.readers[r]}" for w, r in order_of(graph, "early")]
    assert early[:2] == ["embed->out", "L0H0->out"]
    # A reader comes only after all edges that its component writes to: so unread components are known.
    for order in (names, early):
        for place, edge in enumerate(order):
            node = graph.node_of(edge.split("->")[1])
            assert not any(later.startswith(f"{node}->") for later in order[place:])


def test_circuit_says_what_it_is(cue):
    found = find(cue, 1e-2)
    assert repr(found).startswith("Circuit[ACDC, tau 0.01](6 of 110 edges")
    facts = cost(found)
    assert facts["drop"] == pytest.approx(Drops(cue)(find(cue, 1e-2, prune=False).kept[None])[0], abs=1e-12)
    assert facts["tau"] == 0.01 and facts["engine"] == "speculative" and facts["pruned"] is True
    assert found.provenance["task"]["fingerprint"] == cue.fingerprint
    assert found.model["name"] == cue.model.name
    assert (found.scores[cue.graph.allowed & found.kept] >= 0.01).all()


def test_model_is_untouched(cue):
    with testing.assert_untouched(cue.model):
        find(cue, 1e-2)
    with testing.assert_untouched(cue.model), pytest.raises(NotFinite):
        find(cue, 1e-2, metric=lambda logits, *others: logits[..., 0] * float("nan"))


def test_bad_settings(saturation):
    for tau in (0, -1, float("nan"), float("inf"), "0.1", [0.1]):
        with pytest.raises(OutOfRange, match="a threshold is a positive number"):
            find(saturation, tau)
    with pytest.raises(UnknownName, match=r"unknown ACDC engine 'fast'.*speculative"):
        find(saturation, 0.1, "fast")
    with pytest.raises(UnknownName, match=r"unknown order of edges 'lat'. Nearest: late"):
        find(saturation, 0.1, order="lat")
    with pytest.raises(UnknownName, match=r"unknown metric 'kll'. Nearest: kl"):
        find(saturation, 0.1, metric="kll")
    with pytest.raises(OutOfRange, match="ahead=0: at least one edge"):
        find(saturation, 0.1, ahead=0)
    with pytest.raises(BadData, match="no thresholds given"):
        acdc_sweep(saturation, ())
    with pytest.raises(BadData, match="a threshold is listed twice"):
        acdc_circuits(saturation, (0.1, 0.1))


def test_a_circuit_that_gives_nan_is_named(cue):
    def broken(logits, target, contrast, clean):
        values = logits[..., 0]
        return torch.where(torch.arange(values.shape[-1]) == 3, values - values / 0 * 0, values)

    with pytest.raises(NotFinite, match="cutting edges gives NaN or Inf in 'broken' on image 'pair 3'"):
        find(cue, 0.1, metric=broken)


def test_engines_are_listed_as_documented():
    assert set(ENGINES) == {"sequential", "suffix", "speculative"}
    assert all(name in module.__doc__ for name in ENGINES)
