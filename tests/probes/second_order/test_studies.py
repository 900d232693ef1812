"""The claim test, segmentation and the study: planted answers on small models, measured ones on scenes-clip."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data import scenes
from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES
from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch, SplitOverlap, UnknownName
from mechvis.models.load import wrap
from probes.second_order import (
    AblationClaim,
    RankOne,
    SecondOrderStudy,
    ablation_claim,
    activation_maps,
    coefficients,
    contribution_maps,
    neurons_for,
    second_order,
    segment,
    summarise,
)
from probes.second_order.segmentation import scaled


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def classifier(clip):
    return clip.classifier(SHAPES)


@pytest.fixture(scope="module")
def fitted(clip):
    reference = scenes(48, seed=11)
    return [summarise(clip.vision, reference, layer, of="embedding", progress=False) for layer in (1, 2)]


@pytest.fixture(scope="module")
def claim(classifier):
    reference, images = scenes(96, seed=11), scenes(64, seed=12)
    return ablation_claim(classifier, reference, images, layers=[1, 2], share=0.1, draws=2, progress=False)


def test_large_effects_carry_more_than_random_ones(claim):
    assert claim.large_ones_carry
    change = {row["replaced"]: row["log_odds_change"] for row in claim.table.iter_rows(named=True)}
    assert change["nothing"] == 0 and change["all"] < change["random"] < change["small"] < 0
    assert change["rank one"] > change["all"] and claim.facts["kept"] == pytest.approx(0.1, abs=0.03)
    # Small and large effects together are all effects; what each costs depends on the other.
    assert claim.pick(replaced="all")["kept"] == 0 and claim.pick(replaced="nothing")["same_prediction"] == 1


def test_replacing_everything_by_hand(classifier, claim):
    """Logits without the deviations of all second-order effects of two layers, from the effects themselves."""
    reference, images = scenes(96, seed=11), scenes(64, seed=12)
    logits = classifier.run(images).logits.double().numpy()
    for layer in (1, 2):
        seen, judged = (coefficients(classifier, x, layer, progress=False) for x in (reference, images))
        logits = logits - (judged.summed() - seen.mean.sum(0))
    row = claim.pick(replaced="all")
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == images.labels).mean(), abs=1e-9)


def test_the_record_comes_back_and_its_verdict(claim, tmp_path):
    again = AblationClaim.load(claim.save(tmp_path / "claim"))
    assert again.table.equals(claim.table) and again.verdict() == claim.verdict() in ("holds", "empty", "undecided")
    assert claim.verdict(tolerance=-1) == "fails"
    assert again.report(tmp_path / "claim.html").exists()


def test_the_claim_refuses_what_it_cannot_judge(classifier, clip):
    images = scenes(8, seed=1)
    with pytest.raises(SplitOverlap, match="reference and evaluation"):
        ablation_claim(classifier, images, images, progress=False)
    with pytest.raises(RefusedMethod, match="no head"):
        ablation_claim(clip.vision, images, scenes(8, seed=2), progress=False)
    with pytest.raises(OutOfRange, match="share=2"):
        ablation_claim(classifier, images, scenes(8, seed=2), share=2, progress=False)
    with pytest.raises(BadData, match="last block"):
        ablation_claim(classifier, images, scenes(8, seed=2), layers=[3], progress=False)


def test_maps_by_source_token_add_up():
    model = wrap(testing.tiny("dinov2-classifier", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("dinov2-classifier", n=5, dtype=torch.float64)
    toward = np.random.default_rng(0).standard_normal((5, 8))
    for layer in (0, 1, 2):
        found = contribution_maps(model, pixels, layer, toward, batch_size=2)
        whole = (coefficients(model, pixels, layer, progress=False).summed() * toward).sum(1)
        assert found.shape == (5, 10)
        np.testing.assert_allclose(found.sum(1), whole, atol=1e-12)
    with pytest.raises(ShapeMismatch, match="toward is"):
        contribution_maps(model, pixels, 0, toward[:3])


def test_activation_maps_are_means_of_neurons(clip):
    images = scenes(3, seed=4)
    post = clip.vision.run(images, capture=["blocks.*.mlp.hook_post"]).cache
    found = activation_maps(clip.vision, images, [[(0, 3), (2, 7)], [(1, 5)]], batch_size=2)
    expected = (post["blocks.0.mlp.hook_post"][:, 1:, 3] + post["blocks.2.mlp.hook_post"][:, 1:, 7]) / 2
    np.testing.assert_allclose(found[0], expected.unflatten(1, clip.vision.parts.grid), atol=1e-6)
    np.testing.assert_allclose(found[1].reshape(3, -1), post["blocks.1.mlp.hook_post"][:, 1:, 5], atol=1e-6)
    brought = scaled(found)
    assert brought.min() == 0 and brought.max() == 1 and (scaled(np.ones((2, 3, 4))) == 0).all()
    with pytest.raises(BadData, match="set of neurons is empty"):
        activation_maps(clip.vision, images, [[]])


def test_neurons_of_a_text_are_those_with_the_largest_projection(fitted):
    text = fitted[1].direction[17]
    chosen = neurons_for(fitted, text, neurons=3)
    assert chosen[0] == (2, 17)
    against = neurons_for(fitted, -text, neurons=3)
    assert against[0] == (2, 17) and neurons_for(fitted, -text, neurons=3, signed=True)[0] != (2, 17)
    with pytest.raises(ShapeMismatch, match="of='embedding'"):
        neurons_for(fitted, text[:3])
    with pytest.raises(OutOfRange, match="there are 512"):
        neurons_for(fitted, text, neurons=999)


def test_segmentation_finds_a_planted_object():
    """One neuron is active on the object's patches and writes towards the text; the others are noise. The neuron sees
    the object in the pixels, so the map of the text's neuron is the mask and that of random neurons is not."""
    model, images = mechvis.load("scenes-vit"), scenes(12, seed=3)
    masks = images.masks_for(model.preprocess).numpy()
    patches = masks.reshape(12, 8, 8, 8, 8).mean((2, 4)) > 0.5

    class Seen:
        """The model with a planted first neuron in block 2."""

        def __init__(self):
            self.start = 0

        def __getattr__(self, name):
            return getattr(model, name)

        def run(self, pixels, capture=(), **settings):
            run = model.run(pixels, capture=capture, **settings)
            if capture:
                value = run.cache["blocks.2.mlp.hook_post"].clone()
                rows = patches[self.start : self.start + len(value)].reshape(len(value), -1)
                value[:, 1:, 0] = torch.from_numpy(rows).float() * 5
                self.start += len(value)
                return type(run)(run.output, {"blocks.2.mlp.hook_post": value})
            return run

    n = model.parts.blocks[2].d_mlp
    direction = np.zeros((n, 8))
    direction[0, 0], direction[1:, 1] = 1.0, 1.0
    one = RankOne(
        layer=2, neurons=np.arange(n), mean=direction, direction=direction, explained=np.ones(n), positive=np.ones(n),
        images=np.zeros((n, 1), int), sizes=np.ones((n, 1)), alpha_mean=np.zeros((4, n)), n=2,
    )  # fmt: skip
    chosen = neurons_for([one], np.eye(8)[0], neurons=1)
    maps = scaled(activation_maps(Seen(), images, [chosen]))[0]
    np.testing.assert_array_equal(maps > 0.5, patches)


