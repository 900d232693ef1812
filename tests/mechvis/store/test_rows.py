"""Rows are what a run captures: every site of every kind of family, every type, every selection of tokens."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

import mechvis
from mechvis.errors import BadData, OutOfRange, UnknownName, UnknownSite
from mechvis.testing import tiny, tiny_input, tiny_preprocess

FAMILIES = ("vit", "deit-distilled", "clip", "siglip", "dinov2-registers", "dinov3-gated", "beit")


def plainly(name, value, token_axis, tokens):
    """The rows of a captured activation, one image and one token at a time."""
    rows = []
    for image in value:
        if token_axis is None:
            rows.append(image.flatten())
        else:
            rows += [image.select(token_axis, token).flatten() for token in tokens]
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site(family, tmp_path):
    model = mechvis.load(tiny(family), preprocess=tiny_preprocess())
    model, pixels = getattr(model, "vision", model), tiny_input(family, n=5)
    names = model.graph.names
    store = mechvis.harvest(model, pixels, "*", out=tmp_path / "acts", shard=1, progress=False)
    assert list(store) == names
    for i in range(5):
        cache = model.run(pixels[i : i + 1], capture="*").cache
        for name in names:
            axes, value = model.graph[name].axes[1:], cache[name]
            words = [axis for axis in ("token", "query", "patch") if axis in axes]
            alone = not words or (value.shape[1] == 1 and model.parts.norm == "pooled" and model.parts.reads is None)
            axis = None if alone else axes.index(words[0])
            expected = plainly(name, value, axis, range(1 if axis is None else value.shape[1 + axis]))
            rows = store[name]
            assert torch.equal(rows.of_images([i])[0], expected), name
            image, token = rows.where(slice(i * len(expected), (i + 1) * len(expected)))
            assert (image == i).all()
            if axis is None:
                assert token.tolist() == [-1]
            elif words[0] == "patch":
                assert token.tolist() == list(range(len(model.parts.prefix), model.parts.n_tokens))
            elif value.shape[1 + axis] == model.parts.n_tokens:
                assert token.tolist() == list(range(model.parts.n_tokens))
            else:
                assert token.tolist() == list(model.parts.reads), name
            back = rows.unflatten(rows.of_images([i])[0])
            kept = [size for k, size in enumerate(value.shape[1:]) if k != axis]
            assert list(back.shape[1:]) == kept


def test_heads_lie_side_by_side(model, pixels, tmp_path):
    site = "blocks.0.attn.hook_z"
    store = mechvis.harvest(model, pixels[:4], site, out=tmp_path / "acts", tokens="cls", progress=False)
    z = model.run(pixels[:4], capture=site).cache[site]
    assert store[site].shape == (4, 16)
    assert torch.equal(store[site][:].unflatten(1, (4, 4)), z[:, 0])
    assert torch.equal(store[site].unflatten(store[site][:]), z[:, 0])


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11), ("float32", 24), (torch.bfloat16, 8)])
def test_only_the_last_bits_are_rounded(model, pixels, tmp_path, dtype, bits):
    site = "blocks.1.hook_resid_post"
    store = mechvis.harvest(model, pixels[:8], site, out=tmp_path / "acts", dtype=dtype, progress=False)
    value = model.run(pixels[:8], capture=site).cache[site].flatten(0, 1)
    read = store[site][:]
    assert read.dtype == getattr(torch, str(dtype).removeprefix("torch."))
    assert torch.equal(read, value.to(read.dtype)), "rounded once, to the nearest"
    assert ((read.float() - value).abs() <= 2.0**-bits * value.abs() + 2.0**-24).all()


def test_a_model_keeps_its_own_type(pixels, tmp_path):
    model = mechvis.load(tiny("vit", dtype=torch.float64), preprocess=tiny_preprocess())
    site = "blocks.1.hook_resid_post"
    store = mechvis.harvest(model, pixels[:4].double(), site, out=tmp_path / "acts", progress=False)
    assert torch.equal(store[site][:], model.run(pixels[:4].double(), capture=site).cache[site].flatten(0, 1))


def test_drawn_tokens_are_those_that_are_named(model, pixels, tmp_path):
    site = "blocks.1.hook_resid_post"
    store = mechvis.harvest(
        model, pixels[:20], site, out=tmp_path / "acts", tokens="cls,patches:3", seed=5, progress=False
    )
    value = model.run(pixels[:20], capture=site).cache[site]
    image, token = store[site].where(slice(None))
    assert torch.equal(store[site][:], value[torch.from_numpy(image), torch.from_numpy(token)])
    assert token.reshape(20, 4)[:, 0].tolist() == [0] * 20
    assert len(set(token.tolist())) == 10, "every patch of some image"
    other = mechvis.harvest(
        model, pixels[:20], site, out=tmp_path / "b", tokens="cls,patches:3", seed=6, progress=False
    )
    assert not np.array_equal(other[site].where(slice(None))[1], token)


def test_the_files_are_ordinary_safetensors(whole):
    """Anybody can read them: rows, and the token of every row."""
    for name in whole:
        rows, at = whole[name], 0
        for path in sorted((whole.folder / "shards" / name).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                assert set(file.keys()) == {"activations", "token", "crc32"}
                start = int(file.metadata()["images"].split("-")[0])
                values, token = file.get_tensor("activations"), file.get_tensor("token")
                assert file.metadata()["site"] == name
            assert start * rows.site.per_image == at
            assert torch.equal(values, rows[at : at + len(values)])
            assert np.array_equal(token.numpy(), rows.where(slice(at, at + len(values)))[1])
            at += len(values)
        assert at == len(rows)


def test_rows_by_number(whole):
    rows = whole["blocks.1.mlp.hook_post"]
    everything = rows[:]
    assert rows.shape == everything.shape == (900, 32) and rows.dtype == torch.float32 and len(rows) == 900
    for index in (slice(3, 700, 13), slice(None, None, -1), [5, 5, 899, 0], np.array([-1, 3]), slice(7, 7)):
        assert torch.equal(rows[index], everything[torch.arange(900).numpy()[index].copy()]), index
    mask = np.arange(900) % 7 == 0
    assert torch.equal(rows[mask], everything[torch.from_numpy(mask)])
    assert torch.equal(rows[17], everything[17]) and torch.equal(rows[-1], everything[-1])
    assert torch.equal(rows.of_images([8, 3, 8]), everything.unflatten(0, (90, 10))[[8, 3, 8]])
    image, token = rows.where([0, 10, 899])
    assert image.tolist() == [0, 1, 89] and token.tolist() == [0, 0, 9]


def test_a_site_without_tokens_has_one_row_per_image(whole, model, pixels):
    rows = whole["hook_pooled"]
    assert rows.shape == (90, 16) and rows.where([4])[1].tolist() == [-1]
    assert torch.allclose(rows[:], model.run(pixels, capture="hook_pooled").cache["hook_pooled"], atol=1e-6)


@pytest.mark.parametrize("index", [900, -901, [3, 900], 1.5, "x", np.ones(5, dtype=bool)])
def test_rows_that_are_not_there(whole, index):
    with pytest.raises(OutOfRange):
        whole["blocks.1.mlp.hook_post"][index]


def test_refused(model, pixels, whole, tmp_path):
    def harvest(sites, **more):
        return mechvis.harvest(model, pixels, sites, out=tmp_path / "acts", progress=False, **more)

    with pytest.raises(UnknownSite, match=r"no site matches 'blocks.0.atn.hook_z'. Nearest: blocks.0.attn.hook_z"):
        harvest("blocks.0.atn.hook_z")
    with pytest.raises(UnknownName, match="unknown dtype 'int8'"):
        harvest("hook_embed", dtype="int8")
    with pytest.raises(BadData, match="no sites"):
        harvest([])
    assert not (tmp_path / "acts").exists()
    with pytest.raises(UnknownSite, match=r"'blocks.2.hook_resid_post' is not in this store. It has: blocks"):
        whole["blocks.2.hook_resid_post"]


def test_tokens_that_do_not_reach_a_site(tmp_path):
    clip = mechvis.load(tiny("clip"), preprocess=tiny_preprocess())
    pixels = tiny_input("clip", n=3)
    site, out = "ln_final.hook_normalized", tmp_path / "acts"
    with pytest.raises(BadData, match=r"token 1 \(a patch\) does not get there; the site has token\(s\) 0"):
        mechvis.harvest(clip.vision, pixels, site, out=out, tokens="patches", progress=False)
    assert mechvis.harvest(clip.vision, pixels, site, out=out, tokens="cls", progress=False)[site].shape == (3, 16)
    with pytest.raises(BadData, match=r"give clip\.vision"):
        mechvis.harvest(clip, pixels, site, out=out, progress=False)
    with pytest.raises(BadData, match="this is a text tower"):
        mechvis.harvest(clip.text, tiny_input("clip-text"), "hook_embed", out=out, progress=False)
