"""Layer-wise relevance: what adds up, a plain version on the bare model, and that nothing outside the run changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mechvis
from mechvis import testing
from mechvis.attribution import AttnLRP, GlobEnc, TokenTM, attribute
from mechvis.errors import RefusedMethod, UnknownName

DOUBLE = torch.float64
YES = {"accept_licence_note": True}


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", dtype=DOUBLE)


def wrapped(family="vit", **overrides):
    return mechvis.load(testing.tiny(family, dtype=DOUBLE, **overrides), preprocess=testing.tiny_preprocess())


def without_biases(bare):
    with torch.no_grad():
        for name, parameter in bare.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return bare


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "dinov2-registers-classifier"])
def test_relevance_is_conserved_without_biases(family, pixels):
    bare = without_biases(testing.tiny(family, dtype=DOUBLE))
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    found = attribute(model, pixels, AttnLRP(**YES), target=1, contrast=2, progress=False)
    total = found.table["sum"] + found.table["prefix"]
    np.testing.assert_allclose(total, found.table["score"], rtol=1e-6)
    with_biases = attribute(wrapped(family), pixels, AttnLRP(**YES), target=1, contrast=2, progress=False).table
    gap = (with_biases["sum"] + with_biases["prefix"] - with_biases["score"]).abs()
    assert gap.max() > 0.01, "biases keep their part: completeness is not claimed"


def test_a_zero_shot_head_conserves_too(pixels):
    """Its normalisation is a norm like any other: gradient times input there would be zero."""
    bare = without_biases(testing.tiny("clip", dtype=DOUBLE))
    clip = mechvis.load(bare, preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    found = attribute(clip, pixels, AttnLRP(**YES), target="a star", progress=False)
    np.testing.assert_allclose(found.table["sum"] + found.table["prefix"], found.table["score"], rtol=1e-6)


@pytest.mark.parametrize("family", ["dinov2-swiglu", "dinov3-gated", "siglip-vision"])
def test_gated_and_pooled_models_conserve(family, pixels):
    bare = without_biases(testing.tiny(family, dtype=DOUBLE))
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    size = testing.tiny_input(family, dtype=DOUBLE)
    ask = attribute(model, size, AttnLRP(**YES), target=1, progress=False)
    table = ask.table
    np.testing.assert_allclose(table["sum"] + table["prefix"], table["score"], rtol=1e-6)


def plain(bare, pixels, rule):
    """The same rules written out on Hugging Face's own weights."""

    def share(x, c):
        return c * x + (1 - c) * x.detach()

    def norm(layer, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt().detach()
        return centred / scale * layer.weight + layer.bias

    embed = bare.vit.embeddings(pixels).detach().requires_grad_(True)
    x = embed
    for block in bare.vit.layers:
        own, normal = block.attention, norm(block.layernorm_before, x)
        q, k, v = (p(normal).unflatten(2, (4, 4)) for p in (own.q_proj, own.k_proj, own.v_proj))
        if rule == "attn":
            q, k, v = share(q, 0.25), share(k, 0.25), share(v, 0.5)
        pattern = torch.einsum("iqhe,ikhe->ihqk", q, k).mul(0.5).softmax(-1)
        pattern = pattern.detach() if rule == "cp" else pattern
        x = x + own.o_proj(torch.einsum("ihqk,ikhe->iqhe", pattern, v).flatten(2))
        pre = block.mlp.fc1(norm(block.layernorm_after, x))
        x = x + block.mlp.fc2(pre * (F.gelu(pre) / pre).detach())
    logits = bare.classifier(norm(bare.vit.layernorm, x)[:, 0])
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), embed)
    return logits.detach(), (embed * gradient).sum(-1).detach()


@pytest.mark.parametrize("rule", ["cp", "attn"])
def test_against_a_plain_version(pixels, rule):
    bare = testing.rand_vit()
    logits, expected = plain(bare, pixels, rule)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    testing.assert_close(logits, model.run(pixels).logits, 1e-10, "the plain version is the model")
    found = attribute(model, pixels, AttnLRP(rule=rule, **YES), target=3, progress=False)
    np.testing.assert_allclose(found.maps.reshape(3, 9), expected[:, 1:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.table["prefix"], expected[:, 0], rtol=1e-8)
    np.testing.assert_allclose(found.table["score"], logits[:, 3], rtol=1e-10)


def test_nothing_outside_the_run_changes(pixels):
    """H15: the reference package changes the gradients of unrelated models by a third."""
    other, bare = testing.rand_vit(seed=5), testing.rand_vit()
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    before = {name: vars(nn.LayerNorm).get(name) for name in vars(nn.LayerNorm)}

    def gradients(module):
        given = pixels.clone().requires_grad_(True)
        return torch.autograd.grad(module(given).logits[:, 1].sum(), given)[0]

    clean = gradients(other), gradients(bare)
    seen = []
    with testing.assert_untouched(model), testing.assert_untouched(other):
        attribute(model, pixels, AttnLRP(**YES), target=1, progress=False)
        seen.append(gradients(other))
    assert torch.equal(seen[0], clean[0]) and torch.equal(gradients(bare), clean[1])
    assert before == {name: vars(nn.LayerNorm).get(name) for name in vars(nn.LayerNorm)}


def test_batch_sign_and_finiteness(pixels):
    model = wrapped()
    for rule in ("cp", "attn"):
        together = attribute(model, pixels, AttnLRP(rule=rule, **YES), target=1, contrast=2, progress=False).maps
        alone = attribute(model, pixels[1:2], AttnLRP(rule=rule, **YES), target=1, contrast=2, progress=False).maps
        turned = attribute(model, pixels, AttnLRP(rule=rule, **YES), target=2, contrast=1, progress=False).maps
        np.testing.assert_allclose(alone[0], together[1], rtol=1e-5)
        np.testing.assert_allclose(turned, -together, rtol=1e-5)
        assert np.isfinite(together).all() and (together < 0).any()


def test_refusals(pixels):
    model = wrapped()
    with pytest.raises(RefusedMethod, match="patented and free for personal and scientific use only"):
        attribute(model, pixels, "attn_lrp", target=1, progress=False)
    with pytest.raises(UnknownName, match="rule of AttnLRP"):
        attribute(model, pixels, AttnLRP(rule="gamma", **YES), target=1, progress=False)
    parts = model.parts
    model.__dict__["parts"] = replace(parts, blocks=tuple(replace(one, linear_writes=False) for one in parts.blocks))
    with pytest.raises(RefusedMethod, match="no rule for the norms inside attention or MLP of this model"):
        attribute(model, pixels, AttnLRP(**YES), target=1, progress=False)
    for method in (TokenTM(), GlobEnc()):
        with pytest.raises(RefusedMethod, match="a norm stands between"):
            attribute(model, pixels, method, target=1, progress=False)
