"""Feature flow: planted pairs of dictionaries (F18), the null, chains, transport through a model."""

import numpy as np
import pytest
import torch

import mechvis
import sae
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from mechvis.testing import assert_close
from sae.flow import FeatureFlow, feature_flow, match, null_cosine, steering_chain, transported


def dict_pair(seed=0):
    """F18: 20 features of width 64; 15 go on permuted, with noise .05 per number, 5 are new."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((20, 64))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    order = rng.permutation(20)
    second = rng.standard_normal((20, 64))
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    kept = order[:15]
    second[:15] = first[kept] + 0.05 * rng.standard_normal((15, 64))
    place = rng.permutation(20)
    return torch.from_numpy(first), torch.from_numpy(second[place]), kept, place


def a_dictionary(rows, site, codes=None):
    """A dictionary with these decoder rows, which codes along them."""
    n, d = rows.shape
    made = sae.start(
        sae.TopK(n_latents=n, k=min(4, n), normalise="none"), {site: torch.randn(50, d).double()}, reads=site
    )
    with torch.no_grad():
        made.W_dec.copy_(rows)
        made.W_enc.copy_(rows)
        made.b_dec.zero_()
        made.b_enc.zero_()
    return made


@pytest.mark.parametrize("seed", range(4))
def test_the_planted_pair(seed):
    first, second, kept, place = dict_pair(seed)
    found = match(first, second, seed=seed)
    persists = [i for i, fate in enumerate(found.fate) if fate == "persists"]
    assert sorted(persists) == sorted(kept), "15 of 15, and no other"
    position = {int(p): j for j, p in enumerate(place)}
    assert all(position[k] == found.forward[i] for k, i in enumerate(kept))
    cosines = found.cosine[kept, found.forward[kept]]
    assert cosines.min() > 0.88 and 0.90 < cosines.mean() < 0.95
    born = [j for j, fate in enumerate(found.origin) if fate == "born"]
    assert sorted(int(place[j]) for j in born) == list(range(15, 20))
    assert found.cosine[:, born].max() < found.tau_lo


def test_the_null_is_as_specified_and_follows_the_covariance():
    first, second, *_ = dict_pair()
    assert 0.36 < null_cosine(first, second, isotropic=True) < 0.42, ".39 in the specification"
    crowded = torch.from_numpy(
        np.random.default_rng(0).standard_normal((20, 3)) @ np.random.default_rng(1).standard_normal((3, 64))
    )
    assert null_cosine(crowded, crowded) > 0.9, "rows in three dimensions: random ones come near too"
    assert null_cosine(crowded, crowded, isotropic=True) < 0.5
    unrelated = torch.from_numpy(
        np.random.default_rng(2).standard_normal((20, 3)) @ np.random.default_rng(1).standard_normal((3, 64))
    )
    assert match(crowded, unrelated).fate.count("persists") < 20


def test_identical_dictionaries_are_the_identity_and_shuffled_rows_are_nothing():
    first, *_ = dict_pair()
    same = match(first, first)
    assert (same.forward == np.arange(20)).all() and set(same.fate) == set(same.origin) == {"persists"}
    rng = np.random.default_rng(0)
    shuffled = torch.from_numpy(np.stack([rng.permutation(row) for row in first.numpy()]))
    found = match(first, shuffled)
    assert found.fate.count("persists") <= 1 and found.fate.count("dies") >= 17


def test_length_does_not_matter():
    first, second, *_ = dict_pair()
    assert match(first * 7, second * torch.rand(20, 1).double().add(0.1)).fate == match(first, second).fate


def test_through_three_layers(tmp_path):
    first, second, kept, place = dict_pair()
    a, b, c = a_dictionary(first, "l0"), a_dictionary(second, "l1"), a_dictionary(second.flip(0), "l2")
    codes = torch.relu(torch.randn(400, 20, generator=torch.Generator().manual_seed(0))).double() * (
        torch.rand(400, 20) < 0.2
    )
    later = torch.zeros(400, 20).double()
    position = {int(p): j for j, p in enumerate(place)}
    for k, i in enumerate(kept):
        later[:, position[k]] = codes[:, i]
    activations = {"l0": codes @ first, "l1": later @ second, "l2": later @ second}
    flow = feature_flow([a, b, c], activations=activations)
    counts = flow.counts()
    assert counts["persists"].to_list() == [15, 20] and counts["born"].to_list() == [5, 0]
    assert counts["active_together"][0] > 0.9
    i = int(kept[0])
    assert flow.chain(i) == [i, position[0], 19 - position[0]]
    dies = next(i for i in range(20) if i not in kept)
    assert flow.chain(dies) == [dies]
    assert flow.chain(3, step=1) == [3, 16]
    again = FeatureFlow.load(flow.save(tmp_path / "flow"))
    assert again.table.equals(flow.table) and again.chain(i) == flow.chain(i)
    assert len(flow.figures()) == 1 and flow.report(tmp_path / "flow.html").exists()
    with pytest.raises(OutOfRange, match="step 2 does not exist"):
        flow.chain(0, step=2)
    with pytest.raises(OutOfRange, match="latent 20 does not exist"):
        flow.chain(20)


def test_where_born_latents_come_from():
    first, second, _, place = dict_pair()
    born = [j for j in range(20) if place[j] >= 15]
    writes = {
        0: {"attention": a_dictionary(second[born[:2]] + 0.02, "attn"), "mlp": a_dictionary(second[born[2:4]], "mlp")}
    }
    flow = feature_flow([a_dictionary(first, "l0"), a_dictionary(second, "l1")], writes=writes)
    table = flow.table
    found = {row["next"]: row["from"] for row in table.iter_rows(named=True) if row["fate"] == "born"}
    assert {found[j] for j in born[:2]} == {"attention"} and {found[j] for j in born[2:4]} == {"mlp"}
    assert found[born[4]] is None


def test_a_chain_of_edits_has_the_length_that_was_asked_for():
    model = mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", n=4, dtype=torch.float64)
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    cache = model.run(pixels, capture=sites).cache
    dictionaries = [sae.start(sae.TopK(n_latents=24, k=12), {s: cache[s].flatten(0, 1)}) for s in sites]
    chain = [int(d.encode(cache[s]).sum((0, 1)).argmax()) for d, s in zip(dictionaries, sites, strict=True)]
    made = steering_chain(dictionaries, chain, 3.0, cache, tokens="patches")
    assert [edit.site for edit in made] == sites
    lengths = [float(edit.values["*"].norm()) * edit.factor for edit in made]
    assert abs(sum(lengths) - 3.0) < 1e-9
    natural = [
        float(codes[codes > 0].mean()) * float(d.directions[latent].detach().norm())
        for d, s, latent in zip(dictionaries, sites, chain, strict=True)
        for codes in [d.encode(cache[s])[..., latent].detach()]
    ]
    assert abs(lengths[0] / lengths[1] - natural[0] / natural[1]) < 1e-9
    assert not torch.equal(model.run(pixels, edits=made).output, model.run(pixels).output)
    for given, error, text in [
        (([], 1.0, cache), BadData, "a chain of 0 latents"),
        (([99], 1.0, cache), OutOfRange, "latent 99 does not exist"),
        ((chain, 1.0, {}), BadData, "there are no activations of"),
    ]:
        with pytest.raises(error, match=text):
            steering_chain(dictionaries, *given)


def test_directions_moved_through_a_model():
    model = mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", n=3, dtype=torch.float64)
    site, to = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    d = sae.start(sae.TopK(n_latents=6, k=2), {site: model.run(pixels, capture=[site]).cache[site].flatten(0, 1)})
    found = transported(model, d, to, pixels, latents=[0, 4])
    x = model.run(pixels, capture=[site]).cache[site]

    # The mean slope times a direction, from the other side: by the gradient of what arrives along any vector.
    stream = x.requires_grad_(True)
    out = model.run(stream, start_at_layer=1, stop_at_layer=2, grad=True).output.mean((0, 1))
    along = torch.randn(16, generator=torch.Generator().manual_seed(0)).double()
    (slope,) = torch.autograd.grad(out @ along, stream)
    for latent, one in zip([0, 4], found, strict=True):
        row = d.directions[latent].detach() / d.directions[latent].detach().norm()
        assert_close((one @ along)[None], (slope.sum((0, 1)) @ row)[None], 1e-5)
    with pytest.raises(OutOfRange, match="does not come after"):
        transported(model, d, site, pixels)
    with pytest.raises(ShapeMismatch, match="they do not fit"):
        transported(model, d, to, pixels, site="blocks.0.mlp.hook_post")


def test_what_cannot_be_compared():
    first, second, *_ = dict_pair()
    with pytest.raises(ShapeMismatch, match="of width 64 and 32"):
        match(first, second[:, :32])
    with pytest.raises(NotFinite):
        match(first * float("nan"), second)
    with pytest.raises(OutOfRange, match="at least 100 draws"):
        null_cosine(first, second, draws=5)
    with pytest.raises(BadData, match="1 dictionary: flow needs at least two layers"):
        feature_flow([a_dictionary(first, "l0")])
    cross = sae.start(sae.TopK(n_latents=8, k=2), {"a": torch.randn(20, 4), "b": torch.randn(20, 4)})
    with pytest.raises(BadData, match="write one site each"):
        feature_flow([cross, cross])
