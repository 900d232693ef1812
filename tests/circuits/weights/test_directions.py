"""Singular directions: they rebuild the matrix, and what was planted is read off as patches, classes and texts."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.weights import directions, ov, read_as_images, read_as_words, read_out
from circuits.weights.as_images import activations
from circuits.weights.folding import fold
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch, UnknownName
from mechvis.models.load import wrap

TEXTS = ["a star", "a ring", "green grass", "two hearts", "nothing at all", "some moons", "one x"]


@pytest.fixture(scope="module")
def model():
    return wrap(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=7, dtype=torch.float64)


def rebuilt(found):
    return (found.reads.T * found.gains) @ found.writes


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("final", [True, False])
def test_directions_rebuild_what_a_head_does(model, folded, final):
    found = directions(model, 1, 2, folded=folded, final=final)
    dense = ov(model, 1, 2, folded=folded).AB
    if final:
        dense = dense @ fold(model.parts.ln_final, torch.eye(16).double())
    testing.assert_close(rebuilt(found), dense, 1e-12)
    np.testing.assert_allclose(found.gains, np.linalg.svd(dense.numpy())[1][:4], atol=1e-12)
    for vectors in (found.reads, found.writes):
        testing.assert_close(vectors @ vectors.T, torch.eye(4).double(), 1e-12, "unit and orthogonal")
    assert float(found.shares.sum()) == pytest.approx(1) and (found.gains.diff() <= 0).all()
    assert (found.writes.gather(1, found.writes.abs().argmax(1, keepdim=True)) > 0).all(), "the sign is fixed"


def test_directions_of_output_matrices(model):
    testing.assert_close(rebuilt(directions(model, 0, 3, of="o")), model.blocks[0].attn.W_O[3].detach(), 1e-12)
    mlp = directions(model, 2)
    testing.assert_close(rebuilt(mlp), model.blocks[2].mlp.W_out.detach(), 1e-12)
    assert mlp.name == "L2MLP" and mlp.reads.shape == (16, 32) and directions(model, -1, 0).name == "L2H0"


def test_the_first_ones_keep_their_shares(model):
    all_of_them, first = directions(model, 1, 2), directions(model, 1, 2, top=2)
    assert len(first) == 2
    testing.assert_close(first.shares, all_of_them.shares[:2], 0)
    assert "L1H2 ov, 2 directions" in repr(first)


@pytest.mark.parametrize("settings", [{"head": 1}, {"head": 1, "folded": False}, {"head": 1, "of": "o"}, {}])
def test_activations_say_what_is_written(model, pixels, settings):
    """Activation x gain x written direction, summed: what the head's values, its z or the neurons write."""
    layer = 1
    found = directions(model, layer, **settings)
    seen = activations(model, pixels, found) * found.gains @ found.writes
    sites = ["attn.hook_v", "attn.hook_z", "mlp.hook_post"]
    run = model.run(pixels, capture=[f"blocks.{layer}.{site}" for site in sites])
    attn = model.blocks[layer].attn
    if settings.get("of") == "o":
        expected = run.cache["z", layer][:, :, 1] @ attn.W_O[1]
    elif not settings:
        expected = run.cache["post", layer] @ model.blocks[layer].mlp.W_out
    else:
        bias = attn.b_V[1]
        if found.folded:
            bias = bias + model.parts.blocks[layer].ln1.bias @ attn.W_V[1]
        expected = (run.cache["v", layer][:, :, 1] - bias) @ attn.W_O[1]
    testing.assert_close(seen, expected, 1e-11)


# as images


