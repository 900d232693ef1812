"""OV and QK of a head against the model's own queries, keys, values, scores and writes; and where they are refused."""

from dataclasses import replace

import pytest
import torch
from einops import einsum
from torch import nn

from circuits.weights import biases, ov, qk
from circuits.weights.exact import chosen_layers, deviation
from circuits.weights.folding import bias_behind, fold
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, RefusedMethod
from mechvis.hooked import HookedViT
from mechvis.models.load import wrap
from mechvis.norms import statistics

FOLDABLE = ("vit", "deit", "clip-vision", "beit", "dinov2", "dinov2-registers", "siglip-vision")


def load(family, **more):
    return wrap(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess(), **more)


@pytest.fixture(scope="module")
def model():
    return load("vit")


def captured(model, family, layer):
    at = f"blocks.{layer}."
    names = ["hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores", "attn.hook_result"]
    names += ["attn.hook_pattern", "ln1.hook_normalized"]
    run = model.run(testing.tiny_input(family, dtype=torch.float64), capture=[at + name for name in names])
    return [run.cache[at + name].detach() for name in names]


@pytest.mark.parametrize("family", FOLDABLE)
@pytest.mark.parametrize("layer", [0, 2])
def test_folded_products_say_exactly_what_the_model_computes(family, layer):
    """Scores and results rebuilt from the stream, the folded products and the folded biases alone."""
    model = load(family)
    stream, q, k, v, scores, result, pattern, _ = captured(model, family, layer)
    block = model.parts.blocks[layer]
    x = stream / statistics(block.ln1, stream)[1]  # not centred: that is in the folded weights
    query, key, value = biases(model, layer, folded=True)
    circuit, looks = ov(model, layer, folded=True), qk(model, layer, folded=True)
    testing.assert_close(einsum(x, looks.A, "i t d, h d e -> i t h e") + query, q, 1e-12, "queries")
    testing.assert_close(einsum(x, looks.B, "i t d, h e d -> i t h e") + key, k, 1e-12, "keys")
    testing.assert_close(einsum(x, circuit.A, "i t d, h d e -> i t h e") + value, v, 1e-12, "values")
    rebuilt = einsum(x, looks.AB, x, "i q d, h d c, i k c -> i h q k")
    rebuilt = rebuilt + einsum(x, looks.A, key, "i q d, h d e, h e -> i h q")[..., None]
    rebuilt = rebuilt + einsum(k, query, "i k h e, h e -> i h k")[..., None, :]
    position = 0 if block.attn.bias is None else block.attn.bias(model.parts.layout(model.parts.image_size))
    testing.assert_close(block.attn.scale * rebuilt + position, scores, 1e-11, "scores")
    written = einsum(pattern, x, circuit.AB, "i h q k, i k d, h d c -> i q h c")
    written = written + einsum(value, circuit.B, "h e, h e d -> h d")
    testing.assert_close(written, result, 1e-11, "what heads write")


def test_unfolded_products_read_behind_the_norm(model):
    *_, normal = captured(model, "vit", 1)
    _, q, _, v, *_ = captured(model, "vit", 1)
    query, _, value = biases(model, 1)
    testing.assert_close(einsum(normal, qk(model, 1).A, "i t d, h d e -> i t h e") + query, q, 1e-12)
    testing.assert_close(einsum(normal, ov(model, 1).A, "i t d, h d e -> i t h e") + value, v, 1e-12)
    testing.assert_close(ov(model, 1).AB, model.blocks[1].attn.OV.AB.detach(), 0, "the product that the model offers")
    assert not torch.allclose(ov(model, 1, folded=True).A, ov(model, 1).A)


def test_one_head_of_a_layer(model):
    assert ov(model, 1, 2).shape == (16, 16) and ov(model, 1).shape == (4, 16, 16)
    testing.assert_close(ov(model, -2, 2, folded=True).AB, ov(model, 1, folded=True).AB[2], 1e-14)
    testing.assert_close(qk(model, 1, 3).AB, qk(model, 1).AB[3], 1e-14)
    assert not ov(model, 1).A.requires_grad


def test_layer_scale_is_part_of_what_heads_write():
    model = load("dinov2")
    bare = model.bare.encoder.layer[1]
    plain = model.parts.blocks[1].attn.out_weight()
    testing.assert_close(ov(model, 1).B, plain.detach() * bare.layer_scale1.lambda1.detach(), 1e-14)


