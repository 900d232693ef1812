"""The read-out of a lens is the model's own, for every family, whole and by token, and beside transformer_lens."""

import pytest
import torch

import mechvis
from mechvis import block as plain
from mechvis import testing
from mechvis.errors import BadData, ShapeMismatch
from mechvis.norms import gain_and_bias
from probes.lenses.read_out import final_scale, read_tokens, read_whole, what_is_read

FAMILIES = [name for name in testing.tiny_families() if not name.endswith("-text")]


def loaded(family, dtype=torch.float64):
    model = mechvis.load(testing.tiny(family, dtype=dtype), preprocess=testing.tiny_preprocess())
    return getattr(model, "vision", model)


def streams(model, family, n=3):
    pixels = testing.tiny_input(family, n=n, dtype=torch.float64)
    run = model.run(pixels, capture=["blocks.*.hook_resid_post"])
    return run.output, [run.cache[f"blocks.{layer}.hook_resid_post"] for layer in range(3)]


def by_hand(model, stream):
    """The plain twin."""
    reads = model.parts.reads
    return plain.read_out(model.parts, stream, lambda x: x if reads is None else x[:, list(reads)])


@pytest.mark.parametrize("family", FAMILIES)
def test_after_the_last_block_it_is_the_answer(family):
    model = loaded(family)
    output, layers = streams(model, family)
    testing.assert_close(read_whole(model, layers[-1]), output, 1e-12, family)
    testing.assert_close(read_whole(model, layers[0]), by_hand(model, layers[0]), 1e-12, family)
    scale = final_scale(model, layers[-1])
    testing.assert_close(read_whole(model, layers[-1], scale=scale), output, 1e-10, f"{family}, frozen statistics")


@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_is_read_as_if_all_were_this_one(family):
    model = loaded(family)
    _, layers = streams(model, family)
    vectors = layers[1].flatten(0, 1)
    constant = vectors[:, None].expand(-1, layers[1].shape[1], -1)
    testing.assert_close(read_tokens(model, vectors), by_hand(model, constant), 1e-10, family)


def test_cls_alone_is_the_whole_reading_where_only_it_is_read():
    model = loaded("vit")
    _, layers = streams(model, "vit")
    testing.assert_close(read_tokens(model, layers[0][:, 0]), read_whole(model, layers[0]), 1e-12, "cls")
    assert what_is_read(model) == "LayerNorm, then token 0 (cls), then the head"


def test_words_for_what_is_read():
    assert "attention pooling over the tokens" in what_is_read(loaded("siglip-vision"))
    assert what_is_read(loaded("deit-distilled")).startswith("LayerNorm, then tokens 0 (cls), 1 (distillation) side")
    assert what_is_read(loaded("beit-mean")).startswith("a pooling over the tokens, then LayerNorm")
    assert "then the projection" in what_is_read(loaded("clip"))


def test_frozen_statistics_are_linear_and_recomputed_ones_are_not():
    model = loaded("vit")
    _, layers = streams(model, "vit")
    a, b = layers[0][:, 0], layers[2][:, 0] - layers[0][:, 0]
    scale = final_scale(model, layers[2])[:, 0]
    none = read_tokens(model, torch.zeros_like(a), scale=scale)
    parts = read_tokens(model, a, scale=scale) + read_tokens(model, b, scale=scale) - none
    testing.assert_close(parts, read_tokens(model, a + b, scale=scale), 1e-12, "linear")
    recomputed = read_tokens(model, a) + read_tokens(model, b) - read_tokens(model, torch.zeros_like(a))
    assert (recomputed - read_tokens(model, a + b)).abs().max() > 0.01


def test_beside_transformer_lens():
    """accumulated_resid with apply_ln: statistics recomputed (its logit lens), and the cached ones."""
    model = loaded("vit")
    pixels = testing.tiny_input("vit", dtype=torch.float64)
    _, cache = model.run_with_cache(pixels)
    stack, labels = cache.accumulated_resid(layer=3, apply_ln=True, return_labels=True)
    _, layers = streams(model, "vit")
    for label, site in (("1_pre", 0), ("2_pre", 1), ("final_post", 2)):
        theirs = model.unembed(stack[labels.index(label)])
        ours = read_tokens(model, layers[site].flatten(0, 1)).unflatten(0, layers[site].shape[:2])
        testing.assert_close(ours, theirs, 1e-10, label)
    raw = cache.accumulated_resid(layer=3, apply_ln=False)
    frozen = cache.apply_ln_to_stack(raw, layer=3, recompute_ln=False)
    place = labels.index("1_pre")
    theirs = model.unembed(gain_and_bias(model.parts.ln_final, frozen[place]))
    scale = final_scale(model, layers[2])
    ours = read_tokens(model, layers[0].flatten(0, 1), scale=scale.flatten(0, 1)).unflatten(0, layers[0].shape[:2])
    testing.assert_close(ours, theirs, 1e-10, "frozen")


def test_pieces_change_nothing(monkeypatch):
    model = loaded("siglip-classifier")
    _, layers = streams(model, "siglip-classifier")
    vectors = layers[0].flatten(0, 1)
    whole = read_tokens(model, vectors)
    monkeypatch.setattr("probes.lenses.read_out._AT_ONCE", 500)
    testing.assert_close(read_tokens(model, vectors), whole, 1e-12, "pieces")


def test_bad_input():
    model = loaded("vit")
    with pytest.raises(ShapeMismatch, match=r"vectors \[row 16\] of this model, got \[2, 3, 16\]"):
        read_tokens(model, torch.zeros(2, 3, 16, dtype=torch.float64))
    with pytest.raises(ShapeMismatch, match=r"2 vectors need a scale \[2 1\]"):
        read_tokens(model, torch.zeros(2, 16), scale=torch.ones(3, 1))
    with pytest.raises(ShapeMismatch, match=r"a stream \[row token 16\]"):
        read_whole(model, torch.zeros(2, 16))
    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="this tower reads text"):
        read_whole(clip.text, torch.zeros(1, 2, 16))
    with pytest.raises(BadData, match=r"clip\.classifier"):
        read_whole(clip, torch.zeros(1, 2, 16))
