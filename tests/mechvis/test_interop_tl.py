"""transformer_lens on the wrapped model, and independent oracles for one ablation (nnsight: interop/traces.py)."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from mechvis import edits
from mechvis.clip import ZeroShotHead
from mechvis.errors import BadData, EffectlessEdit, OutOfRange, UnknownName, UnknownSite
from mechvis.hooked import HookedViT
from mechvis.interop.transformer_lens import ByToken
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess
from mechvis.testing.tiny import tiny_families


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


def test_run_with_cache_and_gradients(model, pixels):
    def loss(logits):
        return (logits[:, 3] - logits[:, 1]).sum()

    names = [name for name in model.graph.names if name != "hook_logits"]
    model.cfg.use_attn_result = True
    try:
        with assert_untouched(model):
            logits, cache = model.run_with_cache(pixels, incl_bwd=True, loss=loss)
    finally:
        model.cfg.use_attn_result = False
    run = model.run(pixels, capture=names, grad=True)
    expected = torch.autograd.grad(loss(run.logits), [run.cache[name] for name in names])
    assert_close(logits, run.logits, 1e-12)
    for name, gradient in zip(names, expected, strict=True):
        # A run sees head results and patterns as they are; the graph behind them is the same function.
        assert_close(cache[name + "_grad"], gradient, 1e-10, name)
        assert_close(cache[name], run.cache[name], 1e-12, name)


def test_gradients_need_one_number(model, pixels):
    with pytest.raises(BadData, match=r"one number, got \[3, 8\]"), assert_untouched(model):
        model.run_with_cache(pixels, incl_bwd=True)
    with pytest.raises(BadData, match="both or none"):
        model.run_with_cache(pixels, loss=torch.sum)
    with pytest.raises(TypeError, match="bwd_hoks"):  # no keyword is swallowed
        model.run_with_cache(pixels, bwd_hoks=[])


def test_gradients_reach_every_hook_with_frozen_weights(pixels):
    bare = rand_vit()
    bare.requires_grad_(False)
    frozen = wrap(bare, preprocess=tiny_preprocess())
    _, cache = frozen.run_with_cache(pixels, incl_bwd=True, loss=torch.sum)
    _, reference = wrap(rand_vit(), preprocess=tiny_preprocess()).run_with_cache(pixels, incl_bwd=True, loss=torch.sum)
    assert set(cache) == set(reference) and len(cache) == 2 * (len(frozen.graph) - 3)
    assert all(torch.equal(cache[name], reference[name]) for name in cache)


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


# ActivationCache adds up: ViT, LayerScale, CLIP with a zero-shot head, mean pooling


def zero_shot(dtype=torch.float64):
    clip = wrap(tiny("clip", dtype=dtype), preprocess=tiny_preprocess())
    prompts = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))  # float32: a head takes the model's type
    head = ZeroShotHead(prompts / prompts.norm(dim=-1, keepdim=True), clip.logit_scale.detach(), torch.tensor(-1.5))
    parts = replace(clip.vision.parts, head=head, class_names=("ant", "bee", "cat", "dog", "emu"))
    return HookedViT(clip.bare, parts, preprocess=tiny_preprocess())


def layer_scaled(dtype=torch.float64):
    model = wrap(rand_vit(dtype=dtype), preprocess=tiny_preprocess())
    gains = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.5
    blocks = tuple(
        replace(block, scale1=lambda x, g=gains[0, i]: x.mul_(g), scale2=lambda x, g=gains[1, i]: x * g)
        for i, block in enumerate(model.parts.blocks)
    )
    return HookedViT(model.bare, replace(model.parts, blocks=blocks), preprocess=tiny_preprocess())


MODELS = {
    "ViT": lambda dtype=torch.float64: wrap(rand_vit(dtype=dtype), preprocess=tiny_preprocess()),
    "DeiT": lambda dtype=torch.float64: wrap(tiny("deit", dtype=dtype), preprocess=tiny_preprocess()),
    "LayerScale": layer_scaled,
    "BEiT": lambda dtype=torch.float64: wrap(tiny("beit", dtype=dtype), preprocess=tiny_preprocess()),
    "zero-shot CLIP": zero_shot,
}


@pytest.fixture(scope="module", params=MODELS)
def any_model(request):
    return MODELS[request.param]()


def stacks(cache, position=0):
    return {
        "decompose_resid": cache.decompose_resid(layer=-1, pos_slice=position),
        "heads and neurons": cache.get_full_resid_decomposition(expand_neurons=True, pos_slice=position),
        "heads and layers": cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=position),
        "heads and remainder": cache.stack_head_results(layer=-1, incl_remainder=True, pos_slice=position),
        "neurons and remainder": cache.stack_neuron_results(-1, incl_remainder=True, pos_slice=position),
    }


def check_sums(model, pixels, tolerance):
    with torch.no_grad():
        logits, cache = model.run_with_cache(pixels)
        residual, constant = cache["resid_post", -1][:, 0], cache.constant_logits()
        for name, stack in stacks(cache).items():
            assert_close(stack.sum(0), residual, tolerance, name)
            for label in range(logits.shape[1]):
                shares = cache.logit_attrs(stack, tokens=torch.full((len(pixels),), label), pos_slice=0)
                assert shares.shape == stack.shape[:2]
                assert_close(shares.sum(0) + constant[:, label], logits[:, label], tolerance, f"{name}, {label}")


def test_parts_add_up_to_the_stream_and_the_logits(any_model, pixels):
    check_sums(any_model, pixels, 1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_parts_add_up_in_single_precision(name, pixels):
    check_sums(MODELS[name](torch.float32), pixels.float(), 1e-5)


def test_cached_head_results_are_the_ones_that_add_up(any_model, pixels):
    """With hook_result in the cache transformer_lens takes it, without it makes it from z and W_O: the same."""
    with torch.no_grad():
        _, lazy = any_model.run_with_cache(pixels)
        _, full = any_model.run_with_cache(pixels, names_filter=lambda name: True)
        assert_close(full.stack_head_results(-1), lazy.stack_head_results(-1), 1e-12)
        for layer, block in enumerate(any_model.blocks):
            assert_close(full["result", layer].sum(2) + block.attn.b_O, full["attn_out", layer], 1e-12)
            assert_close(full["post", layer] @ block.mlp.W_out + block.mlp.b_out, full["mlp_out", layer], 1e-12)


@pytest.mark.parametrize("layer,mlp_input", [(0, False), (1, False), (1, True), (2, True)])
def test_parts_of_a_later_input_add_up_through_its_norm(any_model, pixels, layer, mlp_input):
    with torch.no_grad():
        _, cache = any_model.run_with_cache(pixels)
        stack = cache.get_full_resid_decomposition(layer, mlp_input=mlp_input, apply_ln=True, expand_neurons=False)
        name = f"blocks.{layer}.ln{2 if mlp_input else 1}"
        norm = getattr(any_model.parts.blocks[layer], "ln2" if mlp_input else "ln1")
        assert_close(stack.sum(0) * norm.weight + norm.bias, cache[name + ".hook_normalized"], 1e-11)


def test_projected_neurons_are_neurons_projected(any_model, pixels):
    with torch.no_grad():
        _, cache = any_model.run_with_cache(pixels)
        direction = any_model.tokens_to_residual_directions(2)
        for options in ({}, {"apply_ln": True}):
            full = cache.stack_neuron_results(-1, pos_slice=0, **options) @ direction
            folded = cache.stack_neuron_results(-1, pos_slice=0, project_output_onto=direction, **options)
            assert_close(folded, full, 1e-11)


def test_logit_differences_names_and_slices(any_model, pixels):
    with torch.no_grad():
        logits, cache = any_model.run_with_cache(pixels)
        stack = cache.decompose_resid(layer=-1, pos_slice=0)
        one, other = logits.argmax(-1), logits.argmin(-1)
        difference = cache.logit_attrs(stack, one, other, pos_slice=0)
        assert_close(
            difference, cache.logit_attrs(stack, one, pos_slice=0) - cache.logit_attrs(stack, other, pos_slice=0), 1e-11
        )
        name = any_model.parts.class_names[3]
        named = cache.logit_attrs(stack, name, pos_slice=0)
        assert torch.equal(named, cache.logit_attrs(stack, 3, pos_slice=0))
        assert_close(cache.logit_attrs(stack, 3, pos_slice=0, batch_slice=1), named[:, 1], 1e-12)
        assert_close(cache.logit_attrs(stack, 3, pos_slice=0, batch_slice=[2, 0]), named[:, [2, 0]], 1e-12)
        part = cache.apply_slice_to_batch_dim([2, 0])
        assert_close(part.logit_attrs(part.decompose_resid(-1, pos_slice=0), 3, pos_slice=0), named[:, [2, 0]], 1e-12)
        assert_close(part.constant_logits(), cache.constant_logits()[[2, 0]], 1e-12)
        _, single = any_model.run_with_cache(pixels[1:2], remove_batch_dim=True)
        shares = single.logit_attrs(single.decompose_resid(-1, pos_slice=0), 3, pos_slice=0, has_batch_dim=False)
        assert_close(shares, named[:, 1], 1e-11)
        assert_close(shares.sum() + single.constant_logits()[3], logits[1, 3], 1e-11)
    with pytest.raises(OutOfRange, match="class 99 does not exist"):
        cache.logit_attrs(stack, 99, pos_slice=0)
    with pytest.raises(UnknownName, match="Nearest"):
        cache.logit_attrs(stack, "no such class", pos_slice=0)


def test_a_zero_shot_head_needs_the_embedding(pixels):
    _, cache = zero_shot().run_with_cache(pixels, names_filter=["*hook_embed", "*_out", "ln_final.hook_scale"])
    with pytest.raises(BadData, match="cache 'hook_embedding' too"):
        cache.logit_attrs(cache.decompose_resid(-1, pos_slice=0), 1, pos_slice=0)


@pytest.mark.parametrize("family", [name for name in tiny_families() if name != "clip-text"])
def test_the_stream_of_every_family_is_the_sum_of_its_parts(family):
    model = wrap(tiny(family, dtype=torch.float64), preprocess=tiny_preprocess())
    model = getattr(model, "vision", model)
    with torch.no_grad():
        _, cache = model.run_with_cache(tiny_input(family, dtype=torch.float64))
        for expand in (True, False):
            stack = cache.get_full_resid_decomposition(expand_neurons=expand)
            assert_close(stack.sum(0), cache["resid_post", -1], 1e-12)


MEAN_POOLED = {
    "clip-classifier": slice(1, None),  # patches, and no last norm: nothing is centred or divided
    "siglip-classifier": slice(None),  # all tokens, each after its norm
    "beit-mean": slice(1, None),  # the norm of the mean over patches
}


@pytest.mark.parametrize("family", MEAN_POOLED)
def test_mean_pooling_adds_up(family):
    model = wrap(tiny(family, dtype=torch.float64), preprocess=tiny_preprocess())
    with torch.no_grad():
        logits, cache = model.run_with_cache(tiny_input(family, dtype=torch.float64))
        stack = cache.decompose_resid(-1)
        for label in range(logits.shape[1]):
            if model.parts.norm == "pooled":
                mean = stack[:, :, MEAN_POOLED[family]].mean(2)
                shares = cache.logit_attrs(mean, label, pos_slice=0)
            else:
                shares = cache.logit_attrs(stack, label)[:, :, MEAN_POOLED[family]].mean(-1)
            assert_close(shares.sum(0) + cache.constant_logits()[:, label], logits[:, label], 1e-11)


def test_reads_of_a_logit_lens(model, pixels):
    with torch.no_grad():
        logits, cache = model.run_with_cache(pixels)
        stack = cache.accumulated_resid(apply_ln=True, incl_mid=True, pos_slice=0)
        assert stack.shape == (7, 3, 16)
        assert_close(stack[-1] @ model.W_U + model.b_U, logits, 1e-11)
        assert_close(cache.logit_lens(positions=0).values[-1], logits, 1e-11)
        assert cache.stack_activation("pattern").shape == (3, 3, 4, 10, 10)


def test_what_has_no_class_directions_says_so(pixels):
    cases = {"vit-base": "need a head", "deit-distilled": "reads 2 tokens", "dinov2-classifier": "reads 32 numbers"}
    for family, reason in cases.items():
        headless = wrap(tiny(family, dtype=torch.float64), preprocess=tiny_preprocess())
        with pytest.raises(BadData, match=reason):
            headless.tokens_to_residual_directions(0)
        assert headless.unembed is None
    bare = rand_vit()
    bare.classifier = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)).double()
    deep = wrap(bare.eval(), preprocess=tiny_preprocess())
    with pytest.raises(BadData, match="not linear"):
        deep.tokens_to_residual_directions(0)


def test_a_norm_behind_the_heads_is_no_sum(pixels):
    model = wrap(rand_vit(), preprocess=tiny_preprocess())
    norm = torch.nn.LayerNorm(16, dtype=torch.float64)
    blocks = tuple(replace(block, scale1=norm, scale2=norm, linear_writes=False) for block in model.parts.blocks)
    _, cache = HookedViT(model.bare, replace(model.parts, blocks=blocks)).run_with_cache(pixels)
    assert_close(cache.decompose_resid(-1).sum(0), cache["resid_post", -1], 1e-11)
    for broken in (lambda: cache.stack_head_results(-1), lambda: cache.stack_neuron_results(-1)):
        with pytest.raises(BadData, match="no sum of what they write"):
            broken()


# its activation patching is our patch edit


PATCHING = {
    "attn_head_out_all_pos": ("attn.hook_z", ("head",)),
    "attn_head_q_all_pos": ("attn.hook_q", ("head",)),
    "attn_head_k_all_pos": ("attn.hook_k", ("head",)),
    "attn_head_v_all_pos": ("attn.hook_v", ("head",)),
    "attn_head_pattern_all_pos": ("attn.hook_pattern", ("head",)),
    "attn_head_out_by_pos": ("attn.hook_z", ("token", "head")),
    "attn_head_q_by_pos": ("attn.hook_q", ("token", "head")),
    "attn_head_k_by_pos": ("attn.hook_k", ("token", "head")),
    "attn_head_v_by_pos": ("attn.hook_v", ("token", "head")),
    "attn_head_pattern_by_pos": ("attn.hook_pattern", ("head", "token")),
    "attn_head_pattern_dest_src_pos": ("attn.hook_pattern", ("head", "token", "unit")),
    "resid_pre": ("hook_resid_pre", ("token",)),
    "resid_mid": ("hook_resid_mid", ("token",)),
    "attn_out": ("hook_attn_out", ("token",)),
    "mlp_out": ("hook_mlp_out", ("token",)),
}


@pytest.mark.parametrize(
    "which,name",
    [("ViT", name) for name in PATCHING]
    + [("zero-shot CLIP", name) for name in ("attn_head_out_all_pos", "attn_head_pattern_by_pos", "resid_pre")],
)
def test_its_patching_sweeps_are_our_patch_edits(which, name):
    from transformer_lens import patching

    site, axes = PATCHING[name]
    model = MODELS[which](torch.float32)
    clean, corrupt = tiny_input("vit", n=2), tiny_input("vit", n=2, seed=5)

    def metric(logits):
        return (logits[:, 1] - logits[:, 2]).mean()

    with torch.no_grad(), assert_untouched(model):
        _, cache = model.run_with_cache(clean)
        view = ByToken(model, corrupt)
        given = (view, view.tokens) if "token" in axes else (model, corrupt)
        theirs = getattr(patching, f"get_act_patch_{name}")(*given, cache, metric)
        sizes = {"head": 4, "token": 10, "unit": 10}
        assert theirs.shape == (3, *(sizes[axis] for axis in axes))
        source = model.run(clean, capture="*").cache  # every site, as theirs: attention is explicit then
        for layer in range(3):
            for index in np.ndindex(*theirs.shape[1:]):
                where = {f"{axis}s": [i] for axis, i in zip(axes, index, strict=True)}
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", EffectlessEdit)  # the last block at tokens that are not read
                    run = model.run(corrupt, edits=edits.patch(f"blocks.{layer}.{site}", source, **where))
                assert torch.equal(theirs[(layer, *index)], metric(run.logits)), f"{layer} {where}"


def test_stacked_sweeps_run(pixels):
    from transformer_lens import patching

    model = MODELS["ViT"](torch.float32)
    clean, corrupt = tiny_input("vit", n=1), tiny_input("vit", n=1, seed=5)
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
        view = ByToken(model, corrupt)
        given = (view, view.tokens, cache, lambda logits: logits[:, 1].mean())
        assert patching.get_act_patch_attn_head_all_pos_every(*given).shape == (5, 3, 4)
        assert patching.get_act_patch_block_every(*given).shape == (3, 3, 10)
        assert patching.get_act_patch_attn_head_by_pos_every(*given).shape == (5, 3, 10, 4)


def test_what_asks_for_a_bridge_fails_and_says_so(pixels):
    from transformer_lens import patching
    from transformer_lens.tools.analysis import attribution_patching

    model = MODELS["ViT"](torch.float32)
    _, cache = model.run_with_cache(pixels.float())
    with pytest.raises(AttributeError, match="set_use_split_qkv_input"):
        patching.get_act_patch_direct_path(model, pixels.float(), cache, cache, torch.sum, 0, 1)
    with pytest.raises(ValueError, match="token tensors"):
        attribution_patching.attribution_patch(model, pixels.float(), pixels.float(), torch.sum)


def test_its_direct_logit_attribution_adds_up(any_model, pixels):
    from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

    with torch.no_grad():
        logits, cache = any_model.run_with_cache(pixels)
        shares = direct_logit_attribution(any_model, pixels, answer_tokens=1, incorrect_tokens=2, pos=0).attribution
        constant = cache.constant_logits()
        assert_close(shares.sum(0) + constant[:, 1] - constant[:, 2], logits[:, 1] - logits[:, 2], 1e-11)


def test_pixels_are_no_tokens(model, pixels):
    view = ByToken(model, pixels)
    assert view.tokens.shape == (3, 10) and view.cfg.n_layers == 3
    with torch.no_grad():
        assert torch.equal(view(view.tokens[[2, 0]]), model(pixels[[2, 0]]))
        assert_close(view.run_with_cache(view.tokens)[0], model(pixels), 1e-12)
    with pytest.raises(BadData, match=r"takes its own \.tokens"):
        view(pixels)


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
