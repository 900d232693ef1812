"""A run that stops at the last captured site: the same values, nothing computed after it, nothing left behind."""

import pytest
import torch

import mechvis
from mechvis import edits
from mechvis.errors import BadData, EditNeverFired
from mechvis.run import ACTIVE, AllCaptured
from mechvis.testing import assert_untouched, tiny, tiny_families, tiny_input, tiny_preprocess


@pytest.fixture(scope="module")
def model():
    return mechvis.load(tiny("vit"), preprocess=tiny_preprocess())


@pytest.mark.parametrize("family", [name for name in tiny_families() if "text" not in name])
def test_every_site_alone_has_the_value_of_a_whole_run(family):
    model = mechvis.load(tiny(family), preprocess=tiny_preprocess())
    model, pixels = getattr(model, "vision", model), tiny_input(family)
    for site in model.graph.names:
        whole, short = (model.run(pixels, capture=site, stop_when_captured=stop) for stop in (False, True))
        assert torch.equal(short.cache[site], whole.cache[site]), site
        assert torch.equal(short.output, whole.cache[site]), "the output is the last captured site"
        assert short.output_site == site


def test_nothing_after_the_site_is_computed(model):
    layers = model.bare.vit.layers
    called = []
    handles = [
        part.register_forward_hook(lambda *_, name=f"{i}.{kind}": called.append(name))
        for i, layer in enumerate(layers)
        for kind, part in (("norm", layer.layernorm_before), ("fc1", layer.mlp.fc1), ("fc2", layer.mlp.fc2))
    ]
    try:
        model.run(tiny_input("vit"), capture="blocks.1.mlp.hook_post", stop_when_captured=True)
        assert called == ["0.norm", "0.fc1", "0.fc2", "1.norm", "1.fc1"]
        called.clear()
        several = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
        model.run(tiny_input("vit"), capture=several, stop_when_captured=True)
        assert called == ["0.norm", "0.fc1", "0.fc2"]
    finally:
        for handle in handles:
            handle.remove()


def test_nothing_is_left(model):
    with assert_untouched(model):
        model.run(tiny_input("vit"), capture="blocks.0.hook_resid_mid", stop_when_captured=True)
    assert ACTIVE.get() is None


def test_gradients_reach_the_site(model):
    run = model.run(tiny_input("vit"), capture="blocks.0.hook_resid_mid", stop_when_captured=True, grad=True)
    assert run.cache["blocks.0.hook_resid_mid"].requires_grad


def test_an_edit_behind_the_stop_is_an_error(model):
    with pytest.raises(EditNeverFired, match="never fired"):
        model.run(
            tiny_input("vit"), edits=edits.zero("blocks.2.attn.hook_z"), capture="hook_embed", stop_when_captured=True
        )


def test_stopping_for_nothing_is_refused(model):
    with pytest.raises(BadData, match="nothing to capture"):
        model.run(tiny_input("vit"), stop_when_captured=True)
    assert issubclass(AllCaptured, Exception)
