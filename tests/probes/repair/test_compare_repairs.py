"""DISC beside the removal of heads on scenes-vit, whose head has learned that the background tells the shape."""

import numpy as np
import pytest

import mechvis
from mechvis import testing
from mechvis.data.scenes import BACKGROUNDS, COLOURS, SHAPES
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap, UnsupportedModel
from probes.repair import LinearHead, Repair, compare_repairs, head_of, with_head
from probes.repair.scoreboard import against, scoreboard

CONTEXT_HEADS = [(0, 0), (0, 2), (0, 3)]
"""What the CIGMA study of the README recommends to remove."""


def truth_of(images):
    backgrounds = {f"{name} background": images.columns["background"] == name for name in BACKGROUNDS}
    return {**backgrounds, **{name: images.columns["colour"] == name for name in COLOURS}}


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def found(model):
    train = mechvis.data.scenes(n=280, seed=301, correlation=0.8)
    test = mechvis.data.scenes(n=120, seed=302, correlation=0.5)
    more = {"draws": 2, "steps": 100, "progress": False}
    return compare_repairs(model, train, test, truth_of(train), CONTEXT_HEADS, **more)


def row(found, what, group):
    return found.table.filter(what=what, group=group).row(0, named=True)


def test_both_repairs_help_where_they_must(found):
    for what in ("DISC", "L0H0, L0H2, L0H3 removed"):
        conflict, agree = row(found, what, "conflicting"), row(found, what, "consistent")
        assert conflict["change_low"] > 0.1, what
        assert agree["change"] > -0.1, what
    assert row(found, "3 random heads removed", "conflicting")["change"] < 0.1
    assert row(found, "before", "worst")["accuracy"] < 0.75
    assert {"retrained", "random concepts"} <= set(found.table["what"])


def test_backgrounds_are_unstable_and_colours_are_not(found):
    """Every background is more unstable than every colour of the object."""
    shares = dict(found.tables["instability"].select("concept", "instability").iter_rows())
    backgrounds = [shares[f"{name} background"] for name in BACKGROUNDS]
    assert np.median(backgrounds) > 2 * max(shares[name] for name in COLOURS)


def test_head_is_the_models_own(model, found):
    own = model.bare.classifier
    np.testing.assert_allclose(found.head("before").weight, own.weight.detach().double(), atol=1e-5)
    np.testing.assert_allclose(found.head("before").bias, own.bias.detach().double(), atol=1e-6)


def test_it_saves_and_leaves_the_model_alone(model, found, tmp_path):
    again = Repair.load(found.save(tmp_path / "repair"))
    assert again.table.equals(found.table)
    train, test = mechvis.data.scenes(n=80, seed=303, correlation=0.8), mechvis.data.scenes(n=12, seed=304)
    with testing.assert_untouched(model):
        truth = {"red": train.columns["colour"] == "red"}
        compare_repairs(
            model,
            train,
            test,
            truth,
            [(0, 0)],
            mode="mean_positional",
            draws=1,
            steps=2,
            environments=np.arange(80) % 2,
            progress=False,
        )


def test_a_repaired_head_can_be_attached(model, found):
    from probes.features import collect

    images = mechvis.data.scenes(n=8, seed=307)
    head, pooled = found.head("DISC"), collect(model, images, "hook_pooled", progress=False)["hook_pooled"]
    repaired = with_head(model, head)
    np.testing.assert_allclose(repaired.run(images).logits, head.logits(pooled), atol=1e-3)
    own = with_head(model, head_of(model)).run(images).logits
    np.testing.assert_allclose(own, model.run(images).logits, atol=1e-4)
    assert repaired.fingerprint != model.fingerprint and repaired.parts.class_names == model.parts.class_names
    with pytest.raises(ShapeMismatch, match="reads 3 dimensions"):
        with_head(model, LinearHead(weight=np.ones((8, 3)), bias=np.zeros(8)))
    with pytest.raises(UnsupportedModel, match="projects before"):
        with_head(mechvis.load("scenes-clip").vision, head)


def test_bad_input(model):
    train, test = mechvis.data.scenes(n=40, seed=305), mechvis.data.scenes(n=20, seed=306)
    with pytest.raises(SplitOverlap, match="training and test images"):
        compare_repairs(model, train, train[:10], truth_of(train), [(0, 0)])
    with pytest.raises(SplitOverlap, match="concept bank and test images"):
        compare_repairs(model, train, test, {}, [(0, 0)], bank=test)
    with pytest.raises(BadData, match="removes nothing"):
        compare_repairs(model, train, test, truth_of(train), [])
    with pytest.raises(OutOfRange, match="L4H0 does not exist: 4 layers of 4 heads"):
        compare_repairs(model, train, test, truth_of(train), [(4, 0)])
    with pytest.raises(UnsupportedModel, match="linear head right behind"):
        head_of(mechvis.load("scenes-clip").vision)


def test_scoreboard_by_hand():
    hits = {"before": np.array([1.0, 0.0, 1.0, 0.0]), "after": np.array([1.0, 1.0, 1.0, 0.0])}
    groups = np.array(["a", "a", "b", "b"])
    table = scoreboard(hits, groups)
    assert table.filter(what="after", group="a")["accuracy"].item() == 1.0
    assert table.filter(what="after", group="worst")["accuracy"].item() == 0.5
    assert table.filter(what="after", group="all")["change"].item() == 0.25
    assert table.filter(what="after", group="worst")["change"].item() == 0.0
    better = against(hits, groups, of="after")
    assert better["than"].unique().to_list() == ["before"] and better["difference"].to_list() == [0.25, 0.5, 0.0]
    with pytest.raises(BadData, match="'none' is not among"):
        against(hits, groups, of="none")
    with pytest.raises(BadData, match="'first' is not among"):
        scoreboard(hits, groups, first="first")
    with pytest.raises(ShapeMismatch, match="answers for 4 images"):
        scoreboard({**hits, "other": np.ones(3)}, groups)


@pytest.mark.slow
def test_disc_beats_learning_the_head_again(model):
    """More images and larger moves: the cure does more than learning the head again, or random concepts, would."""
    train = mechvis.data.scenes(n=1000, seed=301, correlation=0.9)
    test = mechvis.data.scenes(n=600, seed=302, correlation=0.5)
    found = compare_repairs(model, train, test, truth_of(train), CONTEXT_HEADS, draws=3, amplitude=2.0, progress=False)
    cured = row(found, "DISC", "conflicting")
    assert cured["accuracy"] > 0.9 and cured["change_low"] > 0.2
    assert cured["accuracy"] >= row(found, "retrained", "conflicting")["accuracy"]
    assert cured["accuracy"] >= row(found, "random concepts", "conflicting")["accuracy"]
    assert row(found, "DISC", "consistent")["accuracy"] > 0.97
    worst = dict(found.tables["instability"].select("concept", "class").iter_rows())
    named = [worst[f"{background} background"] == shape for background, shape in zip(BACKGROUNDS, SHAPES, strict=True)]
    assert sum(named) >= 7, "each background is unstable for the shape that it went with"
