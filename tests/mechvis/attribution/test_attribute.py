"""The core of attribution: `attribute`, questions to a model, methods as values, records, errors."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
import mechvis.attribution
from mechvis import edits, testing
from mechvis.attribution import METHODS, ActTimesGrad, Attribution, Claims, LayerIG, Maps, Method, Question, attribute
from mechvis.attribution.attribute import checked, maps_of
from mechvis.attribution.names import method
from mechvis.errors import BadData, FailedCheck, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.target import target_of

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def bare():
    return testing.rand_vit()


@pytest.fixture(scope="module")
def model(bare):
    return mechvis.load(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=5, dtype=DOUBLE)


def asked(model, pixels, **more):
    target = target_of(model, model.run(pixels).logits, None, more.pop("target", 1), **more)
    return Question(model=model, pixels=pixels, target=target, ids=torch.arange(len(pixels)))


@dataclass(frozen=True, kw_only=True)
class Given(Method):
    """Whatever it was given."""

    NAME = "given"
    CLAIMS = Claims(class_specific=False, signed=True)
    kind: str = "ramp"

    def maps(self, ask):
        values = torch.arange(ask.n_patches, dtype=DOUBLE).expand(len(ask.pixels), -1).clone()
        if self.kind == "wide":
            values = values[:, :-1]
        if self.kind == "nan":
            values[-1, 4] = float("nan")
        if self.kind == "flat":
            values[:] = 3
        if self.kind == "one flat":
            values[0] = 3
        return Maps(values=values)


# what comes out


def test_maps_table_and_facts(model, pixels):
    found = attribute(model, pixels, "act_x_grad", target=[0, 1, 2, 3, 4], batch_size=2, progress=False)
    assert found.maps.shape == (5, 3, 3) and found.grid == (3, 3)
    assert found.table["image"].to_list() == [0, 1, 2, 3, 4]
    scores = model.run(pixels).logits[torch.arange(5), torch.arange(5)]
    np.testing.assert_allclose(found.table["score"].to_numpy(), scores.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.table["sum"].to_numpy(), found.maps.sum((1, 2)), rtol=1e-4)
    assert found.facts["claims"] == {
        "class_specific": True,
        "signed": True,
        "complete": False,
        "random": False,
        "reads": "gradient",
    }
    assert found.facts["settings"] == {"layer": -1} and found.facts["version"] == 1
    assert found.facts["backwards"] == 5 and found.facts["forwards"] == 10
    assert set(found.table.columns) <= set(found.words)
    assert any("claim, not evidence" in line for line in found.caveats)


def test_a_method_may_be_given_as_name_class_or_value(model, pixels):
    same = [
        attribute(model, pixels, one, target=1, progress=False).maps
        for one in ("act_x_grad", ActTimesGrad, ActTimesGrad(layer=2))
    ]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])


def test_targets_predicted_true_runner_up_and_forms(model, pixels):
    logits = model.run(pixels).logits
    top = logits.argsort(1, descending=True)
    found = attribute(model, pixels, target="predicted", contrast="runner_up", progress=False)
    assert found.table["target"].to_list() == [model.parts.class_names[i] for i in top[:, 0].tolist()]
    assert found.table["contrast"].to_list() == [model.parts.class_names[i] for i in top[:, 1].tolist()]
    np.testing.assert_allclose(found.table["score"], (logits.max(1).values - logits.topk(2).values[:, 1]), rtol=1e-10)
    one = attribute(model, pixels, target=3, form="logprob", progress=False)
    np.testing.assert_allclose(one.table["score"], logits.log_softmax(1)[:, 3], rtol=1e-10)
    settled = target_of(model, logits, None, 3)
    again = attribute(model, pixels, target=settled, batch_size=2, progress=False)
    assert np.array_equal(again.maps, attribute(model, pixels, target=3, batch_size=2, progress=False).maps)


def test_image_sets_bring_their_labels():
    model = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=3, seed=1)
    found = attribute(model, images, target="true", progress=False)
    assert found.table["label"].to_list() == found.table["target"].to_list()
    assert found.plot(images).axes


def test_clip_takes_texts_for_targets():
    clip = mechvis.load(
        testing.tiny("clip", dtype=DOUBLE), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    )
    pixels = testing.tiny_input("clip", n=3, dtype=DOUBLE)
    found = attribute(clip, pixels, target="a red star", progress=False)
    np.testing.assert_allclose(found.table["score"], clip.similarity(pixels, ["a red star"])[:, 0], rtol=1e-8)
    several = attribute(clip, pixels, target=["a", "b", "a"], progress=False)
    assert several.table["target"].to_list() == ["a", "b", "a"]
    for wrong in ("predicted", 3):
        with pytest.raises(BadData, match="the target is a text"):
            attribute(clip, pixels, target=wrong, progress=False)
    with pytest.raises(BadData, match="over patches of images"):
        attribute(clip.text, pixels, target=0, progress=False)


def test_saved_and_asked_again(model, pixels, tmp_path):
    found = attribute(model, pixels, LayerIG(layer=1, steps=4), target=1, contrast=2, progress=False)
    back = Attribution.load(found.save(tmp_path / "maps"))
    assert np.array_equal(back.maps, found.maps) and back.method == LayerIG(layer=1, steps=4)
    again = attribute(model, pixels, back.method, target=1, contrast=2, progress=False)
    assert np.array_equal(again.maps, found.maps)
    assert back.table.equals(found.table) and isinstance(back.table, pl.DataFrame)


def test_a_tensor_among_the_settings_is_written_down_by_its_hash(model, pixels, tmp_path):
    start = torch.ones(16, dtype=DOUBLE)
    found = attribute(model, pixels, LayerIG(steps=2, baseline=start), target=1, progress=False)
    written = Attribution.load(found.save(tmp_path / "maps")).facts["settings"]["baseline"]
    assert written["tensor"] == [16] and len(written["sha256"]) == 16
    other = LayerIG(steps=2, baseline=start + 1).settings()["baseline"]
    assert other["sha256"] != written["sha256"]
    with pytest.raises(BadData, match="was a tensor \\[16\\]"):
        _ = found.method


# the question


def test_gradients_equal_autograd_on_the_bare_model(bare, model, pixels):
    """H9: the gradient at a site is that of an explicit leaf."""
    ask = asked(model, pixels, contrast=2)
    site = "blocks.1.hook_resid_pre"
    scores, values, gradients = ask.gradients([site])
    out = bare(pixels, output_hidden_states=True)
    score = out.logits[:, 1] - out.logits[:, 2]
    (expected,) = torch.autograd.grad(score.sum(), out.hidden_states[1])
    testing.assert_close(gradients[site], expected, 1e-10)
    testing.assert_close(values[site], out.hidden_states[1].detach(), 1e-12)
    testing.assert_close(scores, score.detach(), 1e-12)
    assert ask.cost.forwards == 5 and ask.cost.backwards == 5
    shifted = ask.gradients([site], edits=[edits.scale(site, 0.5)])[1][site]
    testing.assert_close(shifted, 0.5 * values[site], 1e-12)


def test_a_site_without_gradient_is_an_error_and_one_of_two_is_zero(model, pixels):
    """N9: the last block's output holds gradient at CLS alone; what nothing reads has none."""
    ask = asked(model, pixels)
    with pytest.raises(FailedCheck, match="nothing reads them"):
        ask.gradients(["blocks.0.hook_resid_pre"], edits=[edits.zero("blocks.2.hook_resid_post")])
    _, _, gradients = ask.gradients(["blocks.2.hook_resid_post"])
    gradient = gradients["blocks.2.hook_resid_post"]
    assert gradient[:, 0].any() and not gradient[:, 1:].any()


