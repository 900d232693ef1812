"""The wrapped model is the bare model: outputs, every residual, input and weight gradients, bit for bit on a CPU.

The independent source of residuals is a forward hook on the user's own modules.
"""

import pytest
import torch
from torch import nn

from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_families, tiny_input, tiny_preprocess

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def layers_of(module):
    """The blocks of a bare tower, wherever its family keeps them."""
    for name in ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "vision_model", "text_model"):
        module = getattr(module, name, module)
    for name in ("encoder", "model"):
        module = getattr(module, name, module)
    return module.layers if hasattr(module, "layers") else module.layer


def answer_of(bare):
    """What the bare model itself says, in one tensor."""

    def answer(x):
        out = bare(x)
        for field in ("logits", "image_embeds", "text_embeds", "pooler_output"):
            if getattr(out, field, None) is not None:
                return getattr(out, field)
        return out.last_hidden_state.mean(1)  # SigLIP without its pooling head

    def unmasked(x):
        encoder = getattr(bare, "vit", bare)
        ratio, encoder.config.mask_ratio = encoder.config.mask_ratio, 0.0
        rising = torch.linspace(0, 1, encoder.embeddings.patch_embeddings.num_patches).expand(len(x), -1)
        try:
            return encoder(x, noise=rising).last_hidden_state[:, 0]
        finally:
            encoder.config.mask_ratio = ratio

    return unmasked if type(bare).__name__.startswith("ViTMAE") else answer


def towers(family, **options):
    """(bare model, tower, its layers, input, the bare model's own answer) for each tower of a family."""
    bare = tiny(family, **options)
    model = wrap(bare, preprocess=tiny_preprocess())
    dtype = options.get("dtype", torch.float32)
    if not hasattr(model, "vision"):
        yield bare, model, layers_of(bare), tiny_input(family, dtype=dtype), answer_of(bare)
        return
    yield (
        bare,
        model.vision,
        layers_of(bare.vision_model),
        tiny_input(family, dtype=dtype),
        lambda x: bare.get_image_features(x).pooler_output,
    )
    yield (
        bare,
        model.text,
        layers_of(bare.text_model),
        tiny_input(f"{family}-text"),
        lambda x: bare.get_text_features(x).pooler_output,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", tiny_families())
def test_outputs_and_residuals_are_bitwise_equal(family, dtype, attention):
    for bare, model, layers, inputs, answer in towers(family, dtype=dtype, attention=attention):
        seen = {}

        def keep(layer, seen=seen):
            def hook(module, args, output):
                seen[layer] = (args[0], output[0] if isinstance(output, tuple) else output)

            return hook

        handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
        with torch.no_grad():
            expected = answer(inputs)
        for handle in handles:
            handle.remove()
        with torch.no_grad(), assert_untouched(bare):
            assert torch.equal(model(inputs), expected)  # nothing hooked: the plain path
            run = model.run(inputs, capture=["*hook_resid_pre", "*hook_resid_post"])
        assert torch.equal(run.output, expected)  # every block hooked
        for layer, (before, after) in seen.items():
            assert torch.equal(run.cache["resid_pre", layer], before), f"resid_pre {layer}"
            assert torch.equal(run.cache["resid_post", layer], after), f"resid_post {layer}"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", tiny_families())
def test_gradients_are_bitwise_equal(family, dtype, attention):
    for bare, model, _, inputs, answer in towers(family, dtype=dtype, attention=attention):
        results = []
        for forward in (answer, model, lambda x, model=model: model.run(x, capture=["*hook_z"], grad=True).output):
            x = inputs.clone().requires_grad_() if inputs.is_floating_point() else inputs
            bare.zero_grad(set_to_none=True)
            output = forward(x)
            output.backward(torch.linspace(-1, 1, output.numel()).to(output.dtype).view_as(output))
            grads = {name: p.grad for name, p in bare.named_parameters() if p.grad is not None}
            results.append((x.grad if x.is_floating_point() else None, grads))
        (x_grad, grads), *others = results
        assert len(grads) > 20
        for other_x, other in others:
            assert other.keys() == grads.keys()
            assert x_grad is None or torch.equal(other_x, x_grad)
            unequal = [name for name in grads if not torch.equal(grads[name], other[name])]
            assert not unequal, f"weight gradients differ: {unequal}"


@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13), (torch.bfloat16, 3e-2)], ids=str
)
def test_everything_captured_agrees_to_rounding(dtype, tolerance):
    # Capturing the pattern computes attention explicitly, so this one is not bitwise for fused models.
    bare = tiny("vit", dtype=dtype)
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit", dtype=dtype)
    with torch.no_grad():
        assert_close(model.run(pixels, capture="*").logits, bare(pixels).logits, tolerance)


