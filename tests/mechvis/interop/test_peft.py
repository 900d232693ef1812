"""Models with adapters of peft, and models whose head was changed: everything follows the model as it is now."""

import copy

import peft
import pytest
import torch
from einops import rearrange
from torch import nn

import mechvis
from mechvis import edits
from mechvis.errors import MechvisWarning, ParityError, TrainMode
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess

# peft 0.21 asks transformers for a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TARGETS = ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
PIXELS = tiny_input("vit", dtype=torch.float64)


def lora(**options):
    """LoRA with random matrices on both sides, so that it does something; dropout, which eval mode must switch off."""
    defaults = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "lora_dropout": 0.2, "init_lora_weights": False}
    return peft.LoraConfig(**{**defaults, **options})


def adapted(config=None, bare=None):
    torch.manual_seed(3)
    adapters = peft.get_peft_model(rand_vit() if bare is None else bare, lora() if config is None else config)
    return adapters.double().eval()


def check_follows(model, adapters, tolerance=1e-11):
    """Output, heads and neurons of the wrapped model are those of the adapted one as it is now."""
    with torch.no_grad():
        assert torch.equal(model(PIXELS), adapters(PIXELS).logits)
        run = model.run(PIXELS, capture="*")
        for layer, block in enumerate(model.blocks):
            total = run.cache["result", layer].sum(2) + block.attn.b_O
            assert_close(total, run.cache["attn_out", layer], tolerance)
            assert_close(
                run.cache["post", layer] @ block.mlp.W_out + block.mlp.b_out, run.cache["mlp_out", layer], tolerance
            )
            normal = run.cache[f"blocks.{layer}.ln1.hook_normalized"]
            value = torch.einsum("rtd,hde->rthe", normal, block.attn.W_V) + block.attn.b_V
            assert_close(value, run.cache["v", layer], tolerance)
    return run


def test_an_adapted_model_loads_and_its_sites_show_the_adapters():
    bare = rand_vit()
    plain = wrap(copy.deepcopy(bare), preprocess=tiny_preprocess()).run(PIXELS, capture="*")
    adapters = adapted(bare=bare)
    with assert_untouched(adapters):
        model = mechvis.load(adapters, preprocess=tiny_preprocess())
        run = check_follows(model, adapters)
    assert model.parity.plain == 0 and model.parity.hooked < 1e-14
    assert not torch.allclose(run.logits, plain.logits, atol=0.1)
    for site in ("attn.hook_q", "attn.hook_v", "hook_attn_out", "mlp.hook_pre", "hook_mlp_out"):
        name = f"blocks.0.{site}"
        assert not torch.allclose(run.cache[name], plain.cache[name], atol=1e-2), site
    assert torch.equal(run.cache["k", 0], plain.cache["k", 0])  # has no adapter
    seen = {}
    layer = adapters.base_model.model.vit.layers[2].attention
    handles = [
        getattr(layer, name).register_forward_hook(lambda module, given, output, name=name: seen.update({name: output}))
        for name in ("q_proj", "o_proj")
    ]
    with torch.no_grad():
        adapters(PIXELS)
    for handle in handles:
        handle.remove()
    assert_close(run.cache["q", 2].flatten(2), seen["q_proj"], 1e-12)
    assert_close(run.cache["attn_out", 2], seen["o_proj"], 1e-12)


def test_weights_include_the_adapters():
    adapters = adapted()
    model = wrap(adapters, preprocess=tiny_preprocess())
    layer = adapters.base_model.model.vit.layers[1].attention.o_proj
    matrix = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = rearrange(matrix, "d (h e) -> h e d", h=4)
    assert_close(model.W_O[1], expected, 1e-12)
    assert not torch.allclose(model.W_O[1], rearrange(layer.base_layer.weight, "d (h e) -> h e d", h=4), atol=1e-2)
    assert_close(model.blocks[1].attn.OV.AB, model.W_V[1] @ expected, 1e-12)


