"""Causal swaps where the answer is known: a crosscoder that writes every column exactly, so swaps are exact too."""

import numpy as np
import pytest
import torch

import mechvis
import sae
from mechvis.errors import BadData, EffectlessEdit, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing import tiny, tiny_input, tiny_preprocess
from sae.architectures import Crosscoder
from sae.diffing import SwapSite, causal_swap
from sae.diffing.swap import similar

SITE = "blocks.1.hook_resid_post"
P, Q = [*range(16), *range(32, 48)], [*range(16, 32), *range(48, 64)]
"""Latents of the first and of the second model: one per column and sign."""


@pytest.fixture(scope="module")
def setting():
    """Two random models; f = ReLU(±x), so the codes of a model's columns are that model's activation and no more."""
    models = {
        name: mechvis.load(tiny("vit", seed=seed, dtype=torch.float64), preprocess=tiny_preprocess())
        for seed, name in enumerate("pq")
    }
    images = [tiny_input("vit", seed=seed, dtype=torch.float64) for seed in (1, 2)]
    rows = {f"{name}/{SITE}": m.run(images[0], capture=[SITE]).cache[SITE][:, 0] for name, m in models.items()}
    d = sae.start(Crosscoder(n_latents=64, normalise="none"), rows)
    with torch.no_grad():
        signed = torch.cat([torch.eye(32), -torch.eye(32)]).double()
        d.W_enc.copy_(signed)
        d.W_dec.copy_(signed)
        d.b_enc.zero_()
        d.b_dec.zero_()
    sites = {f"{name}/{SITE}": SwapSite(model=model, site=SITE) for name, model in models.items()}
    return d, sites, *images


def test_latents_of_one_model_move_that_model_all_the_way_and_the_other_not_at_all(setting):
    d, sites, base, source = setting
    found = causal_swap(d, sites, base, source, {"p": P, "all": P + Q}, draws=0)
    moved = {(row["group"], row["model"]): row["moved"] for row in found.table.iter_rows(named=True)}
    assert abs(moved["p", "p"] - 1) < 1e-9 and abs(moved["p", "q"]) < 1e-9
    assert abs(moved["all", "p"] - 1) < 1e-9 and abs(moved["all", "q"] - 1) < 1e-9
    assert found.table["n"].to_list() == [len(base)] * 4


def test_random_latents_of_similar_activity_are_the_control(setting):
    d, sites, base, source = setting
    found = causal_swap(d, sites, base, source, {"p": P[:8]}, draws=3)
    row = found.pick(group="p", model="p")
    assert row["random"] <= row["random_most"] and row["moved_low"] <= row["moved"] <= row["moved_high"]
    with pytest.raises(BadData, match="too few for random groups"):
        causal_swap(d, sites, base, source, {"all": P + Q}, draws=1)


def test_one_token_is_exchanged_alone(setting):
    """Only the class token of the last block reaches the classifier: with it all is moved, with another nothing."""
    d, sites, base, source = setting
    last = {name: SwapSite(model=at.model, site="blocks.2.hook_resid_post") for name, at in sites.items()}
    found = causal_swap(d, last, base, source, {"p": P}, tokens=[0], draws=0)
    assert abs(found.pick(group="p", model="p")["moved"] - 1) < 1e-9
    with pytest.warns(EffectlessEdit, match="token 3 is not read"):
        found = causal_swap(d, last, base, source, {"p": P}, tokens=[3], draws=0)
    assert abs(found.pick(group="p", model="p")["moved"]) < 1e-9


def test_similar_latents_resemble_and_do_not_repeat():
    activity = np.array([0, 1.0, 1.1, 0.9, 1.2, 0.8, 100, 110, 90, 120, 80, 0])
    for group in similar(activity, [1, 6], 20, 0):
        assert len(set(group)) == 2 and not set(group) & {0, 1, 6, 11}
    near = [group for group in similar(activity, [6], 20, 0)]
    assert {i for (i,) in near} <= {7, 8, 9, 10}
    assert similar(activity, [1, 6], 3, 0) == similar(activity, [1, 6], 3, 0)


def test_bad_questions_are_refused(setting):
    d, sites, base, source = setting
    with pytest.raises(UnknownName, match="site of the crosscoder"):
        causal_swap(d, {f"p/{SITE}": sites[f"p/{SITE}"]}, base, source, {"p": P})
    with pytest.raises(ShapeMismatch, match="as many sources"):
        causal_swap(d, sites, base, source[:1], {"p": P})
    with pytest.raises(BadData, match="at least one latent"):
        causal_swap(d, sites, base, source, {"p": []})
    with pytest.raises(OutOfRange, match="latent 64"):
        causal_swap(d, sites, base, source, {"p": [64]})
    with pytest.raises(BadData, match="the same outputs"):
        causal_swap(d, sites, base, base, {"p": P}, draws=0)
