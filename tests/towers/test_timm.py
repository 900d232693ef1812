"""timm models: the wrapped model is the bare one, over every option that timm's classes have."""

import sys
import warnings
from functools import partial

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import Attention, GlobalResponseNormMlp, GluMlp, LayerNorm, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer

from mechvis.decompose import terms
from mechvis.errors import (
    BadData,
    BadImages,
    DefaultPreprocessing,
    MissingPackage,
    RefusedMethod,
    UnknownName,
    UnsupportedModel,
)
from mechvis.models import timm as maps
from mechvis.models.load import load, wrap
from mechvis.testing import assert_close, assert_untouched, check_family
from mechvis.units import units_of
from mechvis.wave import wave

TINY = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2, "num_classes": 5}
DROPS = {"drop_rate": 0.1, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}
ROPE = {"use_rot_pos_emb": True, "use_abs_pos_emb": False}
DINOV3 = {
    **ROPE,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "num_reg_tokens": 2,
    "init_values": 1.0,
    "use_fc_norm": False,
    "dynamic_img_size": True,
    "qkv_bias": False,
}
PE = {**ROPE, "use_abs_pos_emb": True, "attn_type": "rope", "use_pre_transformer_norm": True, "rope_grid_offset": 1.0}
LAMBDA = partial(RmsNorm, eps=1e-5)

VIT = {
    "plain": {},
    "no head": {"num_classes": 0},
    "norm after pooling a token": {"fc_norm": True},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 2},
    "registers without class token": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "mean": {"global_pool": "avg"},
    "mean without norm after": {"global_pool": "avg", "fc_norm": False},
    "mean with prefix": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 1},
    "maximum": {"global_pool": "max"},
    "mean and maximum": {"global_pool": "avgmax", "reg_tokens": 1},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "attention pooling, norm after": {"class_token": False, "global_pool": "map", "fc_norm": True, "num_classes": 0},
    "attention pooling of the prefix": {"global_pool": "map", "reg_tokens": 1, "pool_include_prefix": True},
    "attention pooling of patches": {"global_pool": "map", "reg_tokens": 2, "no_embed_class": True},
    "no pooling": {"global_pool": ""},
    "no pooling, no class token": {"global_pool": "", "class_token": False, "num_classes": 0},
    "no pooling, norm after": {"global_pool": "", "fc_norm": True},
    "no final norm": {"final_norm": False},
    "norm before": {"pre_norm": True},
    "query-key norm": {"qk_norm": True},
    "LayerScale": {"init_values": 0.1},
    "norms inside": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "RMS norms": {"norm_layer": LAMBDA, "embed_norm_layer": LAMBDA, "qk_norm": True, "scale_attn_norm": True},
    "without biases": {"qkv_bias": False, "proj_bias": False},
    "without positions": {"pos_embed": "none"},
    "SwiGLU": {"mlp_layer": SwiGLU, "scale_mlp_norm": True},
    "SwiGLU packed": {"mlp_layer": SwiGLUPacked},
    "gated, gate last": {"mlp_layer": partial(GluMlp, gate_last=True)},
    "norms on the writes": {"block_fn": ResPostBlock, "class_token": False, "global_pool": "avg"},
    "norms on the writes, token": {"block_fn": ResPostBlock, "norm_layer": LAMBDA},
    "any size": {"dynamic_img_size": True, "reg_tokens": 2, "init_values": 0.1},
    "any size, positions without prefix": {"dynamic_img_size": True, "no_embed_class": True, "global_pool": "avg"},
    "any size, padded": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "dropout in train mode": {**DROPS, "patch_drop_rate": 0.25},
    "QuickGELU": {"act_layer": "quick_gelu", "norm_layer": partial(LayerNorm, eps=1e-3), "pre_norm": True},
    "oblong image": {"img_size": (8, 16), "patch_size": (4, 2)},
    "one channel": {"in_chans": 1},
    "everything": {
        "class_token": False,
        "reg_tokens": 2,
        "no_embed_class": True,
        "global_pool": "map",
        "pool_include_prefix": True,
        "qk_norm": True,
        "init_values": 0.1,
        "scale_attn_norm": True,
        "mlp_layer": SwiGLU,
        "scale_mlp_norm": True,
        "norm_layer": LAMBDA,
        "pre_norm": True,
        "dynamic_img_size": True,
    },
}

