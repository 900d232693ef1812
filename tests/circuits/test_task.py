"""The task: what it measures, what it refuses."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.pairs.pairs import Pairs
from circuits.task import task
from mechvis import metrics, testing
from mechvis.errors import (
    BadData,
    NotFinite,
    ResultMismatch,
    ShapeMismatch,
    SplitOverlap,
    UnknownName,
    UnsupportedModel,
)


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


def pixels(n=6, seed=0):
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n=6, **more):
    return Pairs(name="noise", clean=pixels(n), corrupt=pixels(n, 1), ids=tuple(map(str, range(n))), **more)


def test_full_and_empty_are_runs_of_the_halves(model):
    made = task(model, pairs(), max_undistinguished=1.0)
    clean, corrupt = (model.run(half).output for half in (made.clean, made.corrupt))
    for values, output in ((made.full, clean), (made.empty, corrupt)):
        expected = metrics.logit_diff(output, made.target, made.contrast, clean)
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-12)


def test_all_edges_are_one_and_none_is_zero_exactly(model):
    made = task(model, pairs(), max_undistinguished=1.0)
    graph = made.graph
    some = np.random.default_rng(0).random((3, *graph.shape)) < 0.5
    gates = np.concatenate([some, graph.allowed[None], graph.allowed[None] & False, some])
    found = made.faithfulness(made.measure(gates))
    assert found[3] == 1.0 and found[4] == 0.0
    # Entries where there is no edge mean nothing.
    assert made.faithfulness(made.measure(np.ones((1, *graph.shape), bool)))[0] == 1.0
    np.testing.assert_allclose(found[:3], found[5:], atol=1e-12)
    assert np.abs(found[:3] - 0.5).max() < 5 and len(set(found[:3])) == 3


def test_memory_does_not_change_the_answer(model):
    small, large = (task(model, pairs(), max_undistinguished=1.0, budget=size) for size in ("200KB", "1GB"))
    assert small.rows_at_once() < 6 < large.rows_at_once()
    gates = np.random.default_rng(0).random((4, *small.graph.shape))
    np.testing.assert_allclose(small.measure(gates), large.measure(gates), atol=1e-12)


def test_another_metric_on_the_same_runs(model):
    made = task(model, pairs(), max_undistinguished=1.0)
    gates = np.random.default_rng(0).random((2, *made.graph.shape)) < 0.5
    kl = made.measure(gates, metric=metrics.kl)
    np.testing.assert_allclose(kl, made.with_metric("kl").measure(gates), atol=1e-12)
    assert (kl <= 1e-12).all() and made.with_metric("kl").metric_name == "kl"


def test_classes_of_pairs(model):
    """The metric compares the class of the clean half with that of the corrupt half, else with what the model says."""
    own = pairs()
    predicted = [model.run(half).output.argmax(-1) for half in (own.clean, own.corrupt)]
    free = task(model, own, max_undistinguished=1.0)
    assert torch.equal(free.target, predicted[0])
    differ = predicted[0] != predicted[1]
    assert torch.equal(free.contrast[differ], predicted[1][differ]) and not (free.contrast == free.target).any()
    labels = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 2, 2, 1, 7, 6])
    given = task(model, pairs(clean_labels=labels[0], corrupt_labels=labels[1]), max_undistinguished=1.0)
    assert torch.equal(given.target, labels[0])
    other = labels[0] != labels[1]
    assert torch.equal(given.contrast[other], labels[1][other]) and not (given.contrast == given.target).any()
    assert torch.equal(
        task(model, pairs(clean_labels=labels[0]), labels="predicted", max_undistinguished=1.0).target, predicted[0]
    )


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean_positional", "resample"])
def test_ablations_without_pairs(model, ablation):
    more = {"reference": pixels(4, 7)} if ablation.startswith("mean") else {}
    made = task(model, pixels(), ablation=ablation, **more)
    assert not np.array_equal(made.full, made.empty)
    if ablation == "resample":
        assert not (made.corrupt.flatten(1) == made.clean.flatten(1)).all(1).any()  # never the image itself
        again, other = task(model, pixels(), ablation=ablation), task(model, pixels(), ablation=ablation, seed=1)
        assert torch.equal(again.corrupt, made.corrupt) and not torch.equal(other.corrupt, made.corrupt)


def test_image_sets_and_zero_shot_heads():
    clip = mechvis.load(
        testing.tiny("clip", dtype=torch.float64), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    )
    head = clip.classifier(["circle", "star", "a blue square"])
    made = task(head, pixels(), ablation="zero", metric="logit_diff")
    np.testing.assert_allclose(made.full, task(head, pixels(), ablation="zero").full)
    scenes = mechvis.load("scenes-vit")
    images, others = mechvis.data.scenes(6, seed=3), mechvis.data.scenes(6, seed=4)
    made = task(scenes, images, reference=others)
    assert made.ablation == "mean_positional" and made.labels is not None and made.ids == images.ids


def test_halves_and_selection(model):
    made = task(model, pairs(), max_undistinguished=1.0)
    first, second = made.halves(3)
    assert sorted(first.ids + second.ids) == sorted(made.ids) and not set(first.ids) & set(second.ids)
    np.testing.assert_allclose(made[[4, 2]].full, made.full[[4, 2]], atol=1e-12)
    assert made[:2].fingerprint != made.fingerprint == task(model, pairs(), max_undistinguished=1.0).fingerprint


def test_what_is_known_of_it(model):
    made = task(model, pairs(), max_undistinguished=1.0)
    facts = made.provenance()["task"]
    assert facts["n"] == 6 and facts["ablation"] == "patch" and len(facts["image_hashes"]) == 6
    assert facts["n_heads"] == [4, 4, 4] and made.image_table()["id"].to_list() == list(made.ids)
    assert repr(made).startswith("Task('noise': 6 images, patch ablation, logit_diff: m(full) ")


def apart(model):
    return task(model, pairs(), max_undistinguished=1.0)


def constant(output, target, contrast, clean):
    return output[..., 0] * 0 + 1


def broken(output, target, contrast, clean):
    return output[..., 0] * float("nan")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: task(m, pixels(), ablation="patch"), BadData, "takes the corrupt half of pairs"),
        (lambda m: task(m, pixels(), ablation="noise"), UnknownName, "unknown ablation 'noise'"),
        (lambda m: task(m, pixels()), BadData, "needs reference= images"),
        (lambda m: task(m, pixels(), ablation="zero", reference=pixels()), BadData, "reference images are for means"),
        (lambda m: task(m, (same := pixels()), reference=same), SplitOverlap, "are the images that are measured"),
        (lambda m: task(m, pairs(), metric=constant, max_undistinguished=1.0), BadData, "the same with every edge cut"),
        (lambda m: task(m, pairs(), metric=broken, max_undistinguished=1.0), NotFinite, "NaN or Inf on image '0'"),
        (lambda m: task(m, pairs(), metric="logits"), UnknownName, "unknown metric 'logits'"),
        (lambda m: task(m, pixels(1), ablation="resample"), BadData, "at least two images"),
        (lambda m: task(m, pixels(), ablation="zero", labels="given"), BadData, "these images have none"),
        (lambda m: apart(m).measure(np.ones((2, 3))), ShapeMismatch, "got [2, 3]"),
        (lambda m: apart(m).measure(np.ones((1, 3, 3))), ShapeMismatch, "got [1, 3, 3]"),
        (lambda m: apart(m)[[]], BadData, "holds no image"),
        (lambda m: apart(m)[[0]].halves(), BadData, "cannot be split"),
    ],
)
def test_refusals(model, make, error, words):
    with pytest.raises(error) as caught:
        make(model)
    assert words in str(caught.value)


def test_pairs_that_the_model_does_not_tell_apart(model):
    clean = pixels()
    same = Pairs(name="same", clean=clean, corrupt=clean + 1e-9, ids=tuple(map(str, range(6))))
    with pytest.raises(BadData, match=r"one class to both halves of 6 of 6 pairs \(same\)"):
        task(model, same)


def test_models_that_have_no_edges_or_no_head():
    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    with pytest.raises(UnsupportedModel, match="text tower"):
        task(clip.text, pixels())
    with pytest.raises(BadData, match=r"no head, so 'logit_diff' has no classes.*classifier"):
        task(clip.vision, pixels().float(), ablation="zero")
    with pytest.raises(ResultMismatch):
        from circuits.circuit import Circuit
        from circuits.edges.graph import EdgeGraph

        Circuit.of(EdgeGraph((1,)), []).check_model(clip.vision)
