"""The familiar surfaces: transformer_lens on the wrapped model, and three independent oracles for one ablation."""

import copy
import subprocess
import sys
import textwrap

import pytest
import torch

from mechvis import edits
from mechvis.errors import BadData, UnknownSite
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess


@pytest.fixture(scope="module")
def model():
    return wrap(rand_vit(), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", dtype=torch.float64)


@pytest.fixture(scope="module")
def cached(model, pixels):
    return model.run_with_cache(pixels)


# the surface of transformer_lens


def test_it_is_a_hooked_root_module_of_hook_points(model):
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.HookedRootModule import HookedRootModule

    assert isinstance(model, HookedRootModule)
    assert list(model.hook_dict) and all(isinstance(point, HookPoint) for point in model.hook_dict.values())
    assert model.hook_dict["blocks.1.attn.hook_z"] is model.blocks[1].attn.hook_z
    assert model.blocks[1].attn.hook_z.name == "blocks.1.attn.hook_z" and model.blocks[1].attn.hook_z.layer() == 1


def test_run_with_cache_holds_what_run_captures(model, pixels, cached):
    output, cache = cached
    ours = model.run(pixels, capture="*").cache
    assert_close(output, ours["hook_logits"], 1e-13)
    assert set(cache.keys()) == {name for name in model.graph.names if not name.endswith("hook_result")}
    assert all(torch.equal(cache[name], ours[name]) for name in cache)
    assert torch.equal(cache["z", 1], ours["z", 1]) and torch.equal(cache["resid_post", -1], ours["resid_post", -1])


def test_run_with_cache_filters(model, pixels):
    _, cache = model.run_with_cache(pixels, names_filter=lambda name: name.endswith("hook_z"))
    assert len(cache) == 3
    for names in ("blocks.*.hook_resid_post", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "vit.layers.2"]):
        assert sorted(model.run_with_cache(pixels, names_filter=names)[1]) == [
            f"blocks.{i}.hook_resid_post" for i in range(3)
        ]
    with pytest.raises(UnknownSite, match="hook_zz"):
        model.run_with_cache(pixels, names_filter="*hook_zz")
    with pytest.raises(BadData, match="matches none"):
        model.run_with_cache(pixels, names_filter=lambda name: False)
    _, plain = model.run_with_cache(pixels, return_cache_object=False)
    assert isinstance(plain, dict)


def test_run_with_cache_on_another_device_leaves_the_model(model, pixels):
    with assert_untouched(model):
        _, cache = model.run_with_cache(pixels, names_filter="*hook_z", device="meta")
    assert all(value.device.type == "meta" for value in cache.values()) and model.device.type == "cpu"


@pytest.mark.parametrize(
    "site,heads",
    [("blocks.1.attn.hook_z", [2]), ("blocks.0.attn.hook_pattern", [1]), ("blocks.2.attn.hook_result", [0, 3])],
)
def test_run_with_hooks_is_run_with_edits(model, pixels, site, heads):
    def ablate(x, hook):
        assert hook.name == site
        x = x.clone()
        x[:, :, heads] = 0 if "pattern" not in site else x[:, :, heads]
        if "pattern" in site:
            x[:, heads] = 0
        return x

    hooked = model.run_with_hooks(pixels, fwd_hooks=[(site, ablate)])
    assert_close(hooked, model.run(pixels, edits=[edits.zero(site, heads=heads)]).logits, 1e-13)
    assert_close(model(pixels), model.run(pixels).logits, 0)


@pytest.mark.parametrize("site", ["blocks.1.attn.hook_z", "blocks.1.attn.hook_result", "blocks.0.ln2.hook_scale"])
def test_hooks_that_change_in_place(model, pixels, site):
    def halve(x, hook):
        x *= 0.5

    assert_close(
        model.run_with_hooks(pixels, fwd_hooks=[(site, halve)]),
        model.run(pixels, edits=[edits.scale(site, 0.5)]).logits,
        1e-13,
    )


def test_hooks_context_and_add_hook(model, pixels):
    clean, ablated = model.run(pixels).logits, model.run(pixels, edits=[edits.zero("blocks.0.hook_mlp_out")]).logits
    with assert_untouched(model):
        with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x * 0)]):
            assert_close(model(pixels), ablated, 1e-13)
        model.add_hook("vit.layers.0.mlp", lambda x, hook: x * 0)  # a native name
        assert_close(model(pixels), ablated, 1e-13)
        model.reset_hooks()
        assert torch.equal(model(pixels), clean)
    with pytest.raises(UnknownSite, match=r"Nearest: blocks\.0\.attn\.hook_z"):
        model.run_with_hooks(pixels, fwd_hooks=[("blocks.0.attn.hook_zz", lambda x, hook: x)])


def test_backward_hooks_see_the_gradient(model, pixels):
    seen = {}
    site = "blocks.1.attn.hook_z"
    with model.hooks(bwd_hooks=[(site, lambda grad, hook: seen.update({hook.name: grad.clone()}))]):
        model(pixels).square().sum().backward()
    model.zero_grad()
    run = model.run(pixels, capture=[site], grad=True)
    (expected,) = torch.autograd.grad(run.logits.square().sum(), run.cache[site])
    assert_close(seen[site], expected, 1e-13)


# ActivationCache and FactoredMatrix


