"""The cache: names, integrity, memory."""

import pytest
import torch

from mechvis.errors import CacheChanged, UnknownSite
from mechvis.models.load import wrap
from mechvis.testing import tiny, tiny_input, tiny_preprocess


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit"), preprocess=tiny_preprocess())


@pytest.fixture
def cache(model):
    return model.run(
        tiny_input("vit"), capture=["blocks.*.attn.hook_z", "blocks.*.hook_resid_post", "hook_logits"]
    ).cache


SHORT = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
    "result": "attn.hook_result",
    "pre": "mlp.hook_pre",
    "post": "mlp.hook_post",
}


def test_short_names(model):
    cache = model.run(tiny_input("vit"), capture="*").cache
    for short, name in SHORT.items():
        for layer in range(3):
            assert cache[short, layer] is cache[f"blocks.{layer}.{name}"]
        assert cache[short, -1] is cache[f"blocks.2.{name}"]


def test_native_names(cache):
    assert cache["vit.layers.1"] is cache["blocks.1.hook_resid_post"]
    assert "hook_logits" in cache


def test_mapping(cache):
    assert len(cache) == 7 and list(cache)[-1] == "hook_logits"
    assert dict(cache)["hook_logits"] is cache["hook_logits"]
    with pytest.raises(TypeError):
        cache["hook_logits"] = torch.zeros(1)


@pytest.mark.parametrize("layer", [3, -4, 30])
def test_short_name_with_a_layer_that_does_not_exist(cache, layer):
    with pytest.raises(IndexError, match=r"layers 0 to 2"):
        cache["z", layer]


def test_not_captured(cache):
    with pytest.raises(
        UnknownSite,
        match=r"'blocks\.0\.attn\.hook_q' was not captured in this run\. Captured: "
        r"blocks\.0\.attn\.hook_z, .*Add it to capture=\[\.\.\.\]",
    ):
        cache["blocks.0.attn.hook_q"]


def test_unknown_names(cache):
    with pytest.raises(UnknownSite, match=r"Nearest: blocks\.0\.attn\.hook_z, .+, .+"):
        cache["blocks.0.attn.hook_zz"]
    with pytest.raises(UnknownSite, match=r"no short name 'zz'; nearest: z, "):
        cache["zz", 0]


def test_in_place_change_is_found(cache):
    name = "blocks.1.attn.hook_z"
    cache[name].mul_(2)
    with pytest.raises(CacheChanged, match=r"'blocks\.1\.attn\.hook_z' was changed in place .*clone"):
        cache[name]
    cache["blocks.0.attn.hook_z"]


def test_in_place_change_through_a_view_is_found(cache):
    cache["hook_logits"][0, 0] = 5
    with pytest.raises(CacheChanged):
        cache["hook_logits"]


def test_n_bytes_counts_shared_storage_once(model):
    run = model.run(tiny_input("vit"), capture=["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"])
    assert run.cache.n_bytes == 3 * 10 * 16 * 4


def test_printing(cache):
    assert "7 sites" in repr(cache) and "[row=3 token=10 head=4 d_head=4] float32" in repr(cache)
    assert repr(cache).count("\n") == 7