def test_switching_adapters_is_followed_at_once():
    adapters = adapted()
    model = wrap(adapters, preprocess=tiny_preprocess())
    first, hashes = check_follows(model, adapters).logits, {model.fingerprint}
    with adapters.disable_adapter():
        off = check_follows(model, adapters).logits
        hashes.add(model.fingerprint)
    assert not torch.allclose(off, first, atol=0.1)
    assert_close(check_follows(model, adapters).logits, first, 0)
    adapters.merge_adapter()
    assert_close(check_follows(model, adapters).logits, first, 1e-11)
    hashes.add(model.fingerprint)
    adapters.unmerge_adapter()
    adapters.add_adapter("second", lora(r=2))
    adapters.double().eval()
    assert_close(check_follows(model, adapters).logits, first, 1e-11)
    adapters.set_adapter("second")
    adapters.eval()
    second = check_follows(model, adapters).logits
    hashes.add(model.fingerprint)
    assert not torch.allclose(second, first, atol=0.1) and len(hashes) == 4
    adapters.base_model.set_adapter(["default", "second"])
    adapters.eval()
    both = check_follows(model, adapters).logits
    assert not torch.allclose(both, second, atol=0.1) and not torch.allclose(both, first, atol=0.1)


KINDS = {
    "rank-stabilised": lambda: lora(use_rslora=True),
    "with a bias of its own": lambda: lora(lora_bias=True),
    "DoRA": lambda: lora(use_dora=True),
    "IA3": lambda: peft.IA3Config(
        target_modules=["v_proj", "o_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False
    ),
    "LoHa": lambda: peft.LoHaConfig(r=2, alpha=4, target_modules=TARGETS, init_weights=False),
    "AdaLoRA": lambda: peft.AdaLoraConfig(
        init_r=3, target_r=2, total_step=10, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter(kind):
    adapters = adapted(KINDS[kind]())
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            if "ia3" in name or ("lora_B" in name and name.endswith("bias")):
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model = wrap(adapters, preprocess=tiny_preprocess())
    run = check_follows(model, adapters)
    with adapters.disable_adapter():
        assert not torch.allclose(check_follows(model, adapters).logits, run.logits, atol=1e-3)


@pytest.mark.parametrize("kind", ["heads", "result", "neurons", "mlp_out"])
def test_a_sweep_of_an_adapted_model_is_one_run_per_unit(kind):
    adapters = adapted()
    model = wrap(adapters, preprocess=tiny_preprocess())
    with assert_untouched(adapters):
        fast, slow = (
            mechvis.sweep(model, PIXELS, units=kind, edit="zero", metric="logit_diff", engine=engine, layers=[0, 2])
            for engine in ("wave", "plain")
        )
    assert_close(torch.tensor(fast.table["effect"]), torch.tensor(slow.table["effect"]), 1e-10)
    assert float(torch.tensor(fast.table["effect"]).abs().max()) > 1e-3


def test_gradients_reach_the_adapters_and_only_them():
    adapters = adapted()
    model = wrap(adapters, preprocess=tiny_preprocess())
    model.run(PIXELS, edits=edits.zero("blocks.1.attn.hook_z", heads=[1]), grad=True).logits[:, 2].sum().backward()
    by_name = dict(adapters.named_parameters())
    reached = {name for name, parameter in by_name.items() if parameter.grad is not None}
    assert reached == {name for name in by_name if "lora_" in name}
    assert all(by_name[name].grad.abs().sum() > 0 for name in reached if "layers.0" in name)


def test_adapters_in_train_mode_are_refused():
    adapters = adapted()
    model = wrap(adapters, preprocess=tiny_preprocess())
    adapters.add_adapter("second", lora())  # a new module, in train mode
    adapters.double()
    with pytest.raises(TrainMode, match="lora_dropout"):
        model.run(PIXELS)
    adapters.eval()
    adapters.base_model.model.vit.layers[0].attention.q_proj.lora_dropout.train()
    with pytest.raises(TrainMode, match="lora_dropout"):
        model.run(PIXELS)


def test_adapters_put_in_after_loading_are_refused():
    bare = rand_vit()
    model = wrap(bare, preprocess=tiny_preprocess())
    adapted(bare=bare)
    with pytest.raises(ParityError, match=r"(q|v|o)_proj was exchanged .*Linear -> Linear.*Load it again"):
        model.run(PIXELS)
    again = wrap(bare, preprocess=tiny_preprocess())
    with torch.no_grad():
        assert torch.equal(again(PIXELS), bare(PIXELS).logits)


def test_adapters_merged_for_good_are_a_model_to_load_again():
    adapters = adapted()
    model = wrap(adapters, preprocess=tiny_preprocess())
    expected = model.run(PIXELS).logits
    merged = adapters.merge_and_unload()
    with pytest.raises(ParityError, match="exchanged"):
        model.run(PIXELS)
    assert_close(wrap(merged, preprocess=tiny_preprocess()).run(PIXELS).logits, expected, 1e-11)


def test_both_towers_of_an_adapted_clip():
    bare = tiny("clip", dtype=torch.float64)
    adapters = adapted(lora(target_modules=["q_proj", "v_proj", "out_proj"]), bare)
    clip = wrap(adapters, preprocess=tiny_preprocess())
    ids = tiny_input("clip-text")
    with torch.no_grad():
        image = adapters.get_base_model().get_image_features(PIXELS).pooler_output
        text = adapters.get_base_model().get_text_features(ids).pooler_output
        assert torch.equal(clip.vision(PIXELS), image) and torch.equal(clip.text(ids), text)
        with adapters.disable_adapter():
            assert not torch.allclose(clip.vision(PIXELS), image, atol=1e-2)
            assert not torch.allclose(clip.text(ids), text, atol=1e-2)


# changed heads


def test_modules_to_save_are_the_head():
    adapters = adapted(lora(modules_to_save=["classifier"]))
    with torch.no_grad():
        adapters.base_model.model.classifier.modules_to_save["default"].weight.mul_(3)
    model = wrap(adapters, preprocess=tiny_preprocess())
    run = check_follows(model, adapters)
    logits, cache = model.run_with_cache(PIXELS)
    shares = cache.logit_attrs(cache.decompose_resid(-1, pos_slice=0), 2, pos_slice=0).sum(0)
    assert_close(shares + cache.constant_logits()[:, 2], logits[:, 2].detach(), 1e-11)
    with adapters.disable_adapter():
        assert not torch.allclose(check_follows(model, adapters).logits, run.logits, atol=0.1)


def test_an_adapter_on_the_head_takes_part_in_class_directions():
    adapters = adapted(lora(target_modules=["q_proj", "classifier"]))
    model = wrap(adapters, preprocess=tiny_preprocess())
    logits, cache = model.run_with_cache(PIXELS)
    shares = cache.logit_attrs(cache.decompose_resid(-1, pos_slice=0), 2, pos_slice=0).sum(0)
    assert_close(shares + cache.constant_logits()[:, 2], logits[:, 2].detach(), 1e-11)


HEADS = {
    "linear": lambda: nn.Linear(16, 3),
    "deep": lambda: nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Dropout(0.3), nn.Linear(10, 3)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_changed_head(kind):
    bare = rand_vit()
    bare.classifier = HEADS[kind]()
    bare.double().eval()
    with pytest.warns(MechvisWarning, match=r"config names 8 classes, the head has 3 logits .*left out"):
        model = wrap(bare, preprocess=tiny_preprocess())
    assert model.parts.class_names == () and model.graph["hook_logits"].sizes == (None, None)
    with torch.no_grad():
        assert torch.equal(model.run(PIXELS).logits, bare(PIXELS).logits)
    result = mechvis.sweep(model, PIXELS, units="heads", edit="zero", metric="logit_diff")
    assert len(result.table) == 12
    bare.config.id2label = {0: "ant", 1: "bee", 2: "cat"}
    named = wrap(bare, preprocess=tiny_preprocess())  # without a warning
    assert named.parts.class_names == ("ant", "bee", "cat")
    assert torch.equal(named.face("bee")(PIXELS).detach(), model.run(PIXELS).logits[:, 1:2])


def test_no_head_at_all():
    bare = tiny("vit", num_labels=0, dtype=torch.float64)  # transformers puts an Identity there
    model = wrap(bare, preprocess=tiny_preprocess())
    with torch.no_grad():
        assert torch.equal(model.run(PIXELS).output, bare(PIXELS).logits)
