"""The face, and captum on it: equal to captum on the bare model, right under repeated images, loud where wrong."""

import sys
import warnings
from dataclasses import replace

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from mechvis import edits
from mechvis.clip import ZeroShotHead
from mechvis.errors import (
    BadData,
    FailedCheck,
    MissingPackage,
    MixedDevices,
    NotFinite,
    OutOfRange,
    RefusedMethod,
    ShapeMismatch,
    TrainMode,
    UnknownName,
    UnknownSite,
)
from mechvis.hooked import HookedViT
from mechvis.interop.captum import METHODS, REFUSED, attribute
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess

Z = "blocks.1.attn.hook_z"
IDS = torch.arange(3)


@pytest.fixture(scope="module")
def model():
    return wrap(rand_vit(), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", dtype=torch.float64)


@pytest.fixture(scope="module")
def source(model):
    return model.run(tiny_input("vit", seed=7, dtype=torch.float64), capture="*hook_z").cache


class Logits(nn.Module):
    """What people write around a Hugging Face model for captum."""

    def __init__(self, bare):
        super().__init__()
        self.bare = bare

    def forward(self, pixels):
        return self.bare(pixels).logits


# without edits: captum on the bare model, bit for bit


@pytest.mark.parametrize("family", ["vit", "deit", "clip-classifier"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attributions_of_the_face_are_those_of_the_bare_model(family, attention):
    bare, pixels = tiny(family, attention=attention), tiny_input(family)
    model = wrap(bare, preprocess=tiny_preprocess())
    face, theirs = model.face(), Logits(bare)
    windows = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}
    patches = {"feature_mask": face.patch_mask, "perturbations_per_eval": 4}
    for name, options in (
        ("saliency", {}),
        ("input_x_gradient", {}),
        ("integrated_gradients", {"n_steps": 20}),
        ("occlusion", windows),
        ("feature_ablation", patches),
    ):
        method = getattr(captum.attr, METHODS[name].cls)
        given = pixels.clone().requires_grad_()
        expected = method(theirs).attribute(given, target=3, **options).detach()
        assert torch.equal(method(face).attribute(given, target=3, **options).detach(), expected), name
        assert torch.equal(attribute(face, pixels, name, target=3, **options), expected), name


def test_a_zero_shot_classifier_has_a_face(pixels):
    clip = wrap(tiny("clip", dtype=torch.float64), preprocess=tiny_preprocess())
    prompts = torch.randn(4, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    head = ZeroShotHead(prompts / prompts.norm(dim=-1, keepdim=True), clip.logit_scale.detach())
    model = HookedViT(clip.bare, replace(clip.vision.parts, head=head, class_names=tuple("abcd")))

    def theirs(pixels):
        embedding = clip.bare.get_image_features(pixels).pooler_output
        return embedding / embedding.norm(dim=-1, keepdim=True) @ head.prompts.T * head.scale

    expected = captum.attr.IntegratedGradients(theirs).attribute(pixels, target=2)
    assert torch.equal(attribute(model.face("c"), pixels), expected)


# with edits: every image on its own is the truth


def alone(model, method, pixels, edit_of, output, **options):
    """Attributions one image at a time, by captum and a context, without a face."""
    rows = []
    for i in range(len(pixels)):
        with model.edited(edit_of(i)):
            given = pixels[i : i + 1].clone().requires_grad_()
            rows.append(method(lambda x, i=i: output(model(x), i)).attribute(given, **options).detach())
    return torch.cat(rows)


def one_class(logits, i):
    return logits[:, 3:4]


CASES = {
    "patch": (lambda s: edits.patch(Z, s, heads=[1]), lambda s, i: [edits.patch(Z, s, [i], heads=[1])]),
    "patch of chosen rows": (
        lambda s: edits.patch(Z, s, [2, 0, 1]),
        lambda s, i: [edits.patch(Z, s, [(2, 0, 1)[i]])],
    ),
    "one source for all": (lambda s: edits.patch(Z, s, 1), lambda s, i: [edits.patch(Z, s, [1])]),
    "resample": (
        lambda s: edits.resample(Z, s, seed=3),
        lambda s, i: [edits.patch(Z, s, [edits.resample(Z, s, seed=3).source_rows[i]])],
    ),
    "rows": (
        lambda s: edits.zero(Z, rows=[0, 2], heads=[0, 3]),
        lambda s, i: [edits.zero(Z, heads=[0, 3])] if i != 1 else [],
    ),
    "token mask": (
        lambda s: edits.scale(Z, 0.3, tokens=torch.arange(30).reshape(3, 10) % 4 == 0),
        lambda s, i: [edits.scale(Z, 0.3, tokens=torch.arange(30).reshape(3, 10)[i] % 4 == 0)],
    ),
    "vectors": (
        lambda s: edits.add(Z, s[Z][:, 2:3], 0.5),
        lambda s, i: [edits.add(Z, s[Z][i, 2:3], 0.5)],
    ),
    "no rows": (lambda s: edits.zero(Z, heads=[2]), lambda s, i: [edits.zero(Z, heads=[2])]),
}

METHODS_THAT_REPEAT = {
    "IntegratedGradients": (captum.attr.IntegratedGradients, {"n_steps": 5}),
    "NoiseTunnel": (
        lambda face: captum.attr.NoiseTunnel(captum.attr.Saliency(face)),
        {"nt_samples": 3, "stdevs": 0.0, "nt_samples_batch_size": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["IntegratedGradients", "NoiseTunnel", "FeatureAblation"])
def test_edits_meet_the_right_images_however_they_are_repeated(model, pixels, source, case, name):
    together, single = CASES[case]
    face = model.face(3, edits=together(source))
    if name == "FeatureAblation":
        method, options = captum.attr.FeatureAblation, {"feature_mask": face.patch_mask, "perturbations_per_eval": 4}
    else:
        method, options = METHODS_THAT_REPEAT[name]
    expected = alone(model, method, pixels, lambda i: single(source, i), one_class, **options)
    given = pixels.clone().requires_grad_()
    found = method(face).attribute(given, additional_forward_args=(IDS,), **options).detach()
    assert_close(found, expected, 1e-10)
    swapped = method(face).attribute(given[[2, 0]], additional_forward_args=(torch.tensor([2, 0]),), **options)
    assert_close(swapped, expected[[2, 0]], 1e-10)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "shapley_values"])
def test_every_method_gives_each_image_its_own(model, pixels, source, name):
    face = model.face(3, edits=edits.patch(Z, source))
    options = {"perturbations_per_eval": 4} if METHODS[name].by_feature or name == "occlusion" else {}
    options |= {"n_samples": 60} if name in ("lime", "kernel_shap") else {}
    with assert_untouched(model):
        found = attribute(face, pixels, name, **options)
        again = attribute(face, pixels, name, **options)
        shuffled = attribute(face, pixels[[2, 0]], name, example_id=torch.tensor([2, 0]), **options)
    assert torch.equal(found, again)
    assert_close(shuffled, found[[2, 0]], 1e-9)
    unedited = attribute(model.face(3), pixels, name, **options)
    assert float((found - unedited).abs().max()) > 1e-3 * float(found.abs().max())


def test_classes_of_single_examples(model, pixels):
    target, contrast = torch.tensor([1, 5, 0]), [2, 2, 7]
    face = model.face("logit_diff", target=target, contrast=contrast)
    assert face.needs_ids and face.columns == ("logit_diff",)
    logits = model.run(pixels).logits
    expected = logits.gather(1, target[:, None]) - logits.gather(1, torch.tensor(contrast)[:, None])
    with torch.no_grad():
        assert torch.equal(face(pixels, IDS), expected)
        order = torch.tensor([1, 1, 0, 2])
        assert_close(face(pixels[order], order), expected[order], 1e-12)

    def difference(logits, i):
        return logits[:, [target[i]]] - logits[:, [contrast[i]]]

    truth = alone(model, captum.attr.IntegratedGradients, pixels, lambda i: [], difference, n_steps=5)
    assert_close(attribute(face, pixels, n_steps=5, tolerance=1.0), truth, 1e-10)


def test_ids_are_asked_for_and_checked(model, pixels, source):
    face = model.face(3, edits=edits.patch(Z, source))
    with pytest.raises(BadData, match="say which example each row is"):
        face(pixels)
    with pytest.raises(ShapeMismatch, match="one whole number per row"):
        face(pixels, torch.arange(2))
    with pytest.raises(OutOfRange, match="has examples 0 to 2"):
        face(pixels, torch.tensor([0, 1, 3]))
    with pytest.raises(BadData, match="counted from 0"):
        model.face(3, edits=edits.zero(Z, rows=[-1]))
    with pytest.raises(OutOfRange, match="classes has examples 0 to 1"):
        model.face("logit_diff", target=[1, 2], contrast=3)(pixels, IDS)


# what comes out


def test_outputs(model, pixels):
    logits = model.run(pixels).logits
    with torch.no_grad():
        assert torch.equal(model.face()(pixels), logits) and torch.equal(model.face("logits")(pixels), logits)
        assert torch.equal(model.face(5)(pixels), logits[:, 5:6])
        assert torch.equal(model.face("LABEL_5")(pixels), logits[:, 5:6])
        assert torch.equal(model.face([5, "LABEL_0"])(pixels), logits[:, [5, 0]])
        assert torch.equal(
            model.face("logit_diff", target="LABEL_1", contrast=2)(pixels), logits[:, 1:2] - logits[:, 2:3]
        )
        assert torch.equal(model.face(torch.sigmoid)(pixels), logits.sigmoid())
        assert torch.equal(model.face(lambda logits: logits.amax(1))(pixels), logits.amax(1, keepdim=True))
        headless = wrap(tiny("vit-base", dtype=torch.float64), preprocess=tiny_preprocess())
        assert torch.equal(headless.face()(pixels), headless.run(pixels).embedding)
        assert torch.equal(headless.face(11)(pixels), headless.run(pixels).embedding[:, 11:12])
    assert model.face([5, "LABEL_0"]).columns == ("LABEL_5", "LABEL_0")
    assert "LABEL_5" in repr(model.face(5)) and "1 edits" in repr(model.face(5, edits=[edits.zero(Z)]))


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"output": 8}, OutOfRange, "class 8 does not exist"),
        ({"output": "cat"}, UnknownName, "Nearest"),
        ({"output": []}, BadData, "selects no class"),
        ({"output": 2.5}, TypeError, "float"),
        ({"output": "logit_diff", "target": 1}, BadData, "contrast="),
        ({"output": 3, "target": 1}, BadData, "logit_diff"),
        ({"output": "logit_diff", "target": [1, 4], "contrast": 4}, BadData, "the same class"),
        ({"output": "logit_diff", "target": [1, 4], "contrast": [0, 1, 2]}, ShapeMismatch, "target names 2 classes"),
        ({"edits": [edits.zero("blocks.1.attn.hook_zz")]}, UnknownSite, "Nearest"),
    ],
)
def test_bad_faces(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.face(**arguments)


def test_bad_inputs(model, pixels):
    face = model.face(3)
    with pytest.raises(ShapeMismatch, match=r"\[image channel height width\]"):
        face(pixels[0])
    with pytest.raises(MixedDevices, match="float64"):
        face(pixels.float())
    with pytest.raises(ShapeMismatch, match="must return"), torch.no_grad():
        model.face(lambda logits: logits.sum())(pixels)
    with pytest.raises(BadData, match="text tower"):
        wrap(tiny("clip-text")).face()
    with pytest.raises(BadData, match="move the model"):
        face.to("cpu")


def test_train_mode_is_refused(model, pixels):
    bare = rand_vit()
    trained = wrap(bare, preprocess=tiny_preprocess())
    face = trained.face(3)
    assert face.eval() is face and not face.training
    with pytest.raises(TrainMode):
        face.train()
    bare.vit.layers[1].train()
    with pytest.raises(TrainMode, match=r"vit\.layers\.1"):
        face(pixels)
    with pytest.raises(TrainMode):
        trained.face(3)


def test_edits_around_a_face_are_not_its_own(model, pixels):
    face, edited = model.face(3), model.face(3, edits=edits.zero(Z, heads=[1]))
    expected = face(pixels), edited(pixels)
    with model.edited([edits.zero("blocks.0.attn.hook_z")]):
        model(pixels)
        assert torch.equal(face(pixels), expected[0]) and torch.equal(edited(pixels), expected[1])


def test_gradients_flow_with_frozen_weights_and_stay_out_of_them(pixels):
    bare = rand_vit()
    bare.requires_grad_(False)
    frozen = wrap(bare, preprocess=tiny_preprocess())
    assert attribute(frozen.face(3), pixels, "saliency").abs().sum() > 0
    trainable = wrap(rand_vit(), preprocess=tiny_preprocess())
    with assert_untouched(trainable):
        attribute(trainable.face(3), pixels, "integrated_gradients", n_steps=5, tolerance=1.0)
    assert not pixels.requires_grad


# geometry


def test_patches_of_pixels_are_the_tokens(model, pixels):
    face = model.face(3)
    assert face.grid == (3, 3) and face.prefix_tokens == ("cls",) and face.patch_size == (4, 4)
    assert face.preprocess is model.preprocess
    mask = face.patch_mask
    assert mask.shape == (1, 1, 12, 12) and torch.equal(mask.unique(), torch.arange(9))
    clean = model.run(pixels, capture="hook_embed").cache["hook_embed"]
    for patch in range(9):
        changed = model.run(pixels + (mask == patch), capture="hook_embed").cache["hook_embed"]
        tokens = (changed != clean).any(-1).any(0).nonzero().flatten().tolist()
        assert tokens == [len(face.prefix_tokens) + patch]
    maps = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    tiles = maps.unflatten(2, (3, 4)).unflatten(4, (3, 4))
    assert_close(face.to_patches(maps), tiles.sum((1, 3, 5)), 1e-12)
    assert_close(face.to_patches(maps, "mean"), tiles.mean((1, 3, 5)), 1e-12)
    with pytest.raises(ShapeMismatch):
        face.to_patches(maps[0])
    with pytest.raises(UnknownName):
        face.to_patches(maps, "median")


def test_pixels_beyond_the_last_whole_patch():
    model = wrap(tiny("vit", image_size=14), preprocess=tiny_preprocess(14))
    face = model.face(3)
    assert face.grid == (3, 3) and torch.equal(face.patch_mask.unique(), torch.arange(9))
    assert int(face.patch_mask[0, 0, 13, 13]) == 8 and int((face.patch_mask == 8).sum()) == 36
    found = attribute(face, tiny_input("vit", n=1).repeat(1, 1, 2, 2)[:, :, :14, :14], "feature_ablation")
    assert face.to_patches(found, "mean").shape == (1, 3, 3)


# refusals


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_go_wrong_on_transformers_are_refused(model, pixels, name):
    with pytest.raises(RefusedMethod, match=f"{name} is refused") as caught:
        attribute(model.face(3), pixels, name)
    assert REFUSED[name] in str(caught.value)


@pytest.mark.parametrize("cls", ["DeepLift", "LayerGradCam", "LayerIntegratedGradients", "NeuronGradient", "LRP"])
def test_they_are_refused_by_class_too(model, pixels, cls):
    with pytest.raises(RefusedMethod):
        attribute(model.face(3), pixels, getattr(captum.attr, cls))
    by_class = attribute(model.face(3), pixels, captum.attr.Saliency)
    assert torch.equal(by_class, attribute(model.face(3), pixels, "saliency"))


@pytest.mark.parametrize("cls", ["DeepLift", "GuidedBackprop", "Deconvolution", "LRP"])
def test_used_directly_on_a_face_they_fail_and_leave_nothing(model, pixels, cls):
    face = model.face(3)
    with (
        assert_untouched(model),
        warnings.catch_warnings(),
        pytest.raises(RefusedMethod, match="no modules inside"),
    ):
        warnings.simplefilter("ignore")  # captum says that it sets hooks
        getattr(captum.attr, cls)(face).attribute(pixels, target=0)
    assert not face._forward_hooks and not face._forward_pre_hooks and not face._backward_hooks


def test_the_reasons_for_the_refusals_are_facts(pixels):
    """On the bare model: DeepLift is Input x Gradient, guided backprop the gradient, Grad-CAM has one column."""
    bare = rand_vit()
    theirs = Logits(bare)
    given = pixels.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deep, gap = captum.attr.DeepLift(theirs).attribute(given, target=3, return_convergence_delta=True)
        guided = captum.attr.GuidedBackprop(theirs).attribute(given, target=3)
        cam = captum.attr.LayerGradCam(theirs, bare.vit.layers[1]).attribute(given, target=3)
    assert_close(deep.detach(), captum.attr.InputXGradient(theirs).attribute(given, target=3).detach(), 1e-12)
    assert gap.abs().max() > 0.1
    assert torch.equal(guided, captum.attr.Saliency(theirs).attribute(given, target=3, abs=False))
    assert cam.shape == (3, 1, 16)
    with pytest.raises(TypeError, match=r"LayerNorm.* no rule"):
        captum.attr.LRP(theirs).attribute(given, target=3)


# checks of what comes out


def test_complete_methods_are_held_to_it(model, pixels):
    face = model.face(3)
    with pytest.raises(FailedCheck, match=r"largest gap is .*n_steps="):
        attribute(face, pixels, "integrated_gradients", n_steps=1)
    found = attribute(face, pixels, "integrated_gradients", n_steps=64, tolerance=1e-6)
    baseline = torch.full_like(pixels, 0.3)
    also = attribute(face, pixels, "integrated_gradients", n_steps=64, tolerance=1e-6, baselines=baseline)
    with torch.no_grad():
        start = face(torch.zeros_like(pixels)), face(baseline)
        assert_close(found.sum((1, 2, 3)), (face(pixels) - start[0])[:, 0], 1e-6)
        assert_close(also.sum((1, 2, 3)), (face(pixels) - start[1])[:, 0], 1e-6)
    sampled = attribute(face, pixels, "shapley_value_sampling", n_samples=3, tolerance=1e-6)
    total = face.to_patches(sampled, "mean").sum((1, 2))
    assert_close(total.double(), (face(pixels) - start[0])[:, 0].detach(), 1e-6)  # captum sums in float32


def test_shapley_values_of_four_patches():
    model = wrap(tiny("vit", image_size=8, dtype=torch.float64), preprocess=tiny_preprocess(8))
    pixels = tiny_input("vit", dtype=torch.float64)[:, :, :8, :8]
    face = model.face(3)
    exact = attribute(
        face, pixels, "shapley_values", perturbations_per_eval=3, tolerance=1e-6
    )  # captum sums in float32
    assert torch.equal(exact.amax((1,)), exact.amin((1,)))  # one number for all pixels of a patch
    assert face.to_patches(exact, "mean").shape == (3, 2, 2)


def test_zero_and_broken_attributions_are_said(model, pixels):
    cut = model.face(3, edits=edits.zero("blocks.2.hook_resid_post"))
    with pytest.raises(FailedCheck, match="zero everywhere"):
        attribute(cut, pixels, "input_x_gradient")
    with pytest.raises(NotFinite, match=r"image\(s\) \[0, 1, 2\]"):
        attribute(model.face(lambda logits: logits[:, 0] * float("nan")), pixels, "saliency")
    with pytest.raises(FailedCheck, match="regularisation"):
        attribute(model.face(lambda logits: logits[:, 0] * 1e-3), pixels, "lime", n_samples=20)


def test_random_numbers_come_from_the_seed(model, pixels):
    face = model.face(3)
    state = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    one, other = (attribute(face, pixels, "noise_tunnel", of="saliency", seed=s, stdevs=0.5) for s in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(attribute(face, pixels, "noise_tunnel", of="saliency", seed=0, stdevs=0.5), one)
    assert torch.equal(attribute(face, pixels[1:2], "noise_tunnel", of="saliency", seed=0, stdevs=0.5), one[1:2])
    assert torch.equal(torch.get_rng_state(), state[0]) and repr(np.random.get_state()) == state[1]  # noqa: NPY002


def test_what_is_asked_wrongly(model, pixels, monkeypatch):
    face = model.face()
    with pytest.raises(BadData, match=r"8 columns \(LABEL_0, .*target="):
        attribute(face, pixels)
    with pytest.raises(OutOfRange):
        attribute(face, pixels, target=8)
    with pytest.raises(UnknownName, match="unknown column"):
        attribute(face, pixels, target="LABEL_9")
    with pytest.raises(ShapeMismatch, match="2 columns for 3 images"):
        attribute(face, pixels, target=[1, 2])
    with pytest.raises(UnknownName, match=r"unknown method 'integrated_gradient'\. Nearest: integrated_gradients"):
        attribute(face, pixels, "integrated_gradient", target=1)
    with pytest.raises(UnknownName, match="noise_tunnel to wrap"):
        attribute(face, pixels, "noise_tunnel", target=1, of="occlusion")
    with pytest.raises(BadData, match="example_id="):
        attribute(face, pixels, target=1, additional_forward_args=(IDS,))
    with pytest.raises(BadData, match=r"model\.face"):
        attribute(model, pixels, target=1)
    named = attribute(face, pixels, "saliency", target="LABEL_2")
    assert torch.equal(named, attribute(face, pixels, "saliency", target=2))
    each = attribute(face, pixels, "saliency", target=["LABEL_2", 0, "LABEL_7"])
    assert torch.equal(each[0], named[0]) and not torch.equal(each[1], named[1])
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingPackage, match=r"mechvis\[captum\]"):
        attribute(face, pixels, target=1)