def test_the_planted_head_reads_brightness():
    bare = testing.hand_wired_vit(dtype=torch.float64)
    model = wrap(bare, preprocess=testing.tiny_preprocess())
    pixels, brightness = testing.hand_wired_images(40, dtype=torch.float64)
    found = directions(model, 0, 0)
    assert float(found.shares[0]) == pytest.approx(1), "one direction"
    table = read_as_images(model, pixels, directions(model, 0, 0, top=1), k=5, progress=False).table
    # The written pair has two entries of one size, so which sign is which is decided by rounding.
    best, patch = brightness.max(1)
    ends = {}
    for sign in "+-":
        rows = table.filter(table["sign"] == sign)
        ends[sign] = (rows["image"].to_list(), rows["token"].to_list(), rows["value"].to_list())
        assert (rows["row"] * 3 + rows["column"] + 1 == rows["token"]).all()
    order = best.argsort(descending=True)[:5]
    bright = (order.tolist(), (patch[order] + 1).tolist())
    assert bright in [(images, tokens) for images, tokens, _ in ends.values()]
    assert table["z"].max() > 1.5 and table["rank"].to_list() == [1, 2, 3, 4, 5] * 2


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("tokens", ["patch", "all"])
def test_batches_find_what_all_images_at_once_show(model, pixels, batch_size, tokens):
    found = directions(model, 1, 0)
    table = read_as_images(model, pixels, found, k=4, tokens=tokens, batch_size=batch_size, progress=False).table
    seen = activations(model, pixels, found)[:, 1 if tokens == "patch" else 0 :]
    for direction in range(4):
        for sign, word in ((1, "+"), (-1, "-")):
            rows = table.filter((table["direction"] == direction) & (table["sign"] == word))
            value, place = (sign * seen[:, :, direction]).max(1)
            order = value.argsort(descending=True)[:4]
            assert rows["image"].to_list() == order.tolist()
            assert rows["token"].to_list() == (place[order] + (tokens == "patch")).tolist()
            np.testing.assert_allclose(rows["value"], value[order], atol=1e-12)
            signed = sign * seen[:, :, direction]
            z = (value[order] - signed.mean()) / signed.std(correction=0)
            np.testing.assert_allclose(rows["z"], z, atol=1e-9)
            prefix = rows["token"] == 0
            assert rows["row"].is_null().equals(prefix.alias("row"))


def test_image_sets_give_their_names(model):
    images = mechvis.data.scenes(6, seed=2)
    scenes = mechvis.load("scenes-vit")
    found = read_as_images(scenes, images, directions(scenes, 0, 1, top=1), k=2, progress=False)
    assert set(found.table["id"]) <= set(images.ids)
    assert found.provenance["data"]["name"] == "scenes"


# as words


def planted_clip(sign=1):
    """A tiny CLIP whose head (2, 1) writes 3 x the first text for one direction and sign x the third for another, as
    far as a vector of the stream can reach a text."""
    bare = testing.tiny("clip", dtype=torch.float64)
    clip = mechvis.load(bare, preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    out = read_out(clip, TEXTS)
    writes = torch.linalg.pinv(out.into.T) @ out.targets[[0, 2]].T  # v into = text
    reads = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(3)).double())[0]
    attention = bare.vision_model.encoder.layers[2].self_attn
    gain = bare.vision_model.encoder.layers[2].layer_norm1.weight
    with torch.no_grad():
        attention.v_proj.weight[4:8] = 0
        attention.out_proj.weight[:, 4:8] = 0
        attention.v_proj.weight[4:6] = (reads / gain[:, None]).T
        attention.out_proj.weight[:, 4:6] = torch.nn.functional.normalize(writes, dim=0) * torch.tensor([30.0, sign])
    return clip, out, reads


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("final", [False, True])
def test_planted_texts_are_read_off(sign, final):
    """methods.md 2.7: W_VO is a sum of two rank-one maps to known texts."""
    clip, out, reads = planted_clip(sign)
    found = directions(clip.vision, 2, 1, top=2, final=final)
    table = read_as_words(found, out, k=1, draws=400).table
    for direction, text, least in ((0, 0, 0.999), (1, 2, 0.7)):
        rows = table.filter(table["direction"] == direction).sort("cosine", descending=True)
        assert rows["name"][0] == TEXTS[text] and rows["cosine"][0] > least
    first = table.filter(table["direction"] == 0).sort("cosine", descending=True)
    assert first["cosine"][0] > first["chance"][0] and first["p"][0] < 0.02
    if sign == 1 and not final:
        centred = reads[:, 0] - reads[:, 0].mean()
        assert abs(float(found.reads[0] @ centred / centred.norm())) > 0.99