EVA = {
    "plain": {},
    "mean without norm": {"use_fc_norm": False, "use_post_transformer_norm": False},
    "two norms": {"use_fc_norm": True, "use_post_transformer_norm": True},
    "token": {"global_pool": "token"},
    "token, no head": {"global_pool": "token", "num_classes": 0},
    "no pooling": {"global_pool": "", "num_classes": 0},
    "attention pooling": {"global_pool": "map", "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 3},
    "rotary": ROPE,
    "rotary and positions": {"use_rot_pos_emb": True, "init_values": 0.1},
    "rotary, xy": {**ROPE, "rope_grid_indexing": "xy", "rope_grid_offset": 0.5, "img_size": (8, 16)},
    "rotary, reference shape": {**ROPE, "ref_feat_shape": 5, "dynamic_img_size": True},
    "rotary, halves": {**ROPE, "rope_rotate_half": True, "num_reg_tokens": 2},
    "rotary without prefix": {**ROPE, "class_token": False},
    "mixed rotary": {**ROPE, "rope_type": "mixed", "rope_temperature": 10.0, "global_pool": "token"},
    "mixed rotary, any size": {**ROPE, "rope_type": "mixed", "dynamic_img_size": True, "no_embed_class": True},
    "DINOv3": DINOV3,
    "DINOv3, mean": {**DINOV3, "use_post_transformer_norm": False, "use_fc_norm": True, "dynamic_img_size": False},
    "DINOv3 plus": {**DINOV3, "swiglu_mlp": True, "swiglu_align_to": 8, "global_pool": "token"},
    "MRoPE": {**ROPE, "rope_type": "mrope", "rope_mrope_section": (1, 1, 2)},
    "PE": {**PE, "global_pool": "map", "attn_pool_num_heads": 4, "rope_grid_indexing": "xy", "num_classes": 0},
    "PE spatial": {**PE, "class_token": False, "init_values": 0.1, "use_fc_norm": False, "dynamic_img_size": True},
    "projections apart": {"qkv_fused": False, **ROPE},
    "projections apart, no bias": {"qkv_fused": False, "qkv_bias": False},
    "rotary class, apart": {"attn_type": "rope", "qkv_fused": False, "qk_norm": True, "scale_attn_inner": True, **ROPE},
    "fewer key heads": {"attn_type": "rope", "qkv_fused": False, "num_heads": 6, "num_kv_heads": 2, **ROPE},
    "query-key norm": {"qk_norm": True, "qkv_bias": False, **ROPE},
    "EVA-02": {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, "use_rot_pos_emb": True},
    "EVA-02, packed": {"swiglu_mlp": True, "use_rot_pos_emb": True},
    "norms inside": {"scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True},
    "norms on the writes": {"use_post_norm": True, "global_pool": "token", **ROPE},
    "LayerScale on attention only": {"init_values": 0.1, "attn_only_layer_scale": True, "norm_layer": LAMBDA},
    "dropout in train mode": {**DROPS, "patch_drop_rate": 0.25, **ROPE},
}

BEIT = {
    "plain": {},
    "bias per block": {"use_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.1},
    "bias shared": {"use_shared_rel_pos_bias": True, "global_pool": "token"},
    "bias shared and per block": {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": True, "qkv_bias": False},
    "SwiGLU": {"swiglu_mlp": True, "scale_mlp": True, "use_rel_pos_bias": True, "num_classes": 0},
    "oblong image": {"use_rel_pos_bias": True, "img_size": (8, 16), **DROPS},
    "no pooling": {"global_pool": "", "num_classes": 0, "init_values": 0.1},
}

DISTILLED = {
    "plain": {},
    "no head": {"num_classes": 0},
    "any size": {"dynamic_img_size": True, "init_values": 0.1, "qk_norm": True},
}

CLASSES = {
    "ViT": (VisionTransformer, {"qkv_bias": True}, VIT),
    "Eva": (Eva, {}, EVA),
    "BEiT": (Beit, {}, BEIT),
    "DeiT distilled": (VisionTransformerDistilled, {"qkv_bias": True}, DISTILLED),
}
VARIANTS = {f"{name}: {what}": (name, what) for name, (*_, options) in CLASSES.items() for what in options}

OUTPUTS_TO_ROUNDING = {
    # upstream hands torch a mask of three axes, for which it takes another kernel than for four
    ("BEiT: bias shared", True),
    # upstream adds one bias to the scores and then the other, here their sum is added
    ("BEiT: bias shared and per block", False),
}
"""(variant, fused) whose outputs are equal to rounding."""

GRADIENTS_TO_ROUNDING = {
    # norm and head act on all tokens there and on the one that is read here: sums over tokens, of zeros but one
    *((f"ViT: {what}", fused) for what in ("no pooling", "no pooling, norm after") for fused in (True, False)),
    # keys are repeated for their queries before the rotation here, after it there
    *(("Eva: fewer key heads", fused) for fused in (True, False)),
    ("BEiT: bias shared and per block", False),
}
"""(variant, fused) whose gradients are equal to rounding."""


def randomise(model, seed=0):
    """Every bias non-zero, every gain and LayerScale away from zero and one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                noise = 0.3 * noise
            elif parameter.ndim == 1:
                noise = 0.7 + 0.1 * noise.sign() + 0.1 * noise
            elif parameter.ndim == 3 or "table" in name or "freqs" in name or "latent" in name:
                noise = 0.7 * noise
            else:
                noise = noise / parameter[0].numel() ** 0.5
            parameter.copy_(noise)
    return model.eval()


def build(variant, dtype=torch.float32, fused=True, seed=0):
    name, what = VARIANTS[variant]
    cls, defaults, options = CLASSES[name]
    with torch.random.fork_rng(devices=[]):
        model = cls(**{**TINY, **defaults, **options[what]})
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return randomise(model, seed).to(dtype)


def quiet(model, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        return wrap(model, **more)


def gradients(bare, x, forward):
    x = x.clone().requires_grad_()
    bare.zero_grad(set_to_none=True)
    output = forward(x)
    output.backward(torch.linspace(-1, 1, output.numel()).to(output.dtype).view_as(output))
    return {"input": x.grad, **{n: p.grad for n, p in bare.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_residuals_are_bitwise_equal(variant, dtype, fused):
    if (variant, fused) in OUTPUTS_TO_ROUNDING:
        (measured,) = check_family(build(variant, dtype, fused), tolerance={torch.float32: 1e-5}.get(dtype, 1e-13))
        assert measured.outputs > 0  # else it can be taken off the list
        return
    bare = build(variant, dtype, fused)
    model = wrap(bare)
    assert model.parity.plain == 0
    x = model.parts.example_batch(bare, torch.Generator().manual_seed(3))
    seen = {}
    handles = [
        block.register_forward_hook(lambda m, given, output, i=i: seen.__setitem__(i, (given[0], output)))
        for i, block in enumerate(bare.blocks)
    ]
    with torch.no_grad():
        expected = model.parts.reference(x)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), assert_untouched(bare):
        assert torch.equal(model(x), expected)
        run = model.run(x, capture=["*hook_resid_pre", "*hook_resid_post"])
    assert torch.equal(run.output, expected)
    for layer, (before, after) in seen.items():
        assert torch.equal(run.cache["resid_pre", layer], before), layer
        assert torch.equal(run.cache["resid_post", layer], after), layer


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_bitwise_equal(variant, fused):
    bare = build(variant, fused=fused)
    model = wrap(bare)
    x = model.parts.example_batch(bare, torch.Generator().manual_seed(3))
    expected = gradients(bare, x, model.parts.reference)
    plain = gradients(bare, x, model)
    hooked = gradients(bare, x, lambda x: model.run(x, capture="*hook_z", grad=True).output)
    assert expected.keys() == plain.keys() == hooked.keys()
    for found in (plain, hooked):
        unequal = [name for name in expected if not torch.equal(found[name], expected[name])]
        if (variant, fused) not in GRADIENTS_TO_ROUNDING:
            assert not unequal
            continue
        assert unequal  # else it can be taken off the list
        size = max(gradient.abs().max() for gradient in expected.values())
        for name in unequal:
            assert (found[name] - expected[name]).abs().max() <= 1e-6 * size, name


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_that_holds_for_a_family(variant, fused, families_table):
    (measured,) = check_family(build(variant, torch.float64, fused), tolerance=1e-12)
    assert measured.outputs == 0 or (variant, fused) in OUTPUTS_TO_ROUNDING
    if fused:
        families_table.setdefault("timm", {})[variant] = check_family(build(variant))
    assert measured.wave is not None and measured.zero_head is not None
    assert (measured.other_size is not None) == ("dynamic_img_size" in options_of(variant))


def options_of(variant):
    name, what = VARIANTS[variant]
    return [option for option, value in CLASSES[name][2][what].items() if value]


@pytest.mark.parametrize("variant", ["ViT: plain", "ViT: everything", "Eva: DINOv3", "Eva: EVA-02", "BEiT: plain"])
def test_low_precision(variant):
    (measured,) = check_family(build(variant, torch.bfloat16))
    assert measured.outputs == 0


@pytest.mark.parametrize("variant", ["ViT: plain", "ViT: attention pooling", "Eva: PE", "BEiT: bias per block"])
def test_attention_implementation_is_read_live(variant):
    bare = build(variant)
    model = wrap(bare)
    x = model.parts.example_batch(bare, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for fused in (False, True):
            for module in bare.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = fused
            assert torch.equal(model(x), bare(x))


# tokens


def test_prefix_names_are_the_tokens_that_upstream_puts_there():
    bare = build("ViT: without positions")
    assert wrap(bare).parts.prefix == ("cls",)
    for cls, more in (
        (VisionTransformer, {"reg_tokens": 2, "pos_embed": "none"}),
        (Eva, {"num_reg_tokens": 2, **ROPE}),
    ):
        bare = randomise(cls(**{**TINY, **more}))
        model = wrap(bare)
        assert model.parts.prefix == ("cls", "register0", "register1") and model.parts.grid == (3, 3)
        x = model.parts.example_batch(bare, torch.Generator().manual_seed(3))
        stream = model.run(x, capture="hook_embed").cache["hook_embed"]
        assert torch.equal(stream[0, 0], bare.cls_token[0, 0])
        assert torch.equal(stream[0, 2], bare.reg_token[0, 1])
    bare = build("DeiT distilled: plain")
    model = wrap(bare)
    stream = model.run(torch.zeros(1, 3, 12, 12), capture="hook_embed").cache["hook_embed"]
    assert model.parts.prefix == ("cls", "distillation")
    assert torch.equal(stream[0, 1], bare.dist_token[0, 0] + bare.pos_embed[0, 1])


ROTARY = [name for name in VARIANTS if name.startswith("Eva") and "use_rot_pos_emb" in options_of(name)]


@pytest.mark.parametrize("variant", ROTARY)
def test_rotation_of_some_tokens_is_that_of_all(variant):
    parts = wrap(build(variant)).parts
    layout = parts.layout(parts.image_size)
    n = parts.n_tokens
    for layer, block in enumerate(parts.blocks):
        x = torch.randn(2, n, block.attn.n_heads, block.attn.d_head, generator=torch.Generator().manual_seed(layer))
        whole = block.attn.rotate(x, layout, None)
        assert not torch.equal(whole, x) and whole.shape == x.shape
        for tokens in ([0], [n - 1], [4, 0, n - 2, 1], list(range(n))):
            index = torch.tensor(tokens)
            assert torch.equal(block.attn.rotate(x[:, index], layout, index), whole[:, index]), tokens


def test_rotation_depends_on_the_size():
    bare = build("Eva: DINOv3")
    model = wrap(bare)
    x = torch.randn(2, 3, 16, 20)
    stream = model.run(x, capture="blocks.1.hook_resid_pre").cache["blocks.1.hook_resid_pre"]
    assert torch.equal(model.run(stream, start_at_layer=1, size=(16, 20)).output, bare(x))
    assert not torch.equal(model.run(stream, start_at_layer=1, size=(20, 16)).output, bare(x))


@pytest.mark.parametrize("variant", ["ViT: any size", "ViT: any size, padded", "Eva: DINOv3"])
def test_images_of_broken_patches_are_refused(variant):
    model = wrap(build(variant))
    with pytest.raises(BadImages, match="14 x 16 pixels are not a whole number of patches of 4 x 4"):
        model.run(torch.randn(1, 3, 14, 16))


def test_no_pooling_is_read_as_the_class_token_or_the_mean():
    x = torch.randn(2, 3, 12, 12)
    bare = build("ViT: no pooling")
    assert torch.equal(wrap(bare).run(x).output, bare(x)[:, 0].detach())
    bare = build("ViT: no pooling, no class token")
    assert torch.equal(wrap(bare).run(x).output, bare(x).mean(1).detach())
    bare = build("Eva: no pooling")
    assert torch.equal(wrap(bare).run(x).output, bare(x)[:, 0].detach())


# adapters and hooks


def with_lora(variant, targets, seed=5):
    import peft

    bare = build(variant)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(bare, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), build(variant)


@pytest.mark.parametrize("variant", ["ViT: plain", "ViT: SwiGLU", "Eva: EVA-02", "Eva: rotary class, apart"])
def test_adapters_take_part(variant):
    targets = ["qkv", "q_proj", "v_proj", "proj", "fc1", "fc1_g", "fc2"]
    adapted, plain = with_lora(variant, r".*blocks.*\.(" + "|".join(targets) + ")")
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(adapted(x), plain(x))
    (measured,) = check_family(adapted)
    assert measured.outputs == 0


def test_an_adapter_that_upstream_goes_round_has_no_effect_here_either():
    adapted, plain = with_lora("Eva: plain", ["qkv"])
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(adapted(x), plain(x))
    (measured,) = check_family(adapted)  # W_Q, W_K, W_V are compared with what acts
    assert measured.outputs == 0


def test_hooks_on_upstreams_projection_act_in_sweeps_too():
    bare = build("ViT: plain", torch.float64)
    handles = [block.attn.qkv.register_forward_hook(lambda m, given, output: output * 1.5) for block in bare.blocks]
    model = wrap(bare)
    x = model.parts.example_batch(bare, torch.Generator().manual_seed(3))
    clean, _ = wave(model.parts, x, units_of(model, "heads"), lambda site: None)
    assert_close(clean, bare(x).detach(), 1e-13)
    for handle in handles:
        handle.remove()
    assert not torch.equal(clean, bare(x))


def test_scaling_in_place_leaves_weights_alone():
    bare = build("ViT: LayerScale")
    for block in bare.blocks:
        block.ls1.inplace = block.ls2.inplace = True
    check_family(bare)
    before = bare.blocks[0].attn.proj.bias.clone()
    with torch.no_grad():
        wrap(bare).accumulated_bias(2)
    assert torch.equal(bare.blocks[0].attn.proj.bias, before)


def test_patterns_name_sites_before_native_paths():
    model = wrap(build("ViT: plain"))
    found = model.graph.match("blocks.*.attn.*")
    assert found and all(".attn.hook_" in name for name in found)
    assert model.graph.match("blocks.0.attn.proj") == ["blocks.0.hook_attn_out"]


# what cannot be placed


@pytest.mark.parametrize(
    "options,named",
    [
        ({"block_fn": ParallelScalingBlock}, "blocks.0 is a ParallelScalingBlock"),
        ({"block_fn": ParallelThingsBlock}, "blocks.0 is a ParallelThingsBlock"),
        ({"attn_layer": "diff", "num_heads": 2}, "blocks.0.attn is a DiffAttention"),
        ({"global_pool": "prr"}, "attn_pool is a AttentionPoolPrr"),
        ({"mlp_layer": GlobalResponseNormMlp}, "blocks.0.mlp is a GlobalResponseNormMlp"),
    ],
)
def test_other_graphs_are_refused_by_the_name_of_the_module(options, named):
    more = {"mlp_layer": without_norm(options["mlp_layer"])} if "mlp_layer" in options else {}
    bare = randomise(VisionTransformer(**{**TINY, **options, **more}))
    with pytest.raises(UnsupportedModel, match=named):
        wrap(bare)


def without_norm(cls):
    return lambda *args, norm_layer=None, **more: cls(*args, **more)


def test_gated_attention_is_refused():
    bare = build("ViT: plain")
    bare.blocks[1].attn = Attention(24, 3, gated=True)
    with pytest.raises(UnsupportedModel, match=r"blocks.1.attn.gate is a Linear"):
        wrap(bare.eval())


def test_families_go_by_class():
    class Mine(VisionTransformer):
        pass

    assert maps.family_of(Mine(**TINY)) is maps.family_of(VisionTransformer(**TINY)) is not None
    assert maps.family_of(Eva(**TINY)) is not maps.family_of(Beit(**TINY))
    assert maps.family_of(timm.create_model("resnet18", device="meta")) is None
    assert maps.two_towers(build("ViT: plain")) is None


# reading by name, preprocessing


def test_unknown_names_are_told():
    with pytest.raises(UnknownName, match="vit_base_patch16_224"):
        load("timm:vit_base_patch16_22")


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackage, match=r"mechvis\[timm\]"):
        load("timm:vit_base_patch16_224")


def test_weights_that_cannot_be_had_are_told(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadData, match=r"vit_tiny_patch16_224.*offline give a file: timm:<name>@<file>"):
        load("timm:vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(BadData, match="Invalid pretrained tag"):
        load("timm:vit_tiny_patch16_224.nonsense")
    with pytest.raises(BadData, match="Config file not found"):
        load(f"timm:local-dir:{tmp_path}")


def test_weights_of_a_file(tmp_path):
    bare = randomise(timm.create_model("test_vit", num_classes=7))
    file = tmp_path / "mine.safetensors"
    save_file(bare.state_dict(), file)
    model = load(f"timm:test_vit@{file}")
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(model.run(x).logits, bare(x).detach())
    assert model.preprocess.source == f"timm:test_vit@{file}" and model.preprocess.height == 160
    larger = load(f"timm:test_vit@{file}", image_size=192)
    assert larger.parts.grid == (12, 12) and larger.preprocess.height == 192
    own = {"file": str(file), "num_classes": 7}
    resampled = timm.create_model("test_vit", pretrained=True, num_classes=7, img_size=192, pretrained_cfg_overlay=own)
    x = torch.randn(1, 3, 192, 192)
    assert torch.equal(larger.run(x).logits, resampled.eval()(x).detach())
    weights = {name: weight for name, weight in bare.state_dict().items() if not name.startswith("head.")}
    save_file(weights, file)
    assert load(f"timm:test_vit@{file}").output_site == "hook_pooled"
    pickled = tmp_path / "mine.pth"
    torch.save(bare.state_dict(), pickled)
    with pytest.raises(BadData, match="safetensors only"):
        load(f"timm:test_vit@{pickled}")
    with pytest.raises(BadData, match="no file"):
        load("timm:test_vit@nowhere.safetensors")
    with pytest.raises(BadData, match="test_vit2"):
        load(f"timm:test_vit2@{file}")


def test_a_folder_of_the_hubs_kind(tmp_path):
    bare = randomise(timm.create_model("test_vit", num_classes=3))
    names = ["cat", "dog", "hen"]
    timm.models.save_for_hf(bare, tmp_path, model_config={"label_names": names})
    model = load(f"timm:local-dir:{tmp_path}")
    assert model.parts.class_names == tuple(names)
    timm.models.save_for_hf(bare, tmp_path, model_config={"label_names": {str(i): names[i] for i in (1, 2, 0)}})
    assert load(f"timm:local-dir:{tmp_path}").parts.class_names == tuple(names)
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(model.run(x).logits, bare(x).detach())


def test_preprocessing_of_a_model_in_memory_is_timms_own():
    bare = randomise(timm.create_model("test_vit2", num_classes=3))
    model = wrap(bare)
    assert model.preprocess.source == "pretrained_cfg of the module"
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(bare), is_training=False)
    image = np.random.default_rng(0).integers(0, 256, (201, 177, 3), dtype=np.uint8)
    assert torch.equal(model.preprocess([image])[0], transform(Image.fromarray(image)))
    assert wrap(build("ViT: plain")).preprocess is None  # nothing is known of a model without a description
    larger = wrap(bare, image_size=(176, 192))
    assert larger.preprocess([image]).shape == (1, 3, 176, 192)
    assert larger.parts.grid == (11, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "deit_base_distilled_patch16_224",
        "vit_base_patch16_siglip_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_rpn_224",
        "vit_small_r26_s32_224",
        "eva02_small_patch14_224",
        "eva02_base_patch16_clip_224",
        "vit_small_patch16_dinov3",
        "vit_small_plus_patch16_dinov3",
        "vit_small_patch16_rope_mixed_224",
        "vit_pe_core_tiny_patch16_384",
        "beit_base_patch16_224",
        "beit3_base_patch16_224",
    ],
)
def test_models_of_published_size(name):
    smaller = {"img_size": 224} if "dinov2" in name else {}  # 1369 tokens otherwise
    with torch.random.fork_rng(devices=[]):
        bare = randomise(timm.create_model(name, **smaller))
    model = quiet(bare)
    assert model.parity.plain == 0 and model.parity.hooked < 1e-5
    assert model.preprocess.height == model.parts.image_size[0]


@pytest.mark.slow
def test_published_names_are_mapped_or_refused_by_name():
    modules = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
    names = [name for module in modules for name in timm.list_models(module=module)[::6]]
    names += ["vit_base_patch16_xp_224", "vit_dlittle_patch16_reg1_gap_256", "vit_so150m_patch16_reg4_map_256"]
    refused = {}
    for name in names:
        bare = timm.create_model(name, device="meta")
        try:
            parts = maps.family_of(bare)(bare.eval())
        except UnsupportedModel as error:
            refused[name] = str(error)
        else:
            assert parts.n_tokens == len(parts.prefix) + bare.patch_embed.num_patches, name
            assert len(parts.prefix) == getattr(bare, "num_prefix_tokens", 1), name
    words = ("ParallelScalingBlock", "ParallelThingsBlock", "DiffAttention", "DiffParallelScalingBlock")
    assert all(any(word in message for word in words) for message in refused.values()), refused
    assert 1 < len(refused) < 6 and len(names) > 40


NO_SUM = {
    "ViT: maximum": "no fixed mixture of tokens",
    "ViT: mean and maximum": "no fixed mixture of tokens",
    "ViT: norms on the writes": "norm after the sub-layers",
    "ViT: norms on the writes, token": "norm after the sub-layers",
    "Eva: two norms": "not linear",
    "Eva: norms on the writes": "norm after the sub-layers",
}
"""Models whose output is no sum of what the blocks write, and what is said."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_add_up_to_the_output_or_are_refused(variant):
    model = quiet(build(variant, torch.float64))
    x = model.parts.example_batch(model.bare, torch.Generator().manual_seed(0))
    if variant in NO_SUM:
        with pytest.raises((RefusedMethod, UnsupportedModel), match=NO_SUM[variant]):
            terms(model, x)
        return
    for convention in ("linear", "even_split"):
        found = terms(model, x, convention=convention)
        torch.testing.assert_close(found.values.sum(1), model.run(x).output, atol=1e-10, rtol=0)
