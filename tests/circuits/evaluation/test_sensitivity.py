"""The same circuit under other ablations and metrics: each cell equals a task made from scratch."""

import numpy as np
import polars as pl
import pytest
import torch

from circuits.circuit import Circuit
from circuits.evaluation import faithfulness, necessity, sensitivity, with_ablation
from circuits.evaluation.image_hashes import image_hashes
from circuits.evaluation.sensitivity import spread
from circuits.task import task
from mechvis.errors import BadData, SplitOverlap, UnknownName
from mechvis.testing.planted import cue_images


@pytest.fixture(scope="module")
def reference():
    return cue_images(10, seed=9)[0]


@pytest.fixture(scope="module")
def images():
    return cue_images(6, seed=4)[0]


@pytest.fixture(scope="module")
def plain(cue_model, images, reference):
    """A task without pairs."""
    return task(cue_model, images, ablation="mean_positional", reference=reference)


@pytest.fixture(scope="module")
def table(cue, cue_circuit, reference):
    return sensitivity(cue, cue_circuit, reference=reference, progress=False)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_another_ablation_is_the_task_made_from_scratch(cue_model, images, reference, plain, cue_circuit, ablation):
    more = {"reference": reference} if ablation == "mean" else {}
    scratch = task(cue_model, images, ablation=ablation, seed=3, **more)
    changed = with_ablation(plain, ablation, seed=3, **more)
    np.testing.assert_allclose(changed.empty, scratch.empty, atol=1e-9)
    assert faithfulness(changed, cue_circuit).value == pytest.approx(faithfulness(scratch, cue_circuit).value)
    assert changed.ablation == ablation and torch.equal(changed.contrast, plain.contrast)


def test_means_over_tokens_come_from_means_per_token(plain, reference):
    derived, given = with_ablation(plain, "mean"), with_ablation(plain, "mean", reference=reference)
    for one, other in zip(derived.fixed.tensors(), given.fixed.tensors(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    assert with_ablation(plain, "mean_positional") is plain


def test_every_cell(table, cue, cue_circuit, reference):
    assert table.height == 5 * 3 * 2 and table["note"].str.starts_with("not run").sum() == 0
    cells = (("patch", "logit_diff", None), ("zero", "prob", None), ("mean_positional", "kl", reference))
    for ablation, metric, given in cells:
        changed = with_ablation(cue, ablation, reference=given).with_metric(metric)
        row = table.filter(
            (pl.col("ablation") == ablation) & (pl.col("metric") == metric) & (pl.col("level") == "edges")
        ).row(0, named=True)
        found, needed = faithfulness(changed, cue_circuit), necessity(changed, cue_circuit)
        assert row["faithfulness"] == pytest.approx(found.value, abs=1e-9)
        assert row["mean of ratios"] == pytest.approx(found.mean_of_ratios, abs=1e-9)
        assert (row["low"], row["high"]) == pytest.approx((found.low, found.high), abs=1e-9)
        assert row["necessity"] == pytest.approx(needed.value, abs=1e-9)
        assert row["full"] == pytest.approx(changed.full.mean())


def test_the_verdict_depends_on_the_choice(table):
    """With resampling the planted circuit is perfect; zero takes away the constant that pins the norms, which no edge
    of the circuit carries. Nobody could know this from one row."""
    edges = table.filter(pl.col("level") == "edges")
    rows = dict(zip(zip(edges["ablation"], edges["metric"], strict=True), edges["faithfulness"], strict=True))
    assert rows["patch", "logit_diff"] == pytest.approx(1, abs=1e-3)
    assert rows["resample", "kl"] == pytest.approx(1, abs=1e-3)
    assert rows["zero", "logit_diff"] > 100 and rows["zero", "kl"] < 0.1
    low, high, n = spread(table)
    assert low < 0.1 and high > 100 and n == 30
    assert spread(table, "nodes")[1] < high


def test_nodes_are_all_edges_between_the_components(table, cue, cue_circuit):
    rows = table.filter((pl.col("level") == "nodes") & (pl.col("ablation") == "patch"))
    assert rows["edges"].unique().to_list() == [int(cue.graph.inner_edges(cue_circuit.nodes).sum())]


def test_what_cannot_be_run_says_why(plain, cue_circuit):
    found = sensitivity(plain, cue_circuit, metrics=("logit_diff",), progress=False)
    by_ablation = dict(zip(found["ablation"], found["note"], strict=True))
    assert by_ablation["patch"] == "not run: patch takes the corrupt half of pairs, and this task has none."
    assert found.filter(pl.col("ablation") == "patch")["faithfulness"].null_count() == 2
    assert found.filter(pl.col("ablation") == "mean")["faithfulness"].null_count() == 0
    with pytest.raises(BadData, match="this task has none"):
        sensitivity(plain, cue_circuit, ablations=("patch",), progress=False)


def test_a_constant_metric_is_said_not_divided_by(f3, core):
    def flat(logits, *rest):
        return logits[..., 0] * 0 + 1

    found = sensitivity(f3, core, ablations=("patch",), metrics=(flat,), progress=False)
    assert found["note"][0].startswith("not run: flat is 1 with all edges and 1 with every edge cut")
    with pytest.raises(BadData, match="no choice of ablation and metric was run"):
        spread(found)


def test_bad_input(cue, cue_circuit, f3, core, nothing):
    with pytest.raises(UnknownName, match="unknown ablation 'mean_position'"):
        sensitivity(cue, cue_circuit, ablations=("mean_position",), progress=False)
    with pytest.raises(UnknownName, match="unknown metric 'logits'"):
        sensitivity(cue, cue_circuit, metrics=("logits",), progress=False)
    with pytest.raises(BadData, match="'nothing' has no edge"):
        sensitivity(f3, nothing, progress=False)
    with pytest.raises(BadData, match=r"mean_positional needs reference= images"):
        with_ablation(cue, "mean_positional")
    with pytest.raises(BadData, match="at least two images"):
        with_ablation(f3, "resample")
    with pytest.raises(SplitOverlap, match="3 of the 3 reference images are measured too"):
        with_ablation(cue, "mean", reference=cue.clean[:3])
    assert with_ablation(cue, "mean", reference=cue.clean[:3], allow_overlap=True).fixed is not None
    with pytest.raises(UnknownName, match="unknown ablation 'ones'"):
        with_ablation(cue, "ones")


def test_hashes_know_images_by_their_pixels():
    pixels = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    hashes = image_hashes(pixels)
    assert len(set(hashes)) == 3 and hashes == image_hashes(pixels.double())
    assert image_hashes(pixels[[2, 0]]) == (hashes[2], hashes[0])
    changed = pixels.clone()
    changed[0, 0, 0, 0] += 1e-3
    assert image_hashes(changed)[0] != hashes[0] and image_hashes(changed)[1:] == hashes[1:]


def test_circuit_of_all_nodes_is_everything(cue):
    every = Circuit(graph=cue.graph, kept=cue.graph.allowed)
    found = sensitivity(cue, every, ablations=("zero",), metrics=("prob",), progress=False)
    assert found["faithfulness"].to_list() == [1.0, 1.0] and found["necessity"].to_list() == [1.0, 1.0]