def test_activation_times_gradient_of_a_stream_read_through_a_norm_is_zero(model, pixels):
    """The trap: LayerNorm does not change when its input grows."""
    ask = asked(model, pixels)
    _, values, gradients = ask.gradients(["blocks.2.hook_resid_pre", "blocks.2.ln1.hook_normalized"])
    products = {site: (values[site] * gradients[site]).sum(-1)[:, 1:].abs().max() for site in values}
    stream, normal = products.values()
    assert float(stream) < 1e-4 * float(normal)


def test_layers_and_generators(model, pixels):
    ask = asked(model, pixels)
    assert (ask.layer(-1), ask.layer(0), ask.n_layers, ask.n_prefix, ask.grid, ask.n_patches) == (2, 0, 3, 1, (3, 3), 9)
    for wrong in (3, -4, 17):
        with pytest.raises(OutOfRange, match="layer"):
            ask.layer(wrong)
    draws = [torch.rand(3, generator=ask.generator(image, "x")) for image in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    game = ask.game("zero")
    testing.assert_close(game.full(), ask.scores(), 1e-12)


# methods as values


def test_a_method_of_ones_own(model, pixels):
    found = attribute(model, pixels, Given(), target=1, progress=False)
    assert found.maps[0].ravel().tolist() == list(range(9)), "patches row by row"
    with pytest.raises(UnknownName, match="given"):
        _ = found.method
    assert maps_of(Given(), asked(model, pixels)).shape == (5, 9)


def test_names():
    assert method("act_x_grad") is ActTimesGrad and method(ActTimesGrad) is ActTimesGrad
    assert mechvis.attribution.method("act_x_grad") is ActTimesGrad, "the function, not the module of that name"
    with pytest.raises(UnknownName, match="grad_cam"):
        method("gradcam")
    with pytest.raises(UnknownName, match="layer"):
        ActTimesGrad.of({"layers": 1})
    for name in METHODS:
        kind = method(name)
        assert name == kind.NAME and isinstance(kind().CLAIMS, Claims) and kind.__doc__


# errors


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("wide", ShapeMismatch, r"maps \[5, 8\], not \[image patch\] = \[5, 9\]"),
        ("nan", NotFinite, "image 4 holds NaN or Inf, the first at patch 4"),
        ("flat", FailedCheck, "same number everywhere"),
    ],
)
def test_bad_maps(model, pixels, kind, error, text):
    with pytest.raises(error, match=text):
        attribute(model, pixels, Given(kind=kind), target=1, progress=False)


