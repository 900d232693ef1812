"""A tiny model, images for it, and a store of several sites."""

import pytest

import mechvis
from mechvis.testing import tiny, tiny_input, tiny_preprocess

SITES = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post", "hook_pooled")


@pytest.fixture(scope="session")
def model():
    """10 tokens (class token, 9 patches), d_model 16, 4 heads of 4, 32 neurons, 3 layers."""
    return mechvis.load(tiny("vit"), preprocess=tiny_preprocess())


@pytest.fixture(scope="session")
def pixels():
    return tiny_input("vit", n=90)


@pytest.fixture(scope="session")
def whole(model, pixels, tmp_path_factory):
    """A finished store, for reading only: 90 images, files of 8 images."""
    out = tmp_path_factory.mktemp("store") / "acts"
    return mechvis.harvest(model, pixels, SITES, out=out, shard=8 * 10 * 32 * 4, progress=False)
