"""The parts add up to the whole, in every family, and mean what they say."""

import numpy as np
import pytest
import torch
from einops import einsum

import mechvis
from mechvis.decompose import stream, terms
from mechvis.errors import BadData, FailedCheck, OutOfRange, RefusedMethod, UnknownName, UnsupportedModel
from mechvis.models.load import wrap
from mechvis.testing import rand_vit, tiny, tiny_families, tiny_input
from mechvis.testing.tiny import tiny_preprocess


def towers(family):
    """(wrapped tower, input) of a small random model in float64."""
    model = mechvis.load(tiny(family).double(), preprocess=tiny_preprocess())
    found = [model] if not hasattr(model, "vision") else [model.vision, model.text]
    generator = torch.Generator().manual_seed(0)
    for tower in found:
        text = tower.parts.modality == "text"
        yield tower, tower.parts.example(generator) if text else tiny_input(family, dtype=torch.float64)


@pytest.fixture(scope="module")
def f1():
    model = mechvis.load(rand_vit(), preprocess=tiny_preprocess())
    return model, tiny_input("vit", dtype=torch.float64)


@pytest.mark.parametrize("family", tiny_families())
def test_parts_add_up_to_the_whole(family):
    for tower, x in towers(family):
        whole = tower.run(x).output
        for convention in ("linear", "even_split"):
            try:
                found = terms(tower, x, convention=convention)
            except RefusedMethod:  # a pooler with tanh: what it reads is decomposed
                found = terms(tower, x, convention=convention, of="pooled")
                whole = tower.run(x, capture="hook_pooled").cache["hook_pooled"]
            # An independent sum, not the check inside.
            torch.testing.assert_close(found.values.sum(1), whole, atol=1e-10, rtol=0)
            assert found.error < 1e-10
            assert found.whole.shape == whole.shape


