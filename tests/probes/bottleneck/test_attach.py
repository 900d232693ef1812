"""The bottleneck on the bundled models: concepts as a site, edits there, sweeps with the bottleneck's logits."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import edits, testing
from mechvis.data.scenes import BACKGROUNDS, COLOURS, SHAPES
from mechvis.errors import BadData, ShapeMismatch
from probes.bottleneck import (
    Concepts,
    Interventions,
    bottleneck,
    concepts_of_texts,
    intervene,
    precheck,
    with_bottleneck,
)
from probes.features import collect

WORDS = [*SHAPES, *(f"{name} background" for name in BACKGROUNDS), *COLOURS]
TEMPLATES = ("a photo of a {}",)


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def seen(clip):
    sets = [mechvis.data.scenes(n=n, seed=seed) for n, seed in ((400, 71), (240, 72))]
    return [collect(clip.vision, images, "hook_embedding", progress=False) for images in sets]


@pytest.fixture(scope="module")
def cbm(clip, seen):
    return bottleneck(*seen, concepts_of_texts(clip, WORDS, TEMPLATES), steps=100, draws=1)


def truth_of(features):
    """Which words are true of each scene."""
    shape = np.array(SHAPES)[features.labels]
    background = np.char.add(features.columns["background"].astype(str), " background")
    return np.stack([(np.array(WORDS) == w[:, None]) for w in (shape, background, features.columns["colour"])]).any(0)


def test_shapes_are_told_by_their_words(cbm, seen):
    assert cbm.pick(what="bottleneck")["accuracy"] > 0.9
    for shape in SHAPES:
        assert cbm.weights([shape]).row(0, named=True)["concept"] == shape
    assert cbm.facts["nec"] <= 22


def test_words_know_the_shapes_better_than_random_words(clip, seen):
    found = precheck(*seen, concepts_of_texts(clip, SHAPES, TEMPLATES), draws=2, steps=100)
    assert found.facts["accepted"] and found.pick(set="concepts")["gap_low"] > 0.05


def test_concept_layer_is_a_site(clip, cbm, seen):
    images = mechvis.data.scenes(n=12, seed=73)
    with testing.assert_untouched(clip.vision):
        model = with_bottleneck(clip.vision, cbm)
        run = model.run(images, capture=["hook_embedding"])
    features = collect(clip.vision, images, "hook_embedding", progress=False)["hook_embedding"]
    np.testing.assert_allclose(run.cache["hook_embedding"].double(), cbm.scores(features), atol=2e-3)
    np.testing.assert_allclose(run.logits.double(), cbm.logits(features), atol=5e-3)
    assert run.logits.shape == (12, 8) and model.parts.class_names == SHAPES
    k = cbm.concepts.index("star")
    edited = model.run(images, edits=[edits.zero("hook_embedding", units=[k])]).logits
    by_hand = cbm.scores(features)
    by_hand[:, k] = 0
    np.testing.assert_allclose(edited.double(), cbm.logits_of(by_hand), atol=5e-3)
    assert model.fingerprint != clip.vision.fingerprint


def test_sweeps_run_on_it(clip, cbm):
    model, images = with_bottleneck(clip.vision, cbm), mechvis.data.scenes(n=6, seed=74)
    more = {"units": "heads", "edit": "zero", "metric": "logit_diff", "progress": False}
    fast = mechvis.sweep(model, images, engine="wave", **more)
    plain = mechvis.sweep(model, images, engine="plain", **more)
    np.testing.assert_allclose(fast.values["logit_diff"], plain.values["logit_diff"], atol=1e-3)
    assert np.abs(fast.values["logit_diff"]).max() > 0.1


def test_correcting_shapes_helps(cbm, seen, tmp_path):
    curve = intervene(cbm, *seen, *map(truth_of, seen), most=3)
    assert curve.table["accuracy"][3] >= curve.table["accuracy"][0]
    again = Interventions.load(curve.save(tmp_path / "curve"))
    assert again.table.equals(curve.table)
    assert "Accuracy on test images, with" in again.report(tmp_path / "curve.html").read_text()
    assert curve.table["random"][3] <= curve.table["accuracy"][0]


def test_a_classifier_with_a_head():
    """scenes-vit: its own head is replaced; directions are given, float64 agrees to rounding."""
    model = mechvis.load("scenes-vit")
    model.to(torch.float64)
    sets = [mechvis.data.scenes(n=n, seed=seed) for n, seed in ((96, 75), (32, 76))]
    train, test = (collect(model, images, "hook_pooled", dtype="float64", progress=False) for images in sets)
    x = train["hook_pooled"]
    means = np.stack([x[train.columns["background"] == name].mean(0) - x.mean(0) for name in BACKGROUNDS])
    found = bottleneck(train, test, Concepts(names=BACKGROUNDS, directions=means), steps=20, draws=0)
    attached = with_bottleneck(model, found)
    logits = attached.run(sets[1]).logits
    np.testing.assert_allclose(logits, found.logits(test["hook_pooled"]), atol=1e-9)
    assert attached.parts.project is not None and model.parts.project is None


@pytest.mark.filterwarnings("ignore::mechvis.errors.DefaultPreprocessing")
def test_what_does_not_fit(clip, cbm):
    with pytest.raises(BadData, match="fit it on hook_pooled"):
        with_bottleneck(mechvis.load("scenes-vit"), cbm)
    tiny = mechvis.load(testing.tiny("clip-vision"))
    with pytest.raises(ShapeMismatch, match="reads 64 dimensions"):
        with_bottleneck(tiny, cbm)