def test_half_precision_is_read_in_single():
    model = wrap(testing.tiny("vit", dtype=torch.bfloat16), preprocess=testing.tiny_preprocess())
    assert ov(model, 0, folded=True).A.dtype == torch.float32
    assert qk(model, 0).A.dtype == torch.float32


# norms


def test_folding_a_layer_norm_and_an_rms_norm():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).double() for shape in ((5, 6), (6, 3)))
    norms = [nn.LayerNorm(6), nn.RMSNorm(6), nn.LayerNorm(6, elementwise_affine=False), nn.RMSNorm(6, eps=1e-3)]
    for norm in map(nn.Module.double, norms):
        for parameter in norm.parameters():
            nn.init.normal_(parameter, generator=generator)
        _, scale = statistics(norm, x)
        behind = bias_behind(norm, weight)
        found = x / scale @ fold(norm, weight) + (0 if behind is None else behind)
        testing.assert_close(found, (norm(x) @ weight).detach(), 1e-12, type(norm).__name__)
    assert torch.equal(fold(nn.Identity(), weight), weight)


def test_a_norm_of_another_kind_is_not_folded():
    class OnePlus(nn.RMSNorm):
        def forward(self, x):
            return torch.nn.functional.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)

    with pytest.raises(RefusedMethod, match=r"OnePlus does not divide, multiply by its weight.*Leave folded=True out"):
        fold(OnePlus(6), torch.eye(6))


# refusals


def test_rotary_positions_have_no_query_key_matrix():
    model = load("dinov3")
    with pytest.raises(RefusedMethod, match=r"rotary.*Patterns are fine.*folding W_Q W_K into\s+one matrix is not"):
        qk(model, 0)
    assert ov(model, 0, folded=True).shape == (4, 16, 16), "values are not turned"


def changed(model, **more):
    """The same model with other fields in the attention of layer 1 (`block_`: in the block)."""
    blocks = list(model.parts.blocks)
    attn = replace(blocks[1].attn, **{name: value for name, value in more.items() if not name.startswith("block_")})
    of_block = {name.removeprefix("block_"): value for name, value in more.items() if name.startswith("block_")}
    blocks[1] = replace(blocks[1], attn=attn, **of_block)
    return HookedViT(model.bare, replace(model.parts, blocks=tuple(blocks)))


def test_norms_on_queries_keys_and_values_are_seen_in_the_numbers(model):
    attn = model.parts.blocks[1].attn
    unit = torch.nn.functional.normalize
    assert deviation(attn, "q") < 1e-14 and deviation(attn, "v") < 1e-14
    with pytest.raises(RefusedMethod, match=r"layer 1: queries are not W x \+ b.*a norm on queries\?"):
        qk(changed(model, q=lambda x: unit(attn.q(x), dim=-1)), 1)
    keys = changed(model, kv=lambda x: (unit(attn.kv(x)[0], dim=-1), attn.kv(x)[1]))
    with pytest.raises(RefusedMethod, match="keys are not W x"):
        qk(keys, 1)
    assert ov(keys, 1).shape == (4, 16, 16) and qk(keys, 0).shape == (4, 16, 16)
    with pytest.raises(RefusedMethod, match=r"values are not W x.*W_V W_O is not what the head computes"):
        ov(changed(model, kv=lambda x: (attn.kv(x)[0], unit(attn.kv(x)[1], dim=-1))), 1)


def test_what_lies_between_values_and_stream_is_refused(model):
    with pytest.raises(RefusedMethod, match="before the output projection"):
        ov(changed(model, after=lambda merged: merged * 2), 1)
    with pytest.raises(RefusedMethod, match="a norm lies between the heads and the stream"):
        ov(changed(model, block_linear_writes=False), 1)


@pytest.mark.parametrize("layer", [3, -4, 1.0, True, "1"])
def test_no_such_layer(model, layer):
    with pytest.raises(OutOfRange, match="this model has layers 0 to 2"):
        ov(model, layer)


@pytest.mark.parametrize("head", [4, -1, 0.0])
def test_no_such_head(model, head):
    with pytest.raises(OutOfRange, match="this layer has heads 0 to 3"):
        qk(model, 0, head)


def test_a_model_of_two_towers(model):
    with pytest.raises(BadData, match=r"two towers.*pass clip\.vision or clip\.text"):
        ov(wrap(testing.tiny("clip"), preprocess=testing.tiny_preprocess()), 0)
    with pytest.raises(BadData, match="leaves no layer"):
        chosen_layers(model, [])
    assert chosen_layers(model, [-1, 0, 2]) == [0, 2]
