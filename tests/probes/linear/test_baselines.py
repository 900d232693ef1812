"""Baselines: a random copy that leaves the model alone, raw pixels, the commonest class."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.testing import assert_untouched, shortcut_vit, tiny, tiny_input, tiny_preprocess
from probes.linear import pixel_features, random_copy
from probes.linear.baselines import majority_accuracy


def wrapped(family):
    return mechvis.load(tiny(family), preprocess=tiny_preprocess())


@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "siglip-vision", "clip"])
@pytest.mark.parametrize("how", ["init", "shuffle"])
def test_random_copies(family, how):
    model = wrapped(family)
    tower = getattr(model, "vision", model)
    state = torch.get_rng_state()
    with assert_untouched(tower):
        other = random_copy(tower, seed=1, how=how)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.graph.names[:5] == tower.graph.names[:5] and other.cfg.n_layers == tower.cfg.n_layers
    own, theirs = dict(tower.bare.named_parameters()), dict(other.bare.named_parameters())
    assert own.keys() == theirs.keys()
    for name, parameter in own.items():
        if parameter.ndim > 1:
            assert not torch.equal(parameter, theirs[name]), name
            if how == "shuffle":
                assert torch.equal(parameter.flatten().sort().values, theirs[name].flatten().sort().values)
    again, third = random_copy(tower, seed=1, how=how), random_copy(tower, seed=2, how=how)
    pixels = tiny_input("vit")
    site = "blocks.1.hook_resid_post"
    first, second, another = (
        m.run(pixels, capture=[site], stop_when_captured=True).output for m in (other, again, third)
    )
    assert torch.equal(first, second) and not torch.equal(first, another)


def test_own_architectures_have_random_copies_too():
    model = shortcut_vit()
    other = random_copy(model, seed=0)
    assert other.parts.class_names == model.parts.class_names
    assert not torch.equal(other.W_O, model.W_O)


def test_raw_pixels():
    model, pixels = wrapped("vit"), tiny_input("vit")
    np.testing.assert_array_equal(pixel_features(model, pixels), pixels.flatten(1).numpy())
    small = pixel_features(model, pixels, side=6, batch=2)
    expected = torch.nn.functional.avg_pool2d(pixels, 2).flatten(1).numpy()
    np.testing.assert_allclose(small, expected, atol=1e-6)


def test_majority():
    assert majority_accuracy(np.array(["a", "b", "b"]), np.array(["b", "a"])).tolist() == [1.0, 0.0]


def test_bad_input():
    model = wrapped("vit")
    with pytest.raises(UnknownName, match="way to randomise"):
        random_copy(model, how="hope")
    with pytest.raises(OutOfRange, match="side=0"):
        pixel_features(model, tiny_input("vit"), side=0)
    with pytest.raises(BadData, match="no images"):
        pixel_features(model, tiny_input("vit")[:0])
