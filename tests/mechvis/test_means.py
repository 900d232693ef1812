"""Reference means equal the mean of what is captured directly."""

import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, UnknownSite
from mechvis.means import means


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_means_are_the_direct_mean(model, batch_size):
    pixels = testing.tiny_input("vit", n=7)
    sites = ["blocks.*.attn.hook_z", "blocks.1.mlp.hook_post", "hook_embed"]
    found = means(model, pixels, sites, batch_size=batch_size)
    cache = model.run(pixels, capture=sites).cache
    assert set(found) == set(cache) and len(found) == 5
    assert found.n == 7
    for name, value in cache.items():
        assert found[name].dtype == model.dtype
        testing.assert_close(found[name], value.double().mean(0).to(model.dtype), 1e-6, name)


def test_sums_are_kept_in_float64(model):
    """A float32 running sum over many equal batches would drift; here the mean of equal images is that image."""
    one = testing.tiny_input("vit", n=1)
    many = means(model, one.expand(300, -1, -1, -1), "blocks.2.attn.hook_z", batch_size=1)
    single = model.run(one, capture="blocks.2.attn.hook_z").cache["blocks.2.attn.hook_z"][0]
    assert torch.equal(many["blocks.2.attn.hook_z"], single)


def test_bad_calls(model):
    found = means(model, testing.tiny_input("vit"), "blocks.0.attn.hook_z")
    with pytest.raises(UnknownSite, match=r"no means for 'blocks.1.attn.hook_z'; computed for: blocks.0.attn.hook_z"):
        _ = found["blocks.1.attn.hook_z"]
    with pytest.raises(BadData, match="at least one reference image"):
        means(model, testing.tiny_input("vit")[:0], "hook_embed")
    with pytest.raises(UnknownSite):
        means(model, testing.tiny_input("vit"), "blocks.0.atn.hook_z")
    assert repr(found).startswith("Means(1 sites over 3 images")


def test_model_and_images_are_left_alone(model):
    pixels = testing.tiny_input("vit")
    before = pixels.clone()
    with testing.assert_untouched(model):
        means(model, pixels, "blocks.*")
    assert torch.equal(pixels, before)