@pytest.mark.parametrize("family", ["siglip-vision", "siglip"])
def test_attention_pooling_both_ways(family):
    tower, x = next(iter(towers(family)))
    whole = tower.run(x).output
    by_heads, through = terms(tower, x), terms(tower, x, pooling="through")
    assert by_heads.names[0] == "pool H0" and "L0H0" not in by_heads.names and "L0H0" in through.names
    for found in (by_heads, through):
        torch.testing.assert_close(found.values.sum(1), whole, atol=1e-10, rtol=0)
    # What the pooling's heads write is what the layers write through them, and the values' bias.
    heads = by_heads.values[:, list(by_heads.heads.values())].sum(1)
    rest = [i for i, name in enumerate(through.names) if name not in ("pool bias", "pool MLP")]
    torch.testing.assert_close(through.values[:, rest].sum(1), heads, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", ["vit", "clip-vision", "beit-mean", "dinov2-registers-classifier", "dinov3"])
def test_a_head_is_what_its_result_adds_under_the_norm(family):
    """Against the definition, term by term: result at every token, norm with the image's own statistics, pooling."""
    tower, x = next(iter(towers(family)))
    found = terms(tower, x, of="pooled")
    last = len(tower.parts.blocks) - 1
    sites = [f"blocks.{last}.hook_resid_post", "blocks.0.attn.hook_result", "hook_pooled"]
    cache = tower.run(x, capture=sites).cache
    stream_, norm = cache[sites[0]], tower.parts.ln_final

    def pooled(part):
        """Pool of the part; the norm is linear at frozen statistics, so half of a central difference is exact."""

        def read(value):
            if tower.parts.norm == "pooled":
                value = tower.parts.pool(value)
                base = tower.parts.pool(stream_)
            else:
                base = stream_
            mean, var = base.mean(-1, keepdim=True), base.var(-1, keepdim=True, unbiased=False)
            del mean
            value = value - value.mean(-1, keepdim=True)
            value = value / (var + norm.eps).sqrt() * (1 if norm.weight is None else norm.weight)
            if tower.parts.norm == "pooled":
                return value
            reads = tower.parts.reads
            return tower.parts.pool(value if reads is None else value[:, list(reads)])

        return read(part)

    for head in range(cache[sites[1]].shape[2]):
        expected = pooled(cache[sites[1]][:, :, head])
        torch.testing.assert_close(found[f"L0H{head}"], expected, atol=1e-10, rtol=0)


def test_tokens_add_up_to_their_head_and_are_what_the_pattern_moved(f1):
    model, x = f1
    found = terms(model, x, tokens=True)
    heads = found.values[:, list(found.heads.values())]
    torch.testing.assert_close(found.per_token.sum(2), heads, atol=1e-12, rtol=0)
    # A token that nobody looks at writes nothing: cut its column of the pattern out of the values by hand.
    cache = model.run(x, capture=["blocks.2.attn.hook_pattern", "blocks.2.attn.hook_v"]).cache
    pattern, v = cache["blocks.2.attn.hook_pattern"][:, :, 0], cache["blocks.2.attn.hook_v"]
    one = einsum(pattern[:, 1, 3], v[:, 3, 1], model.blocks[2].attn.W_O[1], "i, i e, e d -> i d")
    scale = model.run(x, capture="ln_final.hook_scale").cache["ln_final.hook_scale"][:, 0]
    norm, head = model.parts.ln_final, model.bare.classifier
    expected = ((one - one.mean(-1, keepdim=True)) / scale * norm.weight) @ head.weight.T
    place = list(found.heads).index((2, 1))
    torch.testing.assert_close(found.per_token[:, place, 3], expected, atol=1e-12, rtol=0)


def test_even_split_differs_from_linear_by_the_published_amount(f1):
    model, x = f1
    linear, even = terms(model, x), terms(model, x, convention="even_split")
    assert "ln_final bias" in linear.names and "ln_final bias" not in even.names
    torch.testing.assert_close(even.values.sum(1), linear.values.sum(1), atol=1e-12, rtol=0)
    difference = (linear["L1H2"] - even["L1H2"]).abs().max()
    assert difference > 0.001  # a single head is another vector; only the sum is the same


def test_even_split_by_its_own_definition(f1):
    """methods.md 2.1: mean and bias of the norm over 2L+1 terms, an attention's over its heads, b_O over the heads."""
    model, x = f1
    even = terms(model, x, convention="even_split", of="pooled")
    sites = ["blocks.2.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"]
    cache = model.run(x, capture=sites).cache
    final = cache[sites[0]][:, 0]
    scale = (final.var(-1, keepdim=True, unbiased=False) + model.parts.ln_final.eps).sqrt()
    gain, bias = model.parts.ln_final.weight, model.parts.ln_final.bias
    constant = (bias - final.mean(-1, keepdim=True) / scale * gain) / 7
    mlp = cache[sites[2]][:, 0] / scale * gain + constant
    torch.testing.assert_close(even["L1MLP"], mlp, atol=1e-12, rtol=0)
    attn = model.blocks[1].attn
    written = einsum(cache[sites[1]][:, 0, 2], attn.W_O[2], "i e, e d -> i d") + attn.b_O / 4
    torch.testing.assert_close(even["L1H2"], written / scale * gain + constant / 4, atol=1e-12, rtol=0)


def test_a_head_without_weights_writes_nothing():
    bare = rand_vit()
    attention = bare.vit.encoder.layer[1].attention if hasattr(bare.vit, "encoder") else bare.vit.layers[1].attention
    out = attention.output.dense if hasattr(attention, "output") else attention.o_proj
    with torch.no_grad():
        out.weight[:, 4:8] = 0
    model = mechvis.load(bare, preprocess=tiny_preprocess())
    found = terms(model, tiny_input("vit", dtype=torch.float64))
    assert (found["L1H1"] == 0).all() and (found["L1H0"] != 0).any()


def test_earlier_layers_are_one_term(f1):
    model, x = f1
    all_, last = terms(model, x), terms(model, x, layers=-1)
    assert last.names[0] == "before L2"
    first = [i for i, name in enumerate(all_.names) if name.startswith(("embed", "L0", "L1"))]
    torch.testing.assert_close(last["before L2"], all_.values[:, first].sum(1), atol=1e-12, rtol=0)
    torch.testing.assert_close(last["L2H3"], all_["L2H3"], atol=1e-12, rtol=0)


def test_zero_shot_head_divides_by_the_length_of_the_embedding():
    clip = mechvis.load("scenes-clip")
    model = clip.classifier(["circle", "star", "square"], ["a photo of a {}"])
    pixels = mechvis.data.scenes(n=6, seed=3).pixels_for(model.preprocess)
    found, plain = terms(model, pixels), terms(clip.vision, pixels)
    length = plain.whole.norm(dim=-1, keepdim=True)
    by_hand = plain["L3H1"] / length @ model.parts.head.prompts.T * model.parts.head.scale
    torch.testing.assert_close(found["L3H1"], by_hand, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.values.sum(1), model.run(pixels).logits, atol=1e-3, rtol=0)


def test_batches_are_the_whole(f1):
    model, _ = f1
    x = torch.randn(7, 3, *model.parts.image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = terms(model, x)
    parts = list(stream(model, x, batch_size=3))
    assert [where.tolist() for where, _ in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    joined = torch.cat([found.values for _, found in parts])
    torch.testing.assert_close(joined, whole.values, atol=1e-12, rtol=0)
    assert np.isfinite(joined.numpy()).all()


def test_another_image_size():
    clip = mechvis.load("scenes-clip", image_size=96)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = terms(clip.vision, pixels, tokens=True, layers=-1)
    assert found.per_token.shape[2] == 1 + 12 * 12
    torch.testing.assert_close(found.values.sum(1), clip.vision.run(pixels).output, atol=1e-3, rtol=0)


def test_half_precision_is_refused():
    model = mechvis.load(tiny("vit"), preprocess=tiny_preprocess()).to(torch.bfloat16)
    with pytest.raises(RefusedMethod, match=r"model.to\(torch.float32\)"):
        terms(model, tiny_input("vit").to(torch.bfloat16))


def test_what_is_no_sum_is_refused(f1):
    model, x = f1
    base = mechvis.load(tiny("vit-base").double(), preprocess=tiny_preprocess())
    with pytest.raises(RefusedMethod, match="of='pooled'"):
        terms(base, x)
    with pytest.raises(UnsupportedModel, match="of='pooled'"):
        terms(model, x, of="embedding")
    vision = mechvis.load("scenes-clip").vision
    with pytest.raises(UnsupportedModel, match="classifier"):
        terms(vision, torch.zeros(1, 3, 64, 64), of="logits")


def test_a_map_that_lies_is_found(f1):
    """A family whose W_O is not what the block does: the parts do not add up, and that is said."""
    from dataclasses import replace

    model, x = f1
    parts = model.parts
    first = parts.blocks[0]
    wrong = replace(first, attn=replace(first.attn, out_weight=lambda: first.attn.out_weight() * 1.5))
    wrong_parts = replace(parts, blocks=(wrong, *parts.blocks[1:]))
    liar = wrap(model.bare, family=lambda _: wrong_parts, preprocess=tiny_preprocess())
    with pytest.raises(FailedCheck, match="relative error"):
        terms(liar, x)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"of": "logit"}, UnknownName, "logits"),
        ({"convention": "even"}, UnknownName, "even_split"),
        ({"pooling": "head"}, UnknownName, "heads"),
        ({"layers": 2}, OutOfRange, "negative"),
        ({"layers": -9}, OutOfRange, "down to -3"),
        ({"layers": [0, 5]}, OutOfRange, "0 to 2"),
        ({"layers": [0, 2]}, BadData, "without gaps"),
    ],
)
def test_bad_arguments(f1, arguments, error, said):
    model, x = f1
    with pytest.raises(error, match=said):
        terms(model, x, **arguments)


def test_bad_streams_and_names(f1):
    model, x = f1
    with pytest.raises(OutOfRange, match="batch_size=0"):
        next(stream(model, x, batch_size=0))
    with pytest.raises(BadData, match="no images"):
        next(stream(model, x[:0]))
    with pytest.raises(UnknownName, match="L0H1"):
        terms(model, x)["L0H9"]