def test_sdpa_and_eager_agree():
    pixels = tiny_input("vit")
    one, other = (
        wrap(tiny("vit", attention=a), preprocess=tiny_preprocess()).run(pixels).logits for a in ("sdpa", "eager")
    )
    assert_close(one, other, 1e-5)


def test_attention_implementation_is_read_live():
    bare = tiny("vit", dtype=torch.float64)
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit", dtype=torch.float64)
    with torch.no_grad():
        for attention in ("eager", "sdpa"):
            bare.set_attn_implementation(attention)
            assert torch.equal(model(pixels), bare(pixels).logits)


def test_weights_are_read_live():
    bare = tiny("vit")
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit")
    with torch.no_grad():
        bare.vit.layers[1].attention.o_proj.weight.mul_(1.5)
        assert torch.equal(model(pixels), bare(pixels).logits)
        assert torch.equal(model.W_O[1].flatten(0, 1).T, bare.vit.layers[1].attention.o_proj.weight)


def test_foreign_hooks_fire_as_in_the_bare_model_where_its_modules_are_called():
    bare = tiny("vit")
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit")
    calls = []
    handle = bare.vit.layers[1].attention.o_proj.register_forward_hook(lambda m, a, out: calls.append(1) or out * 2)
    with torch.no_grad():
        assert torch.equal(model(pixels), bare(pixels).logits)
    handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("act", ["gelu", "quick_gelu", "gelu_new", "relu"])
def test_activation_and_eps_come_from_the_live_modules(act):
    bare = tiny("vit", hidden_act=act, layer_norm_eps=1e-3, qkv_bias=False)
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit")
    assert model.parity.plain == 0
    with torch.no_grad():
        assert torch.equal(model.run(pixels, capture="*hook_resid_post").logits, bare(pixels).logits)


def test_rand_vit_hides_no_bias_or_gain():
    bare = rand_vit(0)
    assert bare.dtype == torch.float64 and len(bare.vit.layers) == 3
    for name, parameter in bare.named_parameters():
        if name.endswith("bias"):
            assert (parameter != 0).all(), name
    for module in bare.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight - 1).abs().min() > 0
    with torch.no_grad():
        same, other = rand_vit(0), rand_vit(1)
        pixels = tiny_input("vit", dtype=torch.float64)
        assert torch.equal(bare(pixels).logits, same(pixels).logits)
        assert not torch.equal(bare(pixels).logits, other(pixels).logits)
    wrapped = wrap(bare, preprocess=tiny_preprocess())
    assert (wrapped.cfg.n_heads, wrapped.cfg.d_model, wrapped.cfg.d_head, wrapped.cfg.d_mlp, wrapped.cfg.n_ctx) == (
        4,
        16,
        4,
        32,
        10,
    )


def test_batches_do_not_change_rows():
    model, pixels = wrap(tiny("vit"), preprocess=tiny_preprocess()), tiny_input("vit", n=6)
    together = model.run(pixels).logits
    assert_close(torch.cat([model.run(pixels[i : i + 1]).logits for i in range(6)]), together, 1e-5)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(model.run(pixels[order]).logits, together[order], 1e-6)
