"""What changed codes of crosscoders write, over layers and over models."""

import pytest
import torch

import mechvis
import sae
from mechvis import edits, testing
from mechvis.errors import BadData, ShapeMismatch, UnknownName
from mechvis.testing import assert_close
from sae.splicing import ablate, written_changes

SITES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]


@pytest.fixture(scope="module")
def crosscoder(tiny_model):
    model, pixels = tiny_model("vit")
    cache = model.run(pixels, capture=SITES).cache
    rows = {
        name: cache[name].flatten(2).flatten(0, 1) if cache[name].ndim == 4 else cache[name].flatten(0, 1)
        for name in SITES
    }
    return sae.start(sae.TopK(n_latents=24, k=4), rows), cache


def test_a_crosscoder_over_layers(tiny_model, crosscoder, tmp_path):
    model, pixels = tiny_model("vit")
    d, cache = crosscoder
    changes = written_changes(d, cache, [3, 5], tokens="patches")
    assert [edit.site for edit in changes] == SITES and {edit.kind for edit in changes} == {"add"}
    codes = d.encode(
        {name: cache[name].flatten(2) if cache[name].ndim == 4 else cache[name] for name in SITES}
    ).detach()
    less = codes.clone()
    less[..., [3, 5]] = 0
    new = d.ends.split((d.decode(less) - d.decode(codes)).detach())
    by_hand = []
    for name in SITES:
        vector = new[name].reshape(cache[name].shape).clone()
        vector[:, 0] = 0
        by_hand.append(edits.add(name, vector))
    expected = model.run(pixels, edits=by_hand).output
    assert_close(model.run(pixels, edits=changes).output, expected, 1e-11)
    saved = edits.load(edits.save(changes, tmp_path / "changes"))
    assert torch.equal(model.run(pixels, edits=saved).output, model.run(pixels, edits=changes).output)
    doubled = written_changes(d, cache, lambda codes: codes * 2, sites={SITES[0]: SITES[0]})
    assert len(doubled) == 1


def test_a_crosscoder_over_two_models(tiny_model):
    model, pixels = tiny_model("vit")
    other = mechvis.load(testing.tiny("vit", seed=3, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    site = "blocks.1.hook_resid_post"
    both = {name: m.run(pixels, capture=[site]).cache[site] for name, m in (("a", model), ("b", other))}
    rows = {f"{name}/{site}": value.flatten(0, 1) for name, value in both.items()}
    d = sae.start(sae.TopK(n_latents=24, k=4), rows)
    activations = {f"{name}/{site}": value for name, value in both.items()}
    (change,) = written_changes(d, activations, [2], sites={f"b/{site}": site})
    codes = d.encode(d.ends.read(activations)).detach()
    expected = both["b"] - codes[..., 2, None] * d.directions[2, 16:].detach()
    assert_close(other.run(pixels, edits=[change], capture=[site]).cache[site], expected, 1e-12)


def test_of_an_autoencoder_it_is_the_ordinary_edit(tiny_model, a_dictionary):
    model, pixels = tiny_model("vit")
    site = "blocks.1.hook_resid_post"
    d = a_dictionary(model, pixels, site, normalise="layer_norm")
    cache = model.run(pixels, capture=[site]).cache
    found = model.run(pixels, edits=written_changes(d, cache, [3, 4])).output
    assert_close(found, model.run(pixels, edits=[ablate(d, [3, 4])]).output, 1e-11)


def test_refusals(crosscoder):
    d, cache = crosscoder
    with pytest.raises(BadData, match=r"this dictionary reads blocks\.1\.attn\.hook_z; the activations have"):
        written_changes(d, {SITES[0]: cache[SITES[0]]}, [1])
    with pytest.raises(ShapeMismatch, match="of the same rows and tokens"):
        written_changes(d, {SITES[0]: cache[SITES[0]], SITES[1]: cache[SITES[1]][:2]}, [1])
    with pytest.raises(UnknownName, match="site that is written"):
        written_changes(d, cache, [1], sites={"x": "y"})
    with pytest.raises(BadData, match="at least one, from 0 to 23"):
        written_changes(d, cache, [24])
    with pytest.raises(ShapeMismatch, match="changed codes must be"):
        written_changes(d, cache, lambda codes: codes[:1])