def test_residual_decomposition_sums_to_the_stream(model, cached):
    _, cache = cached
    parts, labels = cache.decompose_resid(layer=-1, pos_slice=0, return_labels=True)
    assert labels[0] == "embed" and len(labels) == 7
    assert_close(parts.sum(0), cache["resid_post", -1][:, 0], 1e-13)


def test_head_results_sum_to_the_attention_output(model, pixels, cached):
    _, cache = cached
    heads = cache.stack_head_results(layer=-1, pos_slice=0)
    assert heads.shape == (12, 3, 16)
    written = sum(cache["attn_out", layer][:, 0] for layer in range(3))
    biases = sum(block.attn.b_O for block in model.blocks)
    assert_close(heads.sum(0) + biases, written, 1e-13)
    assert_close(model.accumulated_bias(3, include_mlp_biases=False), biases, 1e-14)


def test_logit_attributions_sum_to_the_logits(model, pixels, cached):
    logits, cache = cached
    parts = cache.decompose_resid(layer=-1, pos_slice=0)
    bare = model.bare
    with torch.no_grad():
        shift = bare.vit.layernorm.bias @ bare.classifier.weight.T + bare.classifier.bias
        for label in range(8):
            attributions = cache.logit_attrs(parts, tokens=torch.full((3,), label), pos_slice=0)
            assert attributions.shape == (7, 3)
            assert_close(attributions.sum(0) + shift[label], logits[:, label].detach(), 1e-12)


def test_our_cache_becomes_a_transformer_lens_cache(model, pixels):
    cache = model.run(pixels, capture="*").cache.to_tl_cache(model)
    assert_close(cache.decompose_resid(layer=-1, pos_slice=0).sum(0), cache["resid_post", -1][:, 0], 1e-13)


def test_factored_matrices(model):
    from transformer_lens import FactoredMatrix

    attn = model.blocks[1].attn
    assert isinstance(attn.OV, FactoredMatrix) and isinstance(attn.QK, FactoredMatrix)
    assert_close(attn.OV.AB, attn.W_V @ attn.W_O, 1e-14)
    assert_close(attn.QK.AB, attn.W_Q @ attn.W_K.transpose(-2, -1), 1e-14)
    assert attn.OV.svd()[1].shape == (4, 4)
    assert model.W_Q.shape == model.W_K.shape == model.W_V.shape == (3, 4, 16, 4) and model.W_O.shape == (3, 4, 4, 16)


# oracles


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_captures_equal_those_of_a_transformer_lens_bridge(family, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    bare = tiny(family, attention="eager")
    bare.config.architectures = [type(bare).__name__]
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit")
    bare.config.save_pretrained(tmp_path)  # a folder, so that nothing is asked of the network
    tiny_preprocess().processor.save_pretrained(tmp_path)
    # The bridge changes its model for good, so it gets a copy.
    bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=copy.deepcopy(bare), device="cpu")
    with torch.no_grad():
        logits, theirs = bridge.run_with_cache(pixels)
    ours = model.run(pixels, capture="*")
    assert torch.equal(ours.logits, logits)
    compared = 0
    for name in model.graph.names:
        # The bridge takes `normalized` before gain and bias, and rebuilds scores after the fact.
        if name in theirs.keys() and not name.endswith(("hook_normalized", "hook_attn_scores")):  # noqa: SIM118
            assert torch.equal(ours.cache[name], theirs[name]), name
            compared += 1
    assert compared >= 3 * 14


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_head_ablation_equals_a_raw_torch_hook(attention):
    bare = tiny("vit", attention=attention)
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit")
    for layer in range(3):
        for head in range(4):

            def cut(module, args, at=slice(4 * head, 4 * head + 4)):
                z = args[0].clone()
                z[..., at] = 0
                return (z,)

            handle = bare.vit.layers[layer].attention.o_proj.register_forward_pre_hook(cut)
            with torch.no_grad():
                expected = bare(pixels).logits
            handle.remove()
            ours = model.run(pixels, edits=[edits.zero(f"blocks.{layer}.attn.hook_z", heads=[head])]).logits
            assert torch.equal(ours, expected), (layer, head)


def test_head_ablation_equals_nnsight_on_the_bare_model(tmp_path):
    # In a process of its own: importing nnsight changes Tensor.backward and clashes with beartype.
    script = """
        import torch, warnings
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        from nnsight import NNsight
        from mechvis import edits
        from mechvis.models.load import wrap
        from mechvis.testing import tiny, tiny_input, tiny_preprocess

        bare, pixels = tiny("vit"), tiny_input("vit")
        model, traced = wrap(bare, preprocess=tiny_preprocess()), NNsight(bare)
        for layer, head in ((0, 1), (1, 2), (2, 3)):
            with torch.no_grad(), traced.trace(pixels):
                traced.vit.layers[layer].attention.o_proj.input[..., 4 * head : 4 * head + 4] = 0
                theirs = traced.output.logits.save()
            ours = model.run(pixels, edits=[edits.zero(f"blocks.{layer}.attn.hook_z", heads=[head])]).logits
            assert torch.equal(ours, theirs), (layer, head, float((ours - theirs).abs().max()))
            with torch.no_grad(), traced.trace(pixels):
                z = traced.vit.layers[layer].attention.o_proj.input.save()
            captured = model.run(pixels, capture="*hook_z").cache["z", layer]
            assert torch.equal(captured.flatten(2), z)
        print("equal")
    """
    path = tmp_path / "ablate.py"  # nnsight reads the source of the block that traces, so it has to be in a file
    path.write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr[-2000:]
