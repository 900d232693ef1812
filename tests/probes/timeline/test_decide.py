"""The decision timeline of models whose decision is known: F2, and the bundled classifier with its shortcut."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import mechvis
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName, UnknownSite
from mechvis.testing import assert_untouched, shortcut_images, shortcut_vit, tiny, tiny_preprocess
from probes.timeline import Timeline, decision_layer, decision_timeline, mildly_corrupted, partner_of_background, settle
from probes.timeline.running import sites_of

QUIET = {"progress": False, "resamples": 100, "draws": 50}


@pytest.fixture(scope="module")
def model():
    return shortcut_vit()


@pytest.fixture(scope="module")
def images():
    return shortcut_images(400).image_set()


@pytest.fixture(scope="module")
def found(model, images):
    with assert_untouched(model):
        return decision_timeline(model, images, anchors="half", k=1, target="predicted", **QUIET)


def test_anchors(model):
    assert sites_of(model, "resid_post") == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert sites_of(model, "half") == [
        "hook_embed", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post", "blocks.1.hook_resid_mid",
        "blocks.1.hook_resid_post",
    ]  # fmt: skip
    assert sites_of(model, ["blocks.1.hook_resid_post", "hook_embed"]) == ["hook_embed", "blocks.1.hook_resid_post"]


def test_nothing_is_known_before_the_second_attention(found):
    """F2's class token hears of patches in layer 1 only (layer 0 brings it a faint mixture of the promoted slot)."""
    rows = found.tables["anchors"].filter(group="all")
    assert rows["accuracy"][0] < 0.5, "the class token of the embedding is the same on every image"
    assert rows["accuracy"][3] == rows["accuracy"][4] == 1.0, "then the model's answer is there"
    assert found.group("all")["final_accuracy"] == 1.0 and found.facts["last_probe_equals_model"] == 1.0


def test_it_is_what_its_parts_say(found):
    predictions = found.predictions
    assert predictions.shape == (120, 5)
    line, table = found.group("all"), found.tables["images"]
    assert line["mean"] == pytest.approx(decision_layer(predictions, 1).mean())
    assert line["mean_settle"] == pytest.approx(settle(predictions).mean())
    assert line["early"] + line["middle"] + line["late"] + line["fallback"] == pytest.approx(1.0)
    np.testing.assert_array_equal(table["decision"], decision_layer(predictions, 1))
    np.testing.assert_array_equal(np.array(table["predictions"].to_list()), predictions)
    np.testing.assert_array_equal(found.arrays["probability"].argmax(-1), predictions)
    by_group = found.table.filter(pl.col("group") != "all")
    assert (by_group["mean"] * by_group["n"]).sum() / 120 == pytest.approx(line["mean"])
    decided = found.tables["anchors"].filter(group="all")["decided"]
    assert decided.sum() == pytest.approx(1 - line["fallback"])


def test_record(found, tmp_path):
    back = Timeline.load(found.save(tmp_path / "t"))
    assert back.table.equals(found.table) and back.facts == found.facts
    page = found.report(tmp_path / "t.html").read_text()
    assert "Decision timeline of 120 images" in page and "fallback" in page
    assert [text.get_text() for text in found.figure().axes[0].get_xticklabels()][-1] == "never"
    assert found.figure("settled").axes[0].get_ylabel() == "settled on the final class"
    with pytest.raises(UnknownName, match="measure of depth"):
        found.figure("hoped")
    assert found.exit_figure().axes[0].get_ylabel() == "accuracy"
    assert set(found.tables) >= {"groups", "anchors", "k_sweep", "between", "exit", "images"}


def test_the_paper_s_recipe_and_other_tokens(model, images):
    sgd = decision_timeline(model, images, anchors="half", tokens="mean", weight_decays=(1e-4,), solver="sgd", **QUIET)
    assert sgd.facts["weight_decays"] == [1e-4] * 5 and sgd.facts["tokens"] == "mean"
    assert sgd.arrays["predictions"].shape == (120, 5)


def test_follow_and_corruption():
    model = mechvis.load(tiny("vit"), preprocess=tiny_preprocess())
    images = mechvis.data.scenes(150, seed=3, correlation=0.5)
    answer = model.run(images).logits.argmax(1).numpy()
    follow = {"answer": answer, "never": np.full(150, 99)}
    mild = [("brightness", 1), ("noise", 2)]
    found = decision_timeline(model, images, k=1, target="predicted", follow=follow, corruptions=mild, **QUIET)
    last = found.share_following("answer")[-1]
    assert last == pytest.approx((found.predictions[:, -1] == answer[found.arrays["test"]]).mean())
    assert (found.share_following("never", "conflicting") == 0).all()
    shifts = found.tables["corruption"]
    assert shifts["corruption"].to_list() == ["brightness", "noise"] and (shifts["n"] == len(found.predictions)).all()
    assert shifts["decision_shift"].is_not_null().all() and (shifts["same_answer"] <= 1).all()