def test_both_signs_and_ranks_are_told(model):
    out = read_out(model)
    found = directions(model, 2, 0)
    table = read_as_words(found, out, k=3, draws=50).table
    assert table.height == 4 * 2 * 3
    cosines = out.cosines(found.writes)
    for row in table.iter_rows(named=True):
        side = cosines[row["direction"]] * (1 if row["sign"] == "+" else -1)
        assert row["cosine"] == pytest.approx(float(side.sort(descending=True).values[row["rank"] - 1]))
        assert row["name"] == out.names[int(side.argsort(descending=True)[row["rank"] - 1])]
        scale = 1 if row["sign"] == "+" else -1
        class_ = out.names.index(row["name"])
        assert row["logit"] == pytest.approx(scale * float(out.logits(found.writes)[row["direction"], class_]))


def test_random_directions_are_as_near_as_chance_says(model):
    out = read_out(model)
    found = [
        read_as_words(directions(model, layer, head), out, k=1, draws=300).table for layer, head in np.ndindex(3, 4)
    ]
    ps = np.concatenate([table["p"].to_numpy() for table in found])
    assert 0.3 < ps.mean() < 0.7
    assert np.mean([(table["cosine"] > table["chance"]).mean() for table in found]) < 0.15


# bad input


def test_bad_settings(model, pixels):
    with pytest.raises(UnknownName, match="unknown source of directions 'qk'"):
        directions(model, 0, 1, of="qk")
    with pytest.raises(BadData, match="an MLP has no heads"):
        directions(model, 0, 1, of="mlp")
    with pytest.raises(BadData, match=r"of='o' with head=None"):
        directions(model, 0, of="o")
    with pytest.raises(OutOfRange, match="top must be at least 1"):
        directions(model, 0, 1, top=0)
    with pytest.raises(OutOfRange, match="heads 0 to 3"):
        directions(model, 0, 4, of="o")
    found = directions(model, 0, 1)
    with pytest.raises(OutOfRange, match="k and draws are at least 1"):
        read_as_words(found, read_out(model), k=0)
    with pytest.raises(OutOfRange, match="k and batch_size are at least 1"):
        read_as_images(model, pixels, found, batch_size=0)
    with pytest.raises(UnknownName, match="unknown kind of tokens 'cls'"):
        read_as_images(model, pixels, found, tokens="cls")
    with pytest.raises(BadData, match="no image to look at"):
        read_as_images(model, pixels[:0], found)


def test_directions_of_another_model(model, pixels):
    wide = wrap(testing.tiny("vit", hidden_size=32, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    with pytest.raises(ShapeMismatch, match="the directions are of another model"):
        read_as_images(model, pixels, directions(wide, 0, 1), progress=False)
    with pytest.raises(ShapeMismatch, match="have 16 entries in this model"):
        read_as_words(directions(wide, 0, 1), read_out(model))
    text = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess()).text
    with pytest.raises(BadData, match="this tower reads text"):
        read_as_images(text, pixels, directions(text, 0, 1))


def test_weights_that_cannot_be_decomposed():
    bare = testing.rand_vit()
    model = wrap(bare, preprocess=testing.tiny_preprocess())
    with torch.no_grad():
        bare.vit.layers[0].mlp.fc2.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"NaN or Inf in the weights of layer 0 \(mlp\)"):
        directions(model, 0)
    from dataclasses import replace

    from mechvis.hooked import HookedViT

    blocks = (replace(model.parts.blocks[0], linear_writes=False), *model.parts.blocks[1:])
    with pytest.raises(RefusedMethod, match="a norm lies between the MLP and the stream"):
        directions(HookedViT(bare, replace(model.parts, blocks=blocks)), 0)
