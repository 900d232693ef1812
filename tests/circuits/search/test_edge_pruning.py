"""Edge pruning: what it leaves where the circuit is known, and that it trains what it says."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from circuits.circuit import Circuit
from circuits.search import hard_concrete
from circuits.search.drops import Drops
from circuits.search.edge_pruning import Training, edge_pruning, images_that_fit, train
from circuits.search.select import select
from mechvis import metrics, testing
from mechvis.errors import MechvisWarning, NotFinite, OutOfRange, UnknownName
from mechvis.testing import planted


def facts(circuit):
    return circuit.provenance["edge_pruning"]


def find(task, target, **options):
    return edge_pruning(task, target, progress=False, **options)


def settings(**changed):
    usual = {
        "target_sparsity": 0.5,
        "level": "edges",
        "steps": 3,
        "lr": 0.1,
        "multiplier_lr": 0.2,
        "warmup": 0.5,
        "batch_size": 4,
        "draws": 1,
        "start": 2.0,
        "temperature": hard_concrete.TEMPERATURE,
        "stretch": hard_concrete.STRETCH,
        "seed": 0,
    }
    return Training(**{**usual, **changed})


# known circuits


@pytest.fixture(scope="module")
def pruned(saturation):
    """F3, to as many edges as count."""
    return find(saturation, 8 / 13, metric=None, steps=150)


def test_saturation_net(saturation, pruned):
    """F3: five of thirteen edges are left when five are asked for; the big one has no gradient on the clean run."""
    assert set(pruned.edges) == planted.SATURATION_EDGES
    assert facts(pruned)["sparsity"] == pytest.approx(8 / 13)
    assert saturation.faithfulness(saturation.measure(np.stack([pruned.kept])))[0] == pytest.approx(1.0, abs=1e-9)
    scores = [pruned.score(edge) for edge in saturation.graph.edges]
    truth = [edge in planted.SATURATION_EDGES for edge in saturation.graph.edges]
    assert roc_auc_score(truth, scores) == 1.0 and all(0 < score < 1 for score in scores)


def test_nodes_of_the_shortcut_vit(shortcut):
    """F2: three heads of ten heads and MLPs do everything."""
    found = find(shortcut, 0.7, level="nodes", metric=None, steps=150, batch_size=6)
    assert found.nodes == ("embed", "L0H0", "L1H0", "L1H1")
    assert facts(found)["sparsity"] == pytest.approx(0.7) and facts(found)["level"] == "nodes"
    expected = Circuit.of_nodes(shortcut.graph, ["L0H0", "L1H0", "L1H1"])
    np.testing.assert_array_equal(found.kept, expected.pruned().kept)
    # Without their edges the other components do nothing: the same as leaving out their writes.
    removed = shortcut.graph.without_nodes(set(shortcut.graph.writers) - set(found.nodes))
    drops = Drops(shortcut, None)(np.stack([found.kept, removed]))
    assert drops[0] == pytest.approx(drops[1], abs=1e-12)
    by_writer = np.nanmax(found.scores, axis=1)
    chosen = by_writer > 0.5
    assert [name for name, open_ in zip(found.graph.writers, chosen, strict=True) if open_] == list(found.nodes)


def test_cue_lookup(cue, cue_active):
    found = find(cue[:4], 1 - 6 / 110, steps=150)
    truth = [edge in cue_active for edge in cue.graph.edges]
    scores = [found.score(edge) for edge in cue.graph.edges]
    assert roc_auc_score(truth, scores) == 1.0 and average_precision_score(truth, scores) == 1.0
    assert set(select(found.scores, 6, graph=cue.graph).edges) == cue_active
    assert abs(facts(found)["sparsity"] - (1 - 6 / 110)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cue_lookup_is_found_exactly_from_every_seed(cue, cue_active, seed):
    found = find(cue, 1 - 6 / 110, steps=400, seed=seed)
    assert set(found.edges) == cue_active
    assert cue.faithfulness(cue.measure(np.stack([found.kept])))[0] == pytest.approx(1.0, abs=1e-3)


def test_a_target_above_one_pushes_harder(saturation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = find(saturation, 2.0, steps=120)
    assert facts(found)["sparsity"] > 8 / 13
    assert facts(found)["log"][-1]["target"] == 2.0


# what is trained


def test_first_step_is_what_the_formula_says(cue):
    """Noise, gates, drop and sparsity of the first step, worked out with the engine that measures circuits."""
    task = cue[:4]
    _, log = train(task, settings(draws=2, start=0.5), metrics.get("kl")[1])
    graph, generator = task.graph, torch.Generator().manual_seed(0)
    alphas = torch.full((graph.n_edges,), 0.5, dtype=torch.float64)
    z = hard_concrete.sampled(alphas, hard_concrete.noise((2, graph.n_edges), generator, alphas))
    gates = torch.ones(2, *graph.shape, dtype=torch.float64)
    for gate, (writer, reader) in enumerate(graph.places):
        gates[:, writer, reader] = z[:, gate]
    kl = -task.measure(gates, metric=metrics.kl)
    assert log[0]["drop"] == pytest.approx(kl.mean(), rel=1e-9) and kl.mean() > 0.1
    assert log[0]["sparsity"] == pytest.approx(1 - float(z.mean()), rel=1e-9)
    assert log[0]["multiplier"] == 0 and log[0]["target"] == pytest.approx(0.5 / 1.5)


@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_gates_that_are_all_open_or_all_closed(cue, level):
    task = cue[:4]
    found = {}
    for start in (40.0, -40.0):
        _, log = train(task, settings(start=start, level=level, steps=1), metrics.get("kl")[1])
        found[start] = log[0]
    assert found[40.0]["sparsity"] == 0 and found[40.0]["drop"] == pytest.approx(0.0, abs=1e-12)
    assert found[-40.0]["sparsity"] == 1
    empty = np.zeros((1, *task.graph.shape), dtype=bool)
    empty[0, 0] = level == "nodes"  # the embedding has no gate of its own there
    assert found[-40.0]["drop"] == pytest.approx(Drops(task)(empty & task.graph.allowed)[0], rel=1e-9)


def test_gates_descend_and_multipliers_ascend(saturation):
    """First step of Adam: lr times the sign of the gradient, which finite differences give as well."""
    chosen = settings(steps=1, batch_size=1, warmup=0.0, start=0.3, target_sparsity=0.9)
    after, _ = train(saturation, chosen, metrics.get("logit_diff")[1])
    graph = saturation.graph
    generator = torch.Generator().manual_seed(0)
    drawn = hard_concrete.noise((1, graph.n_edges), generator, torch.zeros(1, dtype=torch.float64))

    def drop(alphas):
        gates = np.zeros((1, *graph.shape))
        gates[0, graph.places[:, 0], graph.places[:, 1]] = hard_concrete.sampled(alphas, drawn)[0]
        return float(saturation.full.mean() - saturation.measure(gates).mean())

    start = torch.full((graph.n_edges,), 0.3, dtype=torch.float64)
    slopes = []
    for edge in range(graph.n_edges):
        step = torch.zeros_like(start)
        step[edge] = 1e-6
        slopes.append((drop(start + step) - drop(start - step)) / 2e-6)
    slopes = np.array(slopes)
    clear = np.abs(slopes) > 1e-6
    assert clear.sum() >= 2
    np.testing.assert_allclose(after.numpy()[clear], 0.3 - 0.1 * np.sign(slopes[clear]), atol=1e-3)
    _, log = train(saturation, settings(steps=4, batch_size=1, start=5.0), metrics.get("kl")[1])
    rising = [row["multiplier"] for row in log]
    assert rising == sorted(rising) and rising[-1] > 0, "while there are too many edges"


def test_target_rises_during_the_warm_up():
    chosen = settings(target_sparsity=0.8, steps=10, warmup=0.5)
    assert [round(chosen.target(step), 3) for step in (0, 1, 4, 5, 9)] == [0.16, 0.32, 0.8, 0.8, 0.8]
    assert settings(warmup=0.0).target(0) == 0.5


def test_same_seed_same_circuit(cue):
    options = {"steps": 12, "batch_size": 3}
    with pytest.warns(MechvisWarning):
        one, two, other = (find(cue, 0.9, seed=seed, **options) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.scores, two.scores)
    assert facts(one)["log"] == facts(two)["log"]
    assert np.nanmax(np.abs(one.scores - other.scores)) > 1e-3


def test_images_that_are_run_anew_are_the_same(cue):
    """Where the runs do not fit the memory each step runs its images."""
    chosen = settings(steps=6, batch_size=3)
    kl = metrics.get("kl")[1]
    kept, log = train(cue, chosen, kl)
    anew, other = train(replace(cue, budget=1), chosen, kl)
    np.testing.assert_allclose(kept, anew, atol=1e-9)
    np.testing.assert_allclose([row["drop"] for row in log], [row["drop"] for row in other], rtol=1e-8)


def test_all_images_come_once_before_one_comes_again(cue):
    from circuits.search.edge_pruning import _Images

    images = _Images(cue, 4, seed=0)
    logits = torch.cat([images.draw().logits for _ in range(4)])
    whole = cue.batch(range(8)).logits
    rows = [int((whole - row).abs().sum(1).argmin()) for row in logits]
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8)) and rows[:8] != rows[8:]


def test_memory_decides_how_many_images(cue):
    assert images_that_fit(cue) == len(cue)
    small = replace(cue, budget=4 * 2**20)
    assert 1 <= images_that_fit(small) < len(cue)
    assert images_that_fit(small, draws=100) == 1


# the rest


def test_model_is_untouched(cue):
    with testing.assert_untouched(cue.model), pytest.warns(MechvisWarning):
        find(cue, 0.5, steps=3)


def test_divergence_names_the_step(cue):
    calls = [0]

    def breaking(logits, target, contrast, clean):
        calls[0] += 1  # twice a step: for the clean run and the gated one
        return logits[..., 0] * (float("nan") if calls[0] > 6 else 1.0)

    with testing.assert_untouched(cue.model), pytest.raises(NotFinite, match=r"diverged at step 3: the loss is nan"):
        find(cue, 0.5, steps=10, metric=breaking)


def test_a_missed_target_is_said(saturation):
    with pytest.warns(MechvisWarning, match=r"was to cut 90.0% of the edges and cut 0.0% in 2 steps. Take more steps"):
        found = find(saturation, 0.9, steps=2, start=4.0)
    assert len(facts(found)["log"]) == 2 and facts(found)["sparsity"] == 0
    with pytest.warns(MechvisWarning, match=r"cut 100.0% in 1 steps. Nothing that it cut was needed, or"):
        found = find(saturation, 0.5, steps=1, start=-9.0)
    assert len(found) == 0


def test_circuit_says_what_it_is(saturation, pruned, tmp_path):
    assert repr(pruned).startswith("Circuit[edge pruning, edges, target 0.615385](5 of 13 edges")
    said = facts(pruned)
    assert said["steps"] == 150 and said["lr"] == 0.1 and said["metric"] == "logit_diff"
    assert said["stretch"] == [-0.1, 1.1] and said["seed"] == 0 and said["level"] == "edges"
    assert said["soft_sparsity"] == pytest.approx(8 / 13, abs=0.05) and said["edges"] == 5
    log = said["log"]
    assert log[0]["step"] == 0 and log[-1]["step"] == 149 and len(log) <= 52
    assert log[-1]["sparsity"] > log[0]["sparsity"]
    again = Circuit.load(pruned.save(tmp_path), saturation.model)
    np.testing.assert_array_equal(again.kept, pruned.kept)
    assert again.provenance["edge_pruning"] == said


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"target": 0.0}, "target_sparsity=0.0: it must be above 0"),
        ({"steps": 0}, "steps=0: it must be at least 1"),
        ({"lr": -1.0}, "lr=-1.0: it must be positive"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"multiplier_lr": -1.0}, "multiplier_lr=-1.0: it must be not negative"),
        ({"warmup": 1.5}, "warmup=1.5: it must be a share of the steps"),
        ({"batch_size": -2}, "batch_size=-2"),
        ({"draws": 0}, "draws=0"),
        ({"start": float("inf")}, "start=inf: it must be finite"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"stretch": (0.1, 1.1)}, r"stretch=\(0.1, 1.1\): it must be around"),
    ],
)
def test_bad_settings(saturation, changed, told):
    target = changed.pop("target", 0.5)
    with pytest.raises(OutOfRange, match=told):
        find(saturation, target, **changed)


def test_unknown_names(saturation):
    with pytest.raises(UnknownName, match=r"unknown level of pruning 'node'. Nearest: nodes"):
        find(saturation, 0.5, level="node")
    with pytest.raises(UnknownName, match=r"unknown metric 'kll'. Nearest: kl"):
        find(saturation, 0.5, metric="kll")