def test_one_flat_map_is_a_caveat(model, pixels):
    found = attribute(model, pixels, Given(kind="one flat"), target=1, progress=False)
    assert found.facts["flat_maps"] == 1
    assert any("1 of 5 maps are the same number" in line for line in found.caveats)
    with pytest.raises(NotFinite, match="image 14 holds"):
        checked(Given(kind="nan").maps(asked(model, pixels)), asked(model, pixels), 10)


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"method": "gradcam"}, UnknownName, "attribution method"),
        ({"method": 3}, BadData, "method is a name or a method"),
        ({"target": 9}, OutOfRange, "9"),
        ({"target": "true"}, BadData, "needs labels"),
        ({"target": [1, 2]}, ShapeMismatch, "2 classes for 5 images"),
        ({"target": 1, "contrast": 1}, BadData, "same class"),
        ({"form": "log"}, UnknownName, "form of a score"),
        ({"example_ids": [1, 2]}, ShapeMismatch, "one whole number per image"),
        ({"example_ids": [0.5] * 5}, ShapeMismatch, "one whole number per image"),
        ({"batch_size": 0}, OutOfRange, "batch_size=0"),
        ({"rows_at_once": 0}, OutOfRange, "rows_at_once=0"),
    ],
)
def test_bad_input(model, pixels, more, error, text):
    with pytest.raises(error, match=text):
        attribute(model, pixels, progress=False, **more)


def test_bad_pixels(model, pixels):
    with pytest.raises(BadData, match="no images"):
        attribute(model, pixels[:0], progress=False)
    with pytest.raises(mechvis.errors.MechvisError, match="NaN"):
        attribute(model, pixels * float("nan"), progress=False)
