"""What must hold for every attribution method, whoever wrote it: one test over all names.

Shapes and finite numbers on every kind of model; maps that do not depend on the batch; a model left as it was; exact
token-permutation symmetry (patches moved together with their position embeddings are the same model); claims that are
true (a signed method turns its sign with the contrast, a class-blind one gives every class the same map, a complete one
adds up).
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange

import mechvis
from mechvis import testing
from mechvis.attribution import METHODS, attribute, method
from mechvis.errors import MechvisError

DOUBLE = torch.float64

QUICK = {
    "layer_ig": {"steps": 4},
    "input_ig": {"steps": 8},
    "smooth_grad": {"samples": 3},
    "gradient_shap": {"samples": 3},
    "iia": {"outer": 2, "inner": 2},
    "rise": {"n": 40},
    "hsic": {"n": 40},
    "sobol": {"n": 8},
    "kernel_shap": {"n": 100},
    "shapley": {"pairs": 4},
    "mhe": {"iterations": 60},
    "iba": {"steps": 4, "samples": 2},
    "extremal": {"steps": 5},
    "h_sets": {"path": 2},
}
"""Settings under which slow methods are tried; a method that lacks one of them is tried with its defaults."""

NO_SYMMETRY = {
    "random": "noise belongs to places",
    "centre": "a prior on places",
    "extremal": "its masks are smooth on the grid",
}
"""Methods whose map may change when patches move with their positions, and why; besides these every method that draws
random numbers."""

FAMILIES = ["deit-distilled", "dinov2-registers-classifier", "dinov3", "clip", "siglip", "beit-mean"]


def chosen(name):
    kind = method(name)
    known = kind.__dataclass_fields__
    return kind(**{key: value for key, value in QUICK.get(name, {}).items() if key in known})


@functools.cache
def wrapped(family):
    if family in ("clip", "siglip"):
        clip = mechvis.load(
            testing.tiny(family, dtype=DOUBLE), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
        )
        return clip.classifier(["star", "circle", "square"])
    bare = testing.rand_vit() if family == "vit" else testing.tiny(family, dtype=DOUBLE)
    return mechvis.load(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def model():
    return wrapped("vit")


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", dtype=DOUBLE)


def maps(model, pixels, name, **more):
    return attribute(model, pixels, chosen(name), progress=False, **more).maps


def close(one, other, tolerance=1e-5):
    return np.abs(one - other).max() <= tolerance * max(np.abs(other).max(), 1e-30)


@pytest.mark.parametrize("name", METHODS)
def test_shape_finite_and_the_model_untouched(name, model, pixels):
    with testing.assert_untouched(model):
        found = attribute(model, pixels, chosen(name), target=[1, 2, 0], progress=False)
    assert found.maps.shape == (3, 3, 3)
    assert np.isfinite(found.maps).all() and np.abs(found.maps).max() > 0
    assert found.facts["method"] == name == method(name).NAME
    assert found.method == chosen(name), "the settings come back"


@pytest.mark.parametrize("name", METHODS)
def test_an_image_does_not_see_its_company(name, model, pixels):
    together = maps(model, pixels, name, target=3)
    alone = maps(model, pixels[1:2], name, target=3, example_ids=[1])
    assert close(alone[0], together[1])
    turned = maps(model, pixels.flip(0), name, target=3, example_ids=[2, 1, 0], rows_at_once=7)
    assert close(turned[::-1], together)


@pytest.mark.parametrize("name", METHODS)
def test_claims_about_the_target(name, model, pixels):
    claims = chosen(name).CLAIMS
    one, other = (maps(model, pixels, name, target=target) for target in (1, 2))
    if claims.class_specific:
        assert not close(one, other)
    else:
        assert close(one, other)
    if claims.signed:
        forth = maps(model, pixels, name, target=1, contrast=2)
        back = maps(model, pixels, name, target=2, contrast=1)
        assert close(forth, -back), "phi(a vs b) = -phi(b vs a)"
        assert (forth < 0).any() and (forth > 0).any()
    if not claims.signed and name not in NO_SYMMETRY:
        assert (one >= -1e-12).all() or claims.reads == "outputs"


@pytest.mark.parametrize("name", METHODS)
def test_seeds(name, model, pixels):
    first, again, other = (maps(model, pixels, name, target=1, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) != chosen(name).CLAIMS.random


@pytest.mark.parametrize("name", [n for n in METHODS if n not in NO_SYMMETRY and not chosen(n).CLAIMS.random])
def test_patches_that_move_with_their_positions(name, model, pixels):
    order = torch.tensor([3, 7, 0, 8, 1, 5, 2, 6, 4])
    bare = testing.rand_vit()
    with torch.no_grad():
        positions = bare.vit.embeddings.position_embeddings
        positions[0, 1:] = positions[0, 1:][order].clone()
    moved_model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    patches = rearrange(pixels, "i c (d h) (a w) -> i (d a) c h w", d=3, a=3)
    moved = rearrange(patches[:, order], "i (d a) c h w -> i c (d h) (a w)", d=3)
    testing.assert_close(moved_model.run(moved).logits, model.run(pixels).logits, 1e-12, "the same model")
    here, there = maps(model, pixels, name, target=1), maps(moved_model, moved, name, target=1)
    assert close(there.reshape(3, 9), here.reshape(3, 9)[:, order.numpy()])


@pytest.mark.parametrize("name", METHODS)
def test_completeness_is_kept_where_it_is_claimed(name, model, pixels):
    found = attribute(model, pixels, chosen(name), target=1, contrast=2, progress=False)
    assert ("gap" in found.table.columns) == found.facts["claims"]["complete"]
    if found.facts["claims"]["complete"]:
        gap = (found.table["gap"] * found.table["total"].abs()).to_numpy()
        assert (gap <= 0.05 * np.abs(found.table["score"].to_numpy()).max()).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_on_every_kind_of_model(name, family):
    model = wrapped(family)
    pixels = testing.tiny_input("siglip" if family == "siglip" else "vit", n=4, dtype=DOUBLE)
    try:
        with testing.assert_untouched(model):
            found = attribute(model, pixels, chosen(name), target=[1, 2, 1, 2], progress=False)
    except MechvisError as error:
        assert "this model" in str(error) or family in str(error), "a refusal says what of the model is in the way"
        pytest.skip(f"refused: {error}")
    assert found.maps.shape == (4, 3, 3) and np.isfinite(found.maps).all()
    some = attribute(model, pixels[1:3], chosen(name), target=[2, 1], example_ids=[1, 2], progress=False)
    assert close(some.maps, found.maps[1:3])


def test_method_settings_are_values():
    for name in METHODS:
        value = chosen(name)
        assert method(name).of(value.settings()) == value
        assert replace(value) == value and hash(value) == hash(replace(value))
