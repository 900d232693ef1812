"""What a wave front does otherwise under autocast agrees with what a block does."""

import pytest
import torch

import mechvis
from mechvis import block as plain
from mechvis import testing
from mechvis.wave import lowered


def qkv(parts, n=2, tokens=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, tokens, parts.n_heads, parts.d_head, generator=g) for _ in range(3)]


def attention(family, **settings):
    model = mechvis.load(testing.tiny(family, **settings), preprocess=testing.tiny_preprocess())
    return model.parts.blocks[0].attn


def test_two_products_are_fused_attention_up_to_rounding():
    attn = attention("vit")
    q, k, v = (x.bfloat16() for x in qkv(attn))
    exact = plain.mix(attn, *(x.double() for x in (q, k, v)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lowered.mix(attn, q, k, v)
        fused = plain.mix(attn, q, k, v)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()
    testing.assert_close(found.double(), exact, 0.02)
    assert not torch.equal(found, fused)  # otherwise nothing was compared


@pytest.mark.parametrize(("family", "settings"), [("vit", {"attention": "eager"}), ("beit", {}), ("clip-text", {})])
def test_other_attentions_stay_as_they_are(family, settings, monkeypatch):
    """Explicit attention, a position bias, a causal tower."""
    attn, asked = attention(family, **settings), []
    monkeypatch.setattr(plain, "mix", lambda *arguments: asked.append(arguments))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered.mix(attn, *qkv(attn), None, None)
    assert len(asked) == 1


def test_without_autocast_nothing_changes():
    attn, norm, x = attention("vit"), torch.nn.LayerNorm(16), torch.randn(2, 9, 16)
    assert torch.equal(lowered.mix(attn, *qkv(attn)), plain.mix(attn, *qkv(attn)))
    assert torch.equal(lowered.normed(norm, x), norm(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lowered.normed(norm, x), norm(x).bfloat16())
