"""The whole judgement: what it holds, what it refuses, and that it comes back from disk as it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mechvis
from circuits.attribution.eap import eap
from circuits.circuit import Circuit
from circuits.edge_patching import patch_edges
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import CircuitEvaluation, evaluate, faithfulness, random_control, recovery, stability
from circuits.evaluation.grades import edge_grades
from circuits.search.select import select
from circuits.task import task
from mechvis import testing
from mechvis.errors import BadData, ResultMismatch, SplitOverlap, StoreCorrupt, UnknownName
from mechvis.testing.planted import cue_images, cue_pairs


@pytest.fixture(scope="module")
def first(cue_model, pairs_of):
    return task(cue_model, pairs_of(cue_pairs("all", 8, seed=1)))


@pytest.fixture(scope="module")
def circuit(first):
    return select(patch_edges(first, progress=False), 7)


@pytest.fixture(scope="module")
def quick(cue, circuit):
    return evaluate(circuit, cue, progress=False)


@pytest.fixture(scope="module")
def full(cue, circuit):
    small = cue[:6]
    return evaluate(circuit, small, level="full", n_random=20, reference=cue_images(8, seed=9)[0], progress=False)


def test_quick(quick, cue, circuit):
    assert quick.facts["edges"] == 6 and quick.facts["pruned"] == len(circuit) - 6 == 0
    found = quick.measure("faithfulness")
    assert found["value"] == pytest.approx(faithfulness(cue, circuit).value)
    assert found["low"] <= found["value"] <= found["high"] and found["n"] == 12
    assert quick.measure("p, random edges")["value"] == pytest.approx(1 / 101)
    assert quick.measure("CMD")["value"] == quick.curve.cmd < quick.measure("CMD, random order")["value"]
    assert set(quick.not_run) == {"random heads", "completeness", "minimality", "sensitivity"}
    assert quick.facts["rows"] > 100 * 12 and quick.facts["seconds"] > 0
    np.testing.assert_array_equal(quick.images["full"], cue.full)
    assert quick.table() is quick.measures


def test_full(full):
    assert full.not_run == {}
    assert full.measure("completeness gap")["value"] < 1e-3
    assert full.measure("ballast")["value"] == 0
    assert full.control("heads").every and full.measure("p, random heads")["value"] == pytest.approx(1 / 16)
    assert full.measure("lowest F of all choices")["n"] == 30
    assert any("only 20 random circuit(s) (edges)" in flag for flag in full.flags)
    assert full.sensitivity.height == 30 and full.minimality.table.height == 6


def test_it_says_so(quick, full):
    text = str(quick)
    assert "6 of 110 edges, 3 of 11 components (quick)" in text
    assert "  ! images compared as a whole only" in text or not quick.flags
    assert "random heads: not run, part of level='full'" in text
    assert "Measured on 12 images of 'cue-lookup, all' in cue-lookup: patch ablation, logit_diff from -7.9" in text
    assert "Says nothing about other images, classes, ablations or metrics." in text
    assert "Says nothing about other images, classes." in str(full)
    assert quick._repr_html_().startswith("<pre>top 7 by Exact effect")


@pytest.mark.parametrize("level", ["quick", "full"])
def test_saved_and_loaded(request, level, tmp_path):
    found = request.getfixturevalue(level)
    found.save(tmp_path / "e")
    again = CircuitEvaluation.load(tmp_path / "e")
    assert repr(again) == repr(found) and again.flags == found.flags and again.facts == found.facts
    for name in ("measures", "images"):
        assert getattr(again, name).equals(getattr(found, name)), name
    assert [c.p for c in again.controls] == [c.p for c in found.controls]
    assert again.curve.areas.equals(found.curve.areas)
    if level == "full":
        assert again.completeness.worst == found.completeness.worst
        assert again.completeness.table.equals(found.completeness.table)
        assert again.minimality.table.equals(found.minimality.table)
        assert again.sensitivity.equals(found.sensitivity)


def test_damaged_files_are_not_read(quick, tmp_path):
    quick.save(tmp_path)
    place = tmp_path / "evaluation.json"
    place.write_text(place.read_text().replace('"quick"', '"full"'))
    with pytest.raises(StoreCorrupt, match="changed after it was written"):
        CircuitEvaluation.load(tmp_path)
    with pytest.raises(ResultMismatch, match="does not hold an evaluation of a circuit"):
        CircuitEvaluation.load(quick.curve.save(tmp_path / "c"))
    assert json.loads((tmp_path / "c" / "evaluation.json").read_text())["format"] == "mechvis.circuit_curve"


def test_plots_and_report(full, quick, tmp_path):
    assert full.plot().axes[0].get_ylabel() == "faithfulness F"
    assert full.plot("heads").axes[0].get_xlabel() == "faithfulness F"
    with pytest.raises(UnknownName, match="unknown figure 'bars'"):
        full.plot("bars")
    with pytest.raises(BadData, match="no random control by 'heads': part of level='full'"):
        quick.plot("heads")
    text = full.report(tmp_path / "report.html").read_text()
    assert "How good is this circuit?" in text and "Other ablations and metrics" in text
    assert "of what the model does over having every edge cut" in text


def test_everything_and_nothing(f3, everything, nothing):
    found = evaluate(everything, f3, progress=False)
    assert found.measure("faithfulness")["value"] == found.measure("necessity")["value"] == 1.0
    assert "no other circuit of 13 edges" in found.not_run["random edges"]
    assert "the circuit has no scores" in found.not_run["curve"]
    assert {"a single image: no intervals"} <= set(found.flags)
    with pytest.raises(BadData, match="there is no curve: the circuit has no scores"):
        found.plot("curve")
    with pytest.raises(BadData, match="'nothing' has no edge: its faithfulness is 0 by definition"):
        evaluate(nothing, f3, progress=False)


def test_dangling_edges_are_dropped_and_said(f3, core):
    dangling = Circuit.of(f3.graph, {*core.edges, "embed->L0H1.v"}, title="one too many")
    found = evaluate(dangling, f3, progress=False)
    assert (found.facts["edges"], found.facts["pruned"]) == (3, 1)
    assert any("1 dangling edges are not counted" in flag for flag in found.flags)
    assert evaluate(dangling, f3, prune=False, progress=False).facts["edges"] == 4
    with pytest.raises(BadData, match="if pruning left none"):
        evaluate(Circuit.of(f3.graph, ["embed->L0H1.v"]), f3, progress=False)


def test_refusals(f3, core, first, circuit):
    with pytest.raises(UnknownName, match="unknown level 'fast'"):
        evaluate(core, f3, level="fast")
    with pytest.raises(ResultMismatch, match="edges have no counterpart there"):
        evaluate(Circuit.of(EdgeGraph((2, 2)), ["L1H0->out"]), f3)
    with pytest.raises(SplitOverlap, match=r"found on.*allow_overlap=True"):
        evaluate(circuit, first)
    found = evaluate(circuit, first, allow_overlap=True, n_random=3, progress=False)
    assert any("images are those that the circuit was found on" in flag for flag in found.flags)
    flat = replace(f3, metric=lambda logits, *rest: logits[..., 0] * 0 + 1)
    with pytest.raises(BadData, match="a constant metric"):
        evaluate(core, flat)
    with pytest.raises(UnknownName, match=r"unknown measure 'faithfullness'\. Nearest: faithfulness"):
        found.measure("faithfullness")


def test_tiny_denominators_are_flagged(cue, circuit):
    near = replace(cue, metric=lambda *given: 1000 + cue.metric(*given))
    found = evaluate(circuit, near, n_random=3, progress=False)
    assert any("too small to divide by" in flag for flag in found.flags)
    few = replace(cue, metric=lambda *given: cue.metric(*given) * (given[1] == 0))
    assert any("have a tiny denominator" in flag for flag in evaluate(circuit, few, n_random=3, progress=False).flags)


PLANTED = (
    *(f"embed->L0H0.{kind}" for kind in "qkv"),
    *("L0H0->L1H0.v", "L0H0->L1H1.v", "embed->L1H0.k", "embed->L1H1.k", "L1H0->out", "L1H1->out"),
)


@pytest.fixture(scope="module")
def f2():
    return task(testing.shortcut_vit(), testing.shortcut_images(24).image_set(), ablation="zero")


def test_f2(f2):
    """ShortcutViT: three heads do everything, but for two small random mixtures that work against them here."""
    circuit = Circuit.of(f2.graph, PLANTED, title="planted")
    found = evaluate(circuit, f2, progress=False)
    assert found.measure("faithfulness")["value"] == pytest.approx(1, abs=0.15)
    heads = Circuit.of_nodes(f2.graph, ["L0H0", "L0H3", "L1H0", "L1H1", "L1H2"])
    assert faithfulness(f2, heads).value == pytest.approx(1, abs=1e-12), "the other heads write nothing"
    assert found.measure("p, random edges")["value"] == pytest.approx(1 / 101)
    scores = patch_edges(f2, progress=False)
    active = edge_grades(f2.graph, PLANTED)
    assert recovery(scores, active).auroc > 0.99
    assert random_control(f2, circuit, how="heads", n=50, progress=False).p < 0.05
    assert stability(f2, lambda half: eap(half, verify=0, progress=False), n_edges=9).jaccard > 0.5


def test_f2_without_the_shortcut_looks_faithful_on_average_only(f2):
    """The object gives 2 of 2 + 3 where the context agrees, and 2 of 2 - 3 where it does not: F is 0.4 and -2, and near
    1 on both kinds of images together. The evaluation warns of it."""
    circuit = Circuit.of(f2.graph, [edge for edge in PLANTED if "L1H1" not in edge], title="object only")
    agree = testing.shortcut_images(24).agree.numpy()
    same, other = f2[np.flatnonzero(agree)], f2[np.flatnonzero(~agree)]
    assert faithfulness(same, circuit).value == pytest.approx(0.4, abs=0.07)
    assert faithfulness(other, circuit).value == pytest.approx(-2, abs=0.35)
    together = evaluate(circuit, f2, n_random=3, progress=False)
    assert together.measure("faithfulness")["value"] == pytest.approx(1, abs=0.1)
    assert any("on 11 of 24 images cutting every edge changes the metric the other way" in f for f in together.flags)
    assert any("the two orders of averaging disagree" in flag for flag in together.flags)
    assert faithfulness(f2.with_metric("kl"), circuit).value < 0.4, "and another metric sees it"


@pytest.mark.slow
def test_scenes():
    """A trained model: what exact patching ranks first is better than chance, on other images than it was ranked on."""
    from circuits.pairs import scene_swap

    model = mechvis.load("scenes-vit")
    pairs = scene_swap(model, n=32, change="object", seed=500)
    one, two = task(model, pairs).halves()
    found = evaluate(select(eap(one, progress=False), 60), two, progress=False)
    assert found.measure("p, random edges")["value"] == pytest.approx(1 / 101)
    assert found.curve.area_row("cmd")["minus random high"] < 0
    assert found.measure("necessity")["value"] > 0.8


def test_golden_file():
    """An evaluation of F3 that was written in format version 1."""
    found = CircuitEvaluation.load(Path(__file__).parent / "golden" / "evaluation-v1")
    assert found.title == "golden" and found.facts["edges"] == 3
    assert found.measure("faithfulness")["value"] == pytest.approx(0.9302, abs=5e-5)
    assert found.curve.area("cmd", axis="log") == found.measure("CMD, log size")["value"]
    assert found.control().p == 0.25 and found.completeness.tried == 57 and found.minimality.table.height == 3
    assert set(found.sensitivity["ablation"]) == {"patch", "resample", "zero", "mean", "mean_positional"}
