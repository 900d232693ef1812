"""The read-out against the model's own logits and embeddings; what a head writes against its own values."""

from dataclasses import replace

import pytest
import torch

import mechvis
from circuits.weights import read_out, written
from mechvis import testing
from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.hooked import HookedViT
from mechvis.interop.transformer_lens import unembedding
from mechvis.models.load import wrap
from mechvis.norms import statistics

TEXTS = ["a star", "a ring", "green grass", "two hearts", "nothing at all"]


@pytest.fixture(scope="module")
def model():
    return wrap(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def clip():
    bare = testing.tiny("clip", dtype=torch.float64)
    return mechvis.load(bare, preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", dtype=torch.float64)


def last_stream(model, pixels):
    layer = len(model.parts.blocks) - 1
    return model.run(pixels, capture=[f"blocks.{layer}.hook_resid_post"]).cache["resid_post", layer][:, 0]


def test_logits_of_the_whole_stream_are_the_models(model, pixels):
    out, stream = read_out(model), last_stream(model, pixels)
    _, scale = statistics(model.parts.ln_final, stream)
    weight, bias = unembedding(model.parts)
    constant = model.parts.ln_final.bias @ weight + bias
    testing.assert_close(out.logits(stream) / scale + constant, model.run(pixels).logits, 1e-12, "logits")
    behind = model.parts.ln_final(stream).detach()
    testing.assert_close(out.logits(behind, behind_norm=True) + bias, model.run(pixels).logits, 1e-12)
    assert out.names == tuple(f"LABEL_{i}" for i in range(8)) and out.kind == "class"


def test_dot_products_with_texts_are_the_embeddings(clip, pixels):
    out, stream = read_out(clip, TEXTS), last_stream(clip.vision, pixels)
    norm = clip.vision.parts.ln_final
    _, scale = statistics(norm, stream)
    texts = clip.encode_text(TEXTS)
    found = out.logits(stream) / scale + norm.bias @ out.project @ texts.T
    embedding = clip.vision.run(pixels).output
    testing.assert_close(found.detach(), embedding @ texts.T, 1e-12, "embedding . text")
    cosine = torch.nn.functional.cosine_similarity(embedding[:, None], texts, dim=-1)
    testing.assert_close(out.cosines(norm(stream).detach(), behind_norm=True), cosine, 1e-12, "cosines")


def test_a_zero_shot_head_is_read_with_its_scale(clip, pixels):
    head = clip.classifier(["star", "ring"])
    out, stream = read_out(head), last_stream(head, pixels)
    _, scale = statistics(head.parts.ln_final, stream)
    size = clip.vision.run(pixels).output.norm(dim=-1, keepdim=True)
    weight, _ = unembedding(head.parts)
    constant = head.parts.ln_final.bias @ weight
    logits = (out.logits(stream) / scale + constant) / size
    testing.assert_close(logits.detach(), head.run(pixels).logits, 1e-12, "zero-shot logits")
    assert out.names == ("star", "ring")


def test_centring_keeps_the_order_of_texts(clip):
    plain, centred = read_out(clip, TEXTS), read_out(clip, TEXTS, centred=True)
    vectors = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(plain.logits(vectors).argsort(-1), centred.logits(vectors).argsort(-1))
    assert float(centred.targets.sum(0).abs().max()) < 1e-14


def test_directions_are_gradients_of_the_logits(model):
    out = read_out(model)
    along = out.directions()
    steps = torch.eye(16).double()
    testing.assert_close(out.logits(steps).T, along, 1e-12)
    assert float(along.sum(-1).abs().max()) < 1e-12, "LayerNorm takes the mean off: no class lies along it"


@pytest.mark.parametrize("layer", [0, 2])
def test_what_a_head_writes_follows_its_own_values(model, pixels, layer):
    """The difference of two tokens' values, sent through W_O and the read-out, is what `written` says of the difference
    of the two tokens' centred and divided streams."""
    at = f"blocks.{layer}."
    run = model.run(pixels, capture=[at + "hook_resid_pre", at + "attn.hook_v", at + "ln1.hook_scale"])
    stream = run.cache["resid_pre", layer] / run.cache[at + "ln1.hook_scale"]
    values = run.cache["v", layer]
    out = read_out(model)
    found = written(model, layer, stream[:, 3] - stream[:, 7], out)
    for head in range(4):
        moved = (values[:, 3, head] - values[:, 7, head]) @ model.blocks[layer].attn.W_O[head].detach()
        testing.assert_close(found[head], out.logits(moved), 1e-11, f"head {head}")
    testing.assert_close(written(model, layer, stream[:, 3] - stream[:, 7], out, 1), found[1], 1e-12)


def test_heads_of_the_shortcut_model_write_the_class_they_see():
    model = testing.shortcut_vit()
    out = read_out(model)
    promoted = torch.eye(14).double()[6:9]
    testing.assert_close(written(model, 1, promoted, out, 0), 2 * torch.eye(3).double(), 1e-12, "the object head")
    testing.assert_close(written(model, 1, promoted, out, 1), 3 * torch.eye(3).double(), 1e-12, "the shortcut")
    assert not written(model, 1, promoted, out, 3).any(), "an inert head"
    assert not written(model, 0, promoted, out, 0).any(), "it writes promoted evidence, not logits"


@pytest.mark.parametrize("folded", [True, False])
def test_folding_decides_which_stream_is_meant(model, folded):
    out = read_out(model)
    reads = torch.randn(2, 16, generator=torch.Generator().manual_seed(1)).double()
    norm = model.parts.blocks[1].ln1
    seen = (reads - reads.mean(-1, keepdim=True)) * norm.weight if folded else reads
    attn = model.blocks[1].attn
    expected = out.logits((seen @ attn.W_V[2] @ attn.W_O[2]).detach())
    testing.assert_close(written(model, 1, reads, out, 2, folded=folded), expected, 1e-12)


# bad input


def test_no_read_out(clip):
    with pytest.raises(BadData, match=r"has no head to read classes from; for CLIP: pass the whole model and texts"):
        read_out(clip.vision)
    with pytest.raises(BadData, match=r"Pass texts=\[\.\.\.\]"):
        read_out(clip)
    with pytest.raises(BadData, match="texts need a text tower"):
        read_out(clip.vision, TEXTS)
    with pytest.raises(BadData, match="is one text"):
        read_out(clip, "a star")
    with pytest.raises(BadData, match="texts repeat: 2 texts, 1 different"):
        read_out(clip, ["a star", "a star"])
    with pytest.raises(BadData, match="takes the mean of the texts off, and there is only one"):
        read_out(clip, ["a star"], centred=True)
    with pytest.raises(BadData, match="attention pooling"):
        model = wrap(testing.tiny("siglip-vision"), preprocess=testing.tiny_preprocess())
        read_out(HookedViT(model.bare, replace(model.parts, head=torch.nn.Linear(16, 2))))


def test_bad_vectors(model):
    out = read_out(model)
    with pytest.raises(ShapeMismatch, match=r"vectors of the stream have 16 entries in this model, got \[2, 15\]"):
        out.logits(torch.zeros(2, 15).double())
    with pytest.raises(NotFinite, match="vectors to read"):
        out.cosines(torch.full((1, 16), float("nan")).double())
    with pytest.raises(ShapeMismatch, match=r"\[direction d_model=16\], got \[16\]"):
        written(model, 0, torch.zeros(16).double(), out)
    with pytest.raises(NotFinite, match="directions to read"):
        written(model, 0, torch.full((1, 16), float("inf")).double(), out)


def test_a_vector_that_leads_nowhere_has_cosine_zero(model):
    assert not read_out(model).cosines(torch.ones(1, 16).double()).abs().max() > 1e-6