def test_towers_without_a_head():
    tower = mechvis.load(tiny("clip"), preprocess=tiny_preprocess()).vision
    images = mechvis.data.scenes(120, seed=3, correlation=0.5)
    found = decision_timeline(tower, images, k=1, target="background", tokens="cls", **QUIET)
    assert found.facts["classes"] == sorted(set(images.columns["background"]))
    assert "last_probe_equals_model" not in found.facts
    with pytest.raises(BadData, match="has no head"):
        decision_timeline(tower, images, k=1, target="predicted", **QUIET)


def test_other_images_train(model, images):
    other = shortcut_images(400, seed=5).image_set()
    other = replace(other, ids=tuple(f"other/{i}" for i in range(400)))
    found = decision_timeline(model, images, k=1, train=other, **QUIET)
    assert found.group("all")["n"] == 400 and found.facts["train"] == 360 and found.facts["validation"] == 40
    with pytest.raises(SplitOverlap, match="train the probes"):
        decision_timeline(model, images, k=1, train=images[:200], **QUIET)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"anchors": "thirds"}, UnknownName, "choice of anchors"),
        ({"anchors": ["blocks.*.hook_nothing"]}, UnknownSite, "hook_nothing"),
        ({"anchors": ["blocks.0.hook_resid_post"]}, BadData, "at least two anchors"),
        ({"k": 5}, OutOfRange, "k=5"),
        ({"target": "colour"}, UnknownName, "colour"),
        ({"target": np.zeros(3, int)}, ShapeMismatch, "one class number per image"),
        ({"tokens": "patches"}, BadData, "several rows per image"),
        ({"follow": {"x": np.zeros(3, int)}}, ShapeMismatch, "follow='x'"),
        ({"corruptions": [("fog", 1)]}, UnknownName, "corruption"),
        ({"corruptions": [("blur", 3)]}, BadData, "severity 1 or 2"),
        ({"fractions": (0.9, 0.1, 0.0)}, BadData, "nobody is judged"),
        ({"fractions": (0.7, 0.0, 0.3)}, BadData, "no validation image"),
    ],
)
def test_bad_input(model, images, settings, error, text):
    with pytest.raises(error, match=text):
        decision_timeline(model, images[:100], **{**QUIET, "k": 1, **settings})


def test_images_without_labels(model, images):
    bare = replace(images, labels=None)
    with pytest.raises(BadData, match="no labels"):
        decision_timeline(model, bare, k=1, **QUIET)
    found = decision_timeline(model, bare, k=1, target="predicted", **QUIET)
    assert found.group("all")["final_accuracy"] > 0.9


def test_corruptions_are_mild_and_repeatable():
    images = mechvis.data.scenes(3, seed=1)
    clean = images.read(0).astype(int)
    for kind in ("noise", "blur", "brightness"):
        one, two = (mildly_corrupted(images, kind, severity) for severity in (1, 2))
        first, second = (np.abs(of.read(0).astype(int) - clean).mean() for of in (one, two))
        assert 0 < first < second < 60 and one.name == f"scenes, {kind} 1"
        np.testing.assert_array_equal(one.read(2), mildly_corrupted(images, kind, 1)[2:].raw()[0])
        assert one.fingerprint != images.fingerprint


def test_partner_of_the_background(images):
    scenes = mechvis.data.scenes(20, seed=3)
    same = partner_of_background(scenes) == scenes.labels
    np.testing.assert_array_equal(same, scenes.groups == "consistent")
    with pytest.raises(BadData, match="scenes' backgrounds"):
        partner_of_background(images)


@pytest.mark.slow
def test_where_the_bundled_shortcut_is_decided():
    """Probes trained as the model was (background agrees in 95 %): on conflicting images the running prediction is the
    background's partner from the first attention on, and the object takes over in the last two blocks."""
    model = mechvis.load("scenes-vit")
    train = mechvis.data.scenes(900, seed=43, correlation=0.95)
    images = mechvis.data.scenes(400, seed=42, correlation=0.5)
    follow = {"partner": partner_of_background(images)}
    found = decision_timeline(model, images, anchors="half", train=train, follow=follow, **QUIET)
    partner = found.share_following("partner", "conflicting")
    anchors = found.tables["anchors"].filter(group="conflicting")
    assert (partner[1:4] > 0.9).all() and partner[-1] < 0.35
    assert (anchors["accuracy"][:4] < 0.15).all() and anchors["accuracy"][8] > 0.65
    assert found.group("consistent")["mean_settle"] < 1.5 < 4.5 < found.group("conflicting")["mean_settle"]
    gap = found.tables["between"].filter(measure="settle").row(0, named=True)
    assert gap["low"] > 3