def test_segmentation_on_scenes_clip_and_its_controls(classifier, clip, fitted):
    """What is measured there: mean activations do not find the object (they are high on textures), exact effects do."""
    texts = clip.prompts(SHAPES).double().numpy()
    found = segment(classifier, scenes(32, seed=12), fitted, texts, neurons=50, draws=1)
    auroc = {row["map"]: row for row in found.table.iter_rows(named=True)}
    assert auroc["exact effects of all neurons"]["low"] > auroc["neurons of the text"]["high"]
    assert auroc["exact effects of all neurons"]["low"] > 0.6 > auroc["all neurons"]["high"]
    assert auroc["middle of the image"]["low"] > 0.75
    assert found.arrays["maps"].shape == (32, 8, 8) and found.table["n"].to_list() == [32] * 8
    with pytest.raises(UnknownName, match="predicted"):
        segment(classifier, scenes(4, seed=1), fitted, texts, targets="guess")
    with pytest.raises(BadData, match="no masks"):
        segment(classifier, scenes(4, seed=1, show="background"), fitted, texts)


@pytest.fixture(scope="module")
def study(clip):
    return second_order(
        clip,
        scenes(96, seed=11),
        layers=[2, 3],
        words=[*SHAPES, *COLOURS, *BACKGROUNDS],
        atoms=4,
        top=24,
        progress=False,
    )


def test_study_of_scenes_clip(study):
    strong = study.strongest(10)
    assert (strong["layer"] == 2).all() and (strong["explained_held_out"] > 0.5).all()
    assert strong["cosine"].mean() > study.facts["random_cosine_95"] > study.facts["random_cosine"]
    last = study.table.filter(study.table["layer"] == 3)
    assert (last["size"] == 0).all() and last["explained"].is_null().all() and (last["words"] == "").all()
    layers = {row["layer"]: row for row in study.tables["layers"].iter_rows(named=True)}
    assert layers[2]["low"] > 0 == layers[3]["summed"]
    unit = strong["unit"][0]
    assert np.linalg.norm(study.direction(unit)) == pytest.approx(1, abs=1e-5)


def test_groups_of_neurons_change_nothing(clip):
    images = scenes(12, seed=2)
    whole, parts = (second_order(clip, images, layers=[2], budget=budget, progress=False) for budget in (None, 300_000))
    for name in ("size", "explained", "explained_held_out"):
        np.testing.assert_allclose(parts.table[name], whole.table[name], rtol=1e-4, err_msg=name)
    assert parts.table["unit"].to_list() == whole.table["unit"].to_list()
    assert parts.tables["layers"]["summed"][0] == pytest.approx(whole.tables["layers"]["summed"][0], rel=1e-5)


def test_study_comes_back_and_reports(study, tmp_path):
    again = SecondOrderStudy.load(study.save(tmp_path / "study"))
    assert again.table.equals(study.table)
    np.testing.assert_array_equal(again.arrays["top"], study.arrays["top"])
    assert "rank" in repr(again) or "effects" in repr(again)
    assert study.report(tmp_path / "study.html").exists()
    with pytest.raises(BadData, match="rows are named like L2N0"):
        study.direction("L9N9")


def test_study_refuses_what_does_not_fit(clip):
    images = scenes(8, seed=1)
    with pytest.raises(RefusedMethod, match="words need embeddings"):
        second_order(clip.vision, images, words=["red"], progress=False)
    with pytest.raises(BadData, match="last block"):
        second_order(clip, images, layers=[3], progress=False)
    with pytest.raises(BadData, match="judging them needs others"):
        second_order(clip, images[:3], progress=False)
