"""The rest of a model from the codes of concepts: with everything kept it is the model, gradients included."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, UnknownName
from probes.concepts import activations, factorise, tail_of
from probes.concepts.tail import class_of, pixels_of, reading, start_layer

F2_SITE = "blocks.0.hook_resid_post"
SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(160, seed=21, correlation=0.5)


@pytest.fixture(scope="module")
def shortcut():
    return testing.shortcut_vit(), testing.shortcut_images(120).image_set()


def test_the_tail_with_everything_kept_is_the_model(shortcut):
    model, images = shortcut
    rows, before, logits = activations(model, images, F2_SITE)
    concepts = factorise(rows.flatten(0, 1).numpy(), "semi_nmf", 3)
    tail, codes = tail_of(model, F2_SITE, "a", concepts, rows, before, residual="keep")
    np.testing.assert_allclose(tail.logits(codes, torch.arange(len(codes))), logits, atol=1e-10)
    bare, _ = tail_of(model, F2_SITE, "a", concepts, rows, before)
    assert (bare.logits(codes, torch.arange(len(codes))) - logits).abs().max() > 0.1, "concepts leave something over"


@pytest.mark.parametrize(
    "family", ["vit", "dinov2-registers-classifier", "beit-mean", "siglip-classifier", "clip-classifier"]
)
def test_the_tail_of_every_read_out(family):
    """CLS, registers, the mean of the patches, attention pooling, a projection before the head."""
    model = mechvis.load(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input(family, n=6, dtype=torch.float64)
    for site in ("blocks.0.hook_resid_post", "hook_pooled"):
        rows, before, logits = activations(model, pixels, site)
        concepts = factorise(rows.flatten(0, 1).numpy(), "semi_nmf", 3)
        tail, codes = tail_of(model, site, 0, concepts, rows, before, residual="keep")
        ours = tail.logits(codes, torch.arange(6)).detach()
        np.testing.assert_allclose(ours, logits, atol=1e-8, err_msg=site)


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pre", SITE, "hook_pooled"])
def test_the_tail_of_a_trained_model(model, images, site):
    rows, before, logits = activations(model, images[:6], site)
    concepts = factorise(rows.flatten(0, 1).numpy(), "pca", 4)
    tail, codes = tail_of(model, site, 2, concepts, rows, before, residual="keep")
    np.testing.assert_allclose(tail(codes, torch.arange(6)).detach(), logits[:, 2], atol=1e-4)
    # Rows may come in any order, each with the image it belongs to.
    some = torch.tensor([4, 1])
    np.testing.assert_allclose(tail(codes[some], some).detach(), logits[some, 2], atol=1e-4)


def test_the_tail_has_the_gradient_of_the_model(shortcut):
    model, images = shortcut
    rows, before, _ = activations(model, images[:5], F2_SITE)
    concepts = factorise(rows.flatten(0, 1).numpy(), "semi_nmf", 3)
    tail, codes = tail_of(model, F2_SITE, "b", concepts, rows, before, residual="keep")
    codes.requires_grad_(True)
    slope = torch.autograd.grad(tail(codes, torch.arange(5)).sum(), codes)[0]
    run = model.run(pixels_of(model, images[:5]), capture=[F2_SITE], grad=True)
    direct = torch.autograd.grad(run.output[:, 1].sum(), run.cache[F2_SITE])[0][:, 1:]
    np.testing.assert_allclose(slope, direct @ torch.from_numpy(concepts.bank.T), atol=1e-10)


def test_the_mean_of_the_prefix_takes_the_shortcut_away(model):
    """scenes-vit's background goes into CLS in the first block: with the mean CLS in its place the other tokens name
    the shape. So `prefix='keep'` leaves most of the background in every answer, which is why a caveat says so."""
    shown = mechvis.data.scenes(120, seed=55, group="conflicting")
    rows, before, logits = activations(model, shown, F2_SITE)
    concepts = factorise(rows.flatten(0, 1).numpy()[::7], "pca", 4)
    tail, codes = tail_of(model, F2_SITE, 0, concepts, rows, before, residual="keep", prefix="mean")
    with torch.no_grad():
        told = tail.logits(codes, torch.arange(len(codes))).argmax(-1)
    right = (logits.argmax(-1).numpy() == shown.labels).mean()
    assert right < 0.75 and (told.numpy() == shown.labels).mean() > 0.9


def test_sites_that_no_tail_can_start_from(model):
    assert start_layer(model, SITE) == 2 and start_layer(model, "hook_pooled") is None
    with pytest.raises(BadData, match=r"reads \[0\] of its tokens only.*blocks.2"):
        start_layer(model, "blocks.3.hook_resid_post")
    for site in ("hook_embed", "blocks.0.hook_resid_pre", "blocks.1.mlp.hook_post", "blocks.9.hook_resid_pre"):
        with pytest.raises(BadData, match="is none of them"):
            start_layer(model, site)
    with pytest.raises(UnknownName, match="star"):
        class_of(model, "stars")
    with pytest.raises(OutOfRange, match="class 8 of 8"):
        class_of(model, 8)
    with pytest.raises(UnknownName, match="margin"):
        reading("lead", 0)
    logits = torch.tensor([[1.0, 4.0, 2.0]])
    assert reading("margin", 1)(logits).tolist() == [2.0] and reading("margin", 0)(logits).tolist() == [-3.0]
    assert reading("probability", 0)(logits).item() == pytest.approx(logits.softmax(-1)[0, 0].item())
