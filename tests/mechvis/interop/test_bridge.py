"""A transformer_lens TransformerBridge loads: the model inside it, with the bridge left as it is."""

import copy

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import mechvis
from mechvis import edits
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, tiny, tiny_input, tiny_preprocess

FAMILIES = ("vit", "deit")


def boot(family, folder):
    """A bridge around a copy of a tiny model, and the model itself as the bridge sets it: explicit attention."""
    bare = tiny(family, attention="eager")
    bare.config.architectures = [type(bare).__name__]
    bare.config.save_pretrained(folder)  # a folder, so that nothing is asked of the network
    tiny_preprocess().processor.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=copy.deepcopy(bare), device="cpu")
    return bare, bridge


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    return boot(request.param, tmp_path_factory.mktemp(request.param))


def test_a_bridge_loads_as_the_model_inside_it(pair):
    bare, bridge = pair
    pixels = tiny_input("vit")
    with assert_untouched(bridge):
        model = mechvis.load(bridge, preprocess=tiny_preprocess())
        run = model.run(pixels, capture="*")
    expected = wrap(bare, preprocess=tiny_preprocess()).run(pixels, capture="*")
    assert model.parity.plain == 0
    assert torch.equal(run.logits, expected.logits) and list(run.cache) == list(expected.cache)
    assert all(torch.equal(run.cache[name], expected.cache[name]) for name in run.cache)
    with torch.no_grad():
        assert torch.equal(run.logits, bridge(pixels))


def test_it_shares_the_weights_and_not_the_hooks(pair):
    _, bridge = pair
    pixels = tiny_input("vit")
    model = mechvis.load(bridge, preprocess=tiny_preprocess())
    inside = {id(p) for p in bridge.parameters()} | {id(p) for p in bridge.original_model.parameters()}
    assert {id(p) for p in model.parameters()} <= inside
    clean = model.run(pixels).logits
    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 0)]), torch.no_grad():
        assert not torch.equal(bridge(pixels), clean)
        assert torch.equal(model(pixels), clean)
    weight = bridge.blocks[0].attn.o.original_component.weight
    with torch.no_grad():
        weight.mul_(2)
        try:
            assert torch.equal(model(pixels), bridge(pixels)) and not torch.equal(model(pixels), clean)
        finally:
            weight.mul_(0.5)


def test_the_model_a_bridge_was_built_around_loads_too(pair):
    """The bridge has replaced its parts, so its own class no longer says what it holds."""
    bare, bridge = pair
    model = mechvis.load(bridge.original_model, preprocess=tiny_preprocess())
    with torch.no_grad():
        assert torch.equal(model(tiny_input("vit")), bare(tiny_input("vit")).logits)


def test_its_image_processor_comes_with_it(tmp_path):
    _, bridge = boot("vit", tmp_path)
    model = mechvis.load(bridge)
    assert model.preprocess.height == 12 and model.preprocess.source == "given"


def test_ablation_by_bridge_and_by_us_agree(pair):
    _, bridge = pair
    pixels = tiny_input("vit")
    model = mechvis.load(bridge, preprocess=tiny_preprocess())
    for layer, head in ((0, 1), (1, 3), (2, 0)):

        def cut(z, hook, head=head):
            z = z.clone()
            z[:, :, head] = 0
            return z

        site = f"blocks.{layer}.attn.hook_z"
        with torch.no_grad():
            theirs = bridge.run_with_hooks(pixels, fwd_hooks=[(site, cut)])
        ours = model.run(pixels, edits=edits.zero(site, heads=[head])).logits
        assert_close(ours, theirs, 1e-6)
