"""Sweeps over latents: the wave front against one full run per latent, at every site and by every edit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange
from mechvis.hooked import HookedViT
from mechvis.units import Unit, units_of
from sae.splicing import splice

QUIET = {"labels": "predicted", "progress": False}


def both(model, pixels, units, edit="zero", **more):
    found = [
        mechvis.sweep(model, pixels, units=units, edit=edit, engine=engine, metric=("logit", "kl"), **QUIET, **more)
        for engine in ("wave", "plain")
    ]
    for name in ("logit", "kl"):
        fast, slow = (one.values[name] for one in found)
        assert fast.shape == slow.shape and np.abs(slow).max() > 1e-6, "something must happen at all"
        assert np.abs(fast - slow).max() < 1e-10 * max(1, np.abs(slow).max())
    return found[0]


def headed(model):
    """A model with a head: some of its outputs, where it has none."""
    if model.parts.head is not None:
        return model
    parts = replace(model.parts, head=lambda x: x[..., :4], class_names=("a", "b", "c", "d"))
    return HookedViT(model.bare, parts, preprocess=model.preprocess)


def some(model, site, n=6, error=True):
    layer = int(site.split(".")[1])
    latents = [Unit(layer, "latents", i, at=site) for i in range(0, 24, 24 // n)]
    return latents + ([Unit(layer, "errors", at=site)] if error else [])


PLACES = [
    f"blocks.{layer}.{word}"
    for layer in (1, 2)
    for word in ("hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
]


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
@pytest.mark.parametrize("site", PLACES)
@pytest.mark.parametrize("family", ["vit", "dinov2", "siglip-vision"])
def test_the_wave_front_is_one_run_per_latent(tiny_model, a_dictionary, family, site):
    model, pixels = tiny_model(family)
    model = headed(model)
    spliced = splice(model, a_dictionary(model, pixels, site))
    found = both(spliced, pixels, some(spliced, site))
    assert found.table["at"].unique().to_list() == [site]
    assert found.table["latent"].null_count() == 2, "one error unit, two metrics"


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
@pytest.mark.parametrize("edit", ["mean", "mean_positional", "resample", "patch"])
@pytest.mark.parametrize("site", ["blocks.1.attn.hook_z", "blocks.2.hook_resid_post"])
def test_every_edit(tiny_model, a_dictionary, edit, site):
    model, pixels = tiny_model()
    spliced = splice(headed(model), a_dictionary(model, pixels, site))
    source = {"source": pixels.flip(0)} if edit == "patch" else {}
    both(spliced, pixels, some(spliced, site), edit=edit, **source)


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
@pytest.mark.parametrize("kind", ["none", "token_norm", "layer_norm"])
def test_every_normaliser(tiny_model, a_dictionary, kind):
    model, pixels = tiny_model()
    site = "blocks.1.hook_resid_mid"
    both(splice(headed(model), a_dictionary(model, pixels, site, normalise=kind)), pixels, some(model, site))


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
@pytest.mark.parametrize("layer", [1, 2])
def test_a_transcoder(tiny_model, a_dictionary, layer):
    model, pixels = tiny_model()
    site = f"blocks.{layer}.hook_mlp_out"
    d = a_dictionary(model, pixels, f"blocks.{layer}.ln2.hook_normalized", site)
    torch.manual_seed(0)
    both(splice(headed(model), d), pixels, some(model, site))


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_a_dictionary_of_some_tokens(tiny_model, a_dictionary):
    model, pixels = tiny_model()
    for site in ("blocks.1.hook_resid_post", "blocks.2.attn.hook_z"):
        spliced = splice(headed(model), a_dictionary(model, pixels, site), tokens=[0, 3, 4])
        both(spliced, pixels, some(spliced, site))


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_a_block_whose_writes_are_not_linear(tiny_model, a_dictionary):
    model, pixels = tiny_model()
    model = headed(model)
    norm = nn.LayerNorm(16, dtype=torch.float64)
    blocks = tuple(replace(block, scale1=norm, scale2=norm, linear_writes=False) for block in model.parts.blocks)
    odd = HookedViT(model.bare, replace(model.parts, blocks=blocks), preprocess=model.preprocess)
    for site in ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.2.hook_mlp_out"):
        both(splice(odd, a_dictionary(odd, pixels, site)), pixels, some(odd, site))


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_units_of_all_kinds_and_dictionaries_together(tiny_model, a_dictionary):
    model, pixels = tiny_model()
    sites = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    spliced = headed(model)
    for site in sites:
        spliced = splice(spliced, a_dictionary(model, pixels, site))
    units = [unit for site in sites for unit in some(spliced, site, 3)]
    units += [Unit(1, "heads", 0), Unit(1, "tokens", 4), Unit(1, "neurons", 2), Unit(2, "mlp_out"), Unit(0, "attn_out")]
    both(spliced, pixels, units)
    assert len(units_of(spliced, "latents")) == 72 and len(units_of(spliced, "latents", [1])) == 48
    assert [unit.name for unit in units_of(spliced, "errors")] == [
        "L0 z error",
        "L1 resid_post error",
        "L1 resid_pre error",
    ]


def test_more_latents_than_are_changed_together(tiny_model, a_dictionary):
    model, pixels = tiny_model()
    site = "blocks.1.hook_resid_post"
    spliced = splice(headed(model), a_dictionary(model, pixels, site, n=150, k=60))
    units = [Unit(1, "latents", i, at=site) for i in range(150)]
    fast = mechvis.sweep(spliced, pixels, units="latents", metric="logit", **QUIET)
    few = mechvis.sweep(spliced, pixels, units=units[100:], metric="logit", **QUIET)
    assert np.abs(fast.values["logit"][100:] - few.values["logit"]).max() < 1e-12
    row = fast.row(unit="L1 resid_post latent 17") if hasattr(fast, "row") else fast.table.row(17, named=True)
    assert row["latent"] == 17 and row["layer"] == 1


def test_what_does_not_exist(tiny_model, a_dictionary):
    model, pixels = tiny_model()
    site = "blocks.1.hook_resid_post"
    d = a_dictionary(model, pixels, site)
    kept, replaced = splice(model, d), splice(model, d, error=False)
    with pytest.raises(BadData, match=r"this model has no dictionary, so it has no latents: sae\.splice"):
        units_of(model, "latents")
    with pytest.raises(BadData, match="this model has no dictionary"):
        units_of(model, [Unit(1, "latents", 0, at=site)])
    for unit in (Unit(1, "latents", 24, at=site), Unit(2, "latents", 0, at=site), Unit(1, "latents", 0, at="x"),
                 Unit(1, "latents", at=site), Unit(1, "errors", 1, at=site)):  # fmt: skip
        with pytest.raises(OutOfRange, match="does not exist: this model's dictionaries have latents 24 at"):
            units_of(kept, [unit])
    with pytest.raises(BadData, match=r"no dictionary with errors inside these layers.*without error term"):
        units_of(replaced, "errors")
    with pytest.raises(BadData, match="no dictionary with latents inside these layers"):
        units_of(kept, "latents", [0])
    pooled = splice(model, a_dictionary(model, pixels, "hook_pooled"))
    with pytest.raises(BadData, match="no dictionary with latents inside these layers"):
        units_of(pooled, "latents")


def test_a_dictionary_that_the_wave_front_has_no_rule_for(tiny_model, a_dictionary):
    model, pixels = tiny_model()
    model = headed(model)
    d = a_dictionary(model, pixels, "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
    spliced = splice(model, d)
    with pytest.raises(BadData, match=r"the wave front has no rule for latents that read .*; use engine='plain'"):
        mechvis.sweep(spliced, pixels, units="latents", **QUIET)


def test_a_sweep_goes_on_where_it_stopped_and_knows_its_dictionary(tiny_model, a_dictionary, tmp_path):
    model, pixels = tiny_model()
    site = "blocks.1.hook_resid_post"
    first, other = (splice(headed(model), a_dictionary(model, pixels, site, seed=seed)) for seed in (0, 1))
    found = mechvis.sweep(first, pixels, units="latents", out=tmp_path, **QUIET)
    again = mechvis.sweep(first, pixels, units="latents", out=tmp_path, **QUIET)
    assert (found.values["logit_diff"] == again.values["logit_diff"]).all()
    with pytest.raises(mechvis.errors.ResultMismatch):
        mechvis.sweep(other, pixels, units="latents", out=tmp_path, **QUIET)


def test_screening_in_bfloat16_finds_the_same_latents(tiny_model, a_dictionary):
    model = headed(mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess()))
    pixels = testing.tiny_input("vit", n=6)
    site = "blocks.1.hook_resid_post"
    spliced = splice(model, a_dictionary(model, pixels, site))
    full = mechvis.sweep(spliced, pixels, units="latents", **QUIET)
    screened = mechvis.sweep(spliced, pixels, units="latents", screen="bf16", recheck=6, **QUIET)
    best = set(full.table.sort("effect", descending=True)["unit"].head(2))
    assert best <= set(screened.table.filter(screened.table["precision"] != "bf16")["unit"])
