"""What is special about each Hugging Face family, against upstream and against maps that are wrong on purpose.

What holds for all of them is in test_families.py and test_parity.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import einsum
from torch import nn
from transformers import ViTConfig, ViTModel

import mechvis
from mechvis.clip import HookedCLIP
from mechvis.data.preprocess import plain_scaling
from mechvis.errors import BadData, DefaultPreprocessing, ParityError, ShapeMismatch, UnsupportedModel
from mechvis.models import transformers as maps
from mechvis.models.load import check_parity, wrap
from mechvis.models.transformers import beit, dino, siglip
from mechvis.models.transformers.dinov3_images import FloatResize
from mechvis.testing import (
    Words,
    assert_close,
    assert_untouched,
    check_family,
    tiny,
    tiny_families,
    tiny_input,
    tiny_preprocess,
)

DOUBLE = torch.float64
IMAGES = [name for name in tiny_families() if not name.endswith("-text")]
NEW = [name for name in tiny_families() if name.startswith(("mae", "beit", "siglip", "dino"))]


def wrapped(name, **options):
    bare = tiny(name, dtype=DOUBLE, **options)
    return bare, wrap(bare, preprocess=tiny_preprocess())


def pixels(n=3, size=(12, 12), dtype=DOUBLE):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


# maps that are wrong on purpose


def with_blocks(change):
    return lambda parts: replace(parts, blocks=tuple(change(block) for block in parts.blocks))


def with_attention(change):
    return with_blocks(lambda block: replace(block, attn=change(block.attn)))


def swapped_gate(block):
    return replace(block, mlp_in=lambda x: block.mlp_in(x)[::-1])


def with_other_bias(change):
    return with_attention(lambda attn: replace(attn, bias=lambda layout: change(attn.bias(layout))))


def still(x, layout, tokens):
    return x


def turned_backwards(x, layout, tokens):
    return dino.rotate(x, (layout[0], -layout[1]), tokens)


NO_SCALE_1 = with_blocks(lambda block: replace(block, scale1=None))
NO_SCALE_2 = with_blocks(lambda block: replace(block, scale2=None))
SWAPPED_SCALES = with_blocks(lambda block: replace(block, scale1=block.scale2, scale2=block.scale1))
NORM_FIRST = {"norm": "tokens"}

WRONG = [
    *(
        (name, what, change)
        for name in ("beit", "beit-mean", "dinov2", "dinov2-registers", "dinov3")
        for what, change in (
            ("no LayerScale after attention", NO_SCALE_1),
            ("none after the MLP", NO_SCALE_2),
            ("LayerScales swapped", SWAPPED_SCALES),
        )
    ),
    *(
        (name, what, change)
        for name in ("beit", "beit-mean", "beit-shared")
        for what, change in (
            ("no position bias", with_attention(lambda attn: replace(attn, bias=None))),
            ("queries and keys of the bias swapped", with_other_bias(lambda b: b.transpose(-1, -2))),
            ("heads of the bias in another order", with_other_bias(lambda b: b.flip(1))),
        )
    ),
    ("beit-mean", "norm before the mean", lambda parts: replace(parts, norm="tokens")),
    ("beit-mean", "CLS in the mean", lambda parts: replace(parts, pool=lambda tokens: tokens.mean(1))),
    ("beit-mean", "the patches' norm is nothing", lambda parts: replace(parts, ln_final=nn.Identity())),
    ("beit", "mean of the patches", lambda parts: replace(parts, reads=None, pool=lambda x: x[:, 1:].mean(1))),
    ("mae", "mean of the patches", lambda parts: replace(parts, reads=None, pool=lambda x: x[:, 1:].mean(1))),
    (
        "siglip-vision",
        "a mean in the place of attention pooling",
        lambda parts: replace(parts, pooling=None, pool=lambda tokens: tokens.mean(1)),
    ),
    (
        "siglip-vision",
        "pooling without its MLP",
        lambda parts: replace(parts, pooling=replace(parts.pooling, mlp=None)),
    ),
    ("siglip-vision", "pooling of what has no norm", lambda parts: replace(parts, ln_final=nn.Identity())),
    (
        "siglip-text",
        "read at the first token",
        lambda parts: replace(parts, reads=lambda ids: torch.zeros(len(ids), dtype=torch.int64)),
    ),
    ("siglip-text", "a causal tower", with_attention(lambda attn: replace(attn, causal=True))),
    ("siglip-text", "no projection", lambda parts: replace(parts, project=None)),
    ("siglip-classifier", "a token left out", lambda parts: replace(parts, pool=lambda tokens: tokens[:, 1:].mean(1))),
    (
        "dinov2-classifier",
        "mean with CLS",
        lambda parts: replace(parts, pool=lambda x: torch.cat([x[:, 0], x.mean(1)], 1)),
    ),
    (
        "dinov2-registers-classifier",
        "mean with registers",
        lambda parts: replace(parts, pool=lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], 1)),
    ),
    ("dinov2-swiglu", "gate and linear half swapped", with_blocks(swapped_gate)),
    ("dinov3-gated", "gate and linear half swapped", with_blocks(swapped_gate)),
    ("dinov3", "no rotation", with_attention(lambda attn: replace(attn, rotate=still))),
    ("dinov3", "rotated the other way", with_attention(lambda attn: replace(attn, rotate=turned_backwards))),
]


@pytest.mark.parametrize("name,what,change", WRONG, ids=[f"{name}: {what}" for name, what, _ in WRONG])
def test_a_wrong_map_is_refused(name, what, change):
    bare = tiny(name)
    family = maps.family_of(bare)
    with pytest.raises(ParityError):
        wrap(bare, preprocess=tiny_preprocess(), family=lambda module: change(family(module)))


HIDDEN = [
    ("W_O of another layer", lambda block, other: {"out_weight": other.out_weight}),
    ("no output bias", lambda block, other: {"out_bias": lambda: None}),
    (
        "W_V where W_K should be",
        lambda block, other: {"in_weights": lambda: (lambda q, k, v: (q, v, k))(*block.in_weights())},
    ),
]


@pytest.mark.parametrize("name", ["mae", "beit", "siglip-vision", "dinov2-registers", "dinov3-gated"])
@pytest.mark.parametrize("what,change", HIDDEN, ids=[what for what, _ in HIDDEN])
def test_a_map_whose_weights_are_wrong_does_not_pass_the_conformance_checks(name, what, change):
    # The forward never reads them, so parity says nothing.
    bare = tiny(name)
    family = maps.family_of(bare)

    def wrong(module):
        parts = family(module)
        first, second = parts.blocks[0].attn, parts.blocks[1].attn
        attn = replace(first, **change(first, second))
        return replace(parts, blocks=(replace(parts.blocks[0], attn=attn), *parts.blocks[1:]))

    check_parity(wrap(bare, preprocess=tiny_preprocess(), family=wrong))
    with pytest.raises(AssertionError):
        check_family(bare, preprocess=tiny_preprocess(), family=wrong)


# weights as people read them


@pytest.mark.parametrize("name", tiny_families())
def test_queries_and_keys_are_the_normalised_stream_times_w_q_and_w_k(name):
    bare = tiny(name, dtype=DOUBLE)
    model = wrap(bare, preprocess=tiny_preprocess())
    for tower in (model.vision, model.text) if isinstance(model, HookedCLIP) else (model,):
        inputs = tiny_input("vit", dtype=DOUBLE) if tower.parts.modality == "image" else tiny_input("clip-text")
        cache = tower.run(inputs, capture=["*ln1.hook_normalized", "*hook_q", "*hook_k", "*hook_v"]).cache
        for layer, block in enumerate(tower.blocks):
            normal = cache[f"blocks.{layer}.ln1.hook_normalized"]
            for letter, weight, bias in (
                ("q", block.attn.W_Q, block.attn.b_Q),
                ("k", block.attn.W_K, block.attn.b_K),
                ("v", block.attn.W_V, block.attn.b_V),
            ):
                expected = einsum(normal, weight, "row token d, head d e -> row token head e")
                expected = expected if bias is None else expected + bias
                assert_close(cache[f"blocks.{layer}.attn.hook_{letter}"], expected, 1e-13, letter)


def test_families_without_a_key_bias_say_so():
    for name in ("beit", "dinov3"):
        _, model = wrapped(name)
        assert model.blocks[0].attn.b_K is None and model.blocks[0].attn.b_Q is not None
        assert model.blocks[0].attn.b_V.shape == (4, 4)


@pytest.mark.parametrize("name", IMAGES)
def test_folder_round_trip(name, tmp_path):
    bare = tiny(name)
    bare.save_pretrained(tmp_path)
    tiny_preprocess().processor.save_pretrained(tmp_path)
    model, expected = mechvis.load(tmp_path), wrap(bare, preprocess=tiny_preprocess())
    if isinstance(expected, HookedCLIP):
        ids = tiny_input("clip-text")
        assert torch.equal(model.text.run(ids).output, expected.text.run(ids).output)
        model, expected = model.vision, expected.vision
    assert type(model.bare) is type(bare) and model.fingerprint == expected.fingerprint
    assert torch.equal(model.run(tiny_input("vit")).output, expected.run(tiny_input("vit")).output)


@pytest.mark.parametrize("name", NEW)
def test_a_changed_activation_and_eps_take_part(name):
    settings = {"layer_norm_eps": 1e-2} if "swiglu" in name else {"layer_norm_eps": 1e-2, "hidden_act": "relu"}
    bare = tiny(name, **settings)
    model = wrap(bare, preprocess=tiny_preprocess())
    for tower in (model.vision, model.text) if isinstance(model, HookedCLIP) else (model,):
        assert tower.parity.plain == 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("name", ["mae", "beit", "siglip-vision", "dinov2", "dinov3-gated"])
def test_lora_takes_part(name):
    from peft import LoraConfig, get_peft_model

    out = "out_proj" if name.startswith("siglip") else "o_proj"
    config = LoraConfig(r=2, target_modules=rf".*layers?\.\d+\.(attention|self_attn)\.(q_proj|v_proj|{out})")
    adapted = get_peft_model(tiny(name), config).eval()
    generator = torch.Generator().manual_seed(0)
    for path, parameter in adapted.named_parameters():
        if "lora_" in path:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    plain = wrap(tiny(name), preprocess=tiny_preprocess())
    model = wrap(adapted, preprocess=tiny_preprocess())
    x = tiny_input(name)
    assert model.parity.plain == 0
    assert not torch.allclose(model.run(x).output, plain.run(x).output)
    assert not torch.allclose(model.W_V, plain.W_V) and torch.equal(model.W_K, plain.W_K)
    cache = model.run(x, capture=["*hook_v", "*ln1.hook_normalized"]).cache
    expected = einsum(cache["blocks.1.ln1.hook_normalized"], model.W_V[1], "r t d, h d e -> r t h e")
    assert_close(cache["blocks.1.attn.hook_v"], expected + model.blocks[1].attn.b_V, 1e-5)


# MAE


@pytest.mark.parametrize("name", ["mae", "mae-pretraining"])
def test_mae_sees_every_patch_in_order_and_leaves_the_masking_alone(name):
    bare = tiny(name, dtype=DOUBLE)
    encoder, x = getattr(bare, "vit", bare), pixels()
    state = torch.get_rng_state()
    with assert_untouched(bare):
        model = wrap(bare, preprocess=tiny_preprocess())
        embedded = model.run(x, capture="hook_embed").cache["hook_embed"]
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.config.mask_ratio == encoder.embeddings.config.mask_ratio == 0.75
    positions = encoder.embeddings.position_embeddings
    with torch.no_grad():
        expected = encoder.embeddings.patch_embeddings(x) + positions[:, 1:]
        assert torch.equal(embedded[:, 1:], expected)
        assert torch.equal(embedded[:, 0], (encoder.embeddings.cls_token + positions[:, :1])[0].expand(3, -1))
        # The bare model still hides three quarters of the patches, at random.
        one, other = encoder(x), encoder(x)
        assert one.last_hidden_state.shape[1] == 1 + 2 and not torch.equal(one.mask, other.mask)


def test_mae_is_upstream_without_masking_in_any_order_of_patches():
    bare, model = wrapped("mae")
    x = pixels()
    ours = model.run(x, capture="blocks.2.hook_resid_post")
    bare.config.mask_ratio = 0.0
    with torch.no_grad():
        theirs = bare(x)  # shuffles the patches by noise
        expected = torch.gather(theirs.last_hidden_state[:, 1:], 1, theirs.ids_restore[..., None].expand(-1, -1, 16))
        assert_close(bare.layernorm(ours.cache["blocks.2.hook_resid_post"])[:, 1:], expected, 1e-12)
    assert_close(ours.output, theirs.last_hidden_state[:, 0], 1e-12)


@pytest.mark.parametrize("ratio", [0.0, 0.75, 0.9])
def test_mae_does_not_depend_on_the_mask_ratio(ratio):
    bare, model = wrapped("mae", mask_ratio=ratio)
    _, plain = wrapped("mae")
    assert torch.equal(model.run(pixels()).output, plain.run(pixels()).output)
    bare.config.mask_ratio = 0.5  # nor on a change of it
    assert torch.equal(model.run(pixels()).output, plain.run(pixels()).output)


def test_mae_follows_changes_of_the_users_model():
    bare, model = wrapped("mae")
    clean = model.run(pixels()).output
    with torch.no_grad():
        bare.embeddings.cls_token.mul_(2)
        moved = model.run(pixels()).output
        bare.embeddings.cls_token = nn.Parameter(bare.embeddings.cls_token / 2)
    assert not torch.allclose(moved, clean)
    assert_close(model.run(pixels()).output, clean, 1e-12)
    calls = []
    handle = bare.embeddings.register_forward_hook(lambda *arguments: calls.append(1))
    model.run(pixels())
    handle.remove()
    assert len(calls) == 1


# BEiT


@pytest.mark.parametrize("name", ["beit", "beit-mean", "beit-shared"])
@pytest.mark.parametrize("size", [(12, 12), (20, 16), (8, 24)])
def test_beit_scores_are_products_of_queries_and_keys_plus_the_bias(name, size):
    bare, model = wrapped(name)
    base, window = getattr(bare, "beit", bare), (size[0] // 4, size[1] // 4)
    cache = model.run(pixels(size=size), capture=["*hook_q", "*hook_k", "*hook_attn_scores"]).cache
    for layer, module in enumerate(base.layers):
        found = [m for m in (module.relative_position_bias, base.shared_position_bias) if m is not None]
        assert len(found) == {"beit": 1, "beit-mean": 2, "beit-shared": 1}[name]
        with torch.no_grad():
            bias = sum(m(window) for m in found)
        q, k = cache["q", layer], cache["k", layer]
        products = einsum(q, k, "row query head e, row key head e -> row head query key") / 2
        assert_close(cache["attn_scores", layer] - products, bias.expand(3, -1, -1, -1), 1e-12)


@pytest.mark.parametrize("name", ["beit", "beit-mean", "beit-shared"])
def test_beit_needs_no_word_to_take_another_size(name):
    bare, model = wrapped(name)
    x = pixels(size=(20, 16))
    with torch.no_grad():
        without, told = bare(x), bare(x, interpolate_pos_encoding=True)
    for output in (without, told):
        expected = output.logits if hasattr(output, "logits") else output.pooler_output
        assert torch.equal(model.run(x).output, expected)


def test_beit_restart_at_another_size_has_to_know_it():
    _, model = wrapped("beit")
    x = pixels(size=(20, 16))
    stream = model.run(x, stop_at_layer=1).output
    with pytest.raises(ShapeMismatch, match="say which it was with size="):
        model.run(stream, start_at_layer=1)
    assert torch.equal(model.run(stream, start_at_layer=1, size=(20, 16)).output, model.run(x).output)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_beit_with_and_without_its_pooler(mean, pooled):
    from transformers import BeitConfig, BeitModel

    from mechvis.testing.tiny import _IMAGE, randomise

    bare = BeitModel(BeitConfig(**_IMAGE, use_mean_pooling=mean), add_pooling_layer=pooled)
    randomise(bare, 0)
    model = wrap(bare.eval(), preprocess=tiny_preprocess())
    assert model.parity.plain == 0 and model.parts.layout is None
    assert model.parts.norm == ("pooled" if mean else "tokens")
    assert isinstance(model.parts.ln_final, nn.Identity) == (mean and not pooled)


def test_beit_layer_scale_is_read_live():
    bare, model = wrapped("beit")
    clean = model.run(pixels()).output
    with torch.no_grad():
        bare.beit.layers[1].lambda_1.zero_()
        run = model.run(pixels(), capture="blocks.1.hook_attn_out")
        assert (run.cache["blocks.1.hook_attn_out"] == 0).all()
        assert torch.equal(run.output, bare(pixels()).logits) and not torch.equal(run.output, clean)


def test_beit_names_no_module_for_a_write_that_is_scaled_outside_of_modules():
    _, scaled = wrapped("beit")
    _, plain = wrapped("beit-shared")
    assert "beit.layers.1.attention" not in scaled.graph and "beit.layers.1.attention.q_proj" in scaled.graph
    assert plain.graph.resolve("layers.1.attention") == "blocks.1.hook_attn_out"
    assert beit.beit(plain.bare).blocks[0].scale1 is None


# SigLIP


def test_siglip_similarity_and_probabilities_are_upstreams():
    bare = tiny("siglip", dtype=DOUBLE)
    clip = mechvis.load(bare, preprocess=tiny_preprocess(), tokenizer=Words())
    texts = ["a star", "A Blue circle on grass"]
    with torch.no_grad():
        expected = bare(input_ids=clip.tokenize(texts), pixel_values=pixels()).logits_per_image
    assert_close(clip.similarity(pixels(), texts), expected, 1e-13)
    assert_close(clip.probabilities(expected), torch.sigmoid(expected), 0)
    assert clip.towers.loss == "sigmoid" and clip.logit_bias.shape == clip.logit_scale.shape == ()
    assert clip.logit_bias.item() == bare.logit_bias.item() != 0


def test_siglip_zero_shot_classifier_has_pooling_heads():
    clip = mechvis.load(tiny("siglip", dtype=DOUBLE), preprocess=tiny_preprocess(), tokenizer=Words())
    model = clip.classifier(["circle", "star"])
    run = model.run(pixels(), capture=["pool.*"])
    assert_close(run.logits, clip.similarity(pixels(), ["a photo of a circle", "a photo of a star"]), 1e-13)
    total = run.cache["pool.attn.hook_result"].sum(2) + clip.bare.vision_model.head.attention.out_proj.bias
    assert_close(total, run.cache["pool.hook_attn_out"], 1e-13)


def test_siglip_texts_are_padded_to_the_longest_and_gemmas_tokenizer_gets_lower_case():
    class Tokenizer:
        def __init__(self):
            self.asked = []

        def __call__(self, texts, **settings):
            self.asked.append((texts, settings))
            return {"input_ids": torch.zeros(len(texts), settings["max_length"], dtype=torch.int64)}

    class GemmaTokenizer(Tokenizer):
        pass

    settings = {"padding": "max_length", "truncation": True, "max_length": 12, "return_tensors": "pt"}
    for kind, expected in ((Tokenizer, ["A Star", "É"]), (GemmaTokenizer, ["a star", "é"])):
        tokenizer = kind()
        assert siglip.encode_ids(tokenizer, ["A Star", "É"], 12).shape == (2, 12)
        assert tokenizer.asked == [(expected, settings)]


def test_oblong_images_where_upstream_does_not_interpolate():
    shape = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
    config = ViTConfig(**shape, image_size=(12, 16), patch_size=4)
    bare = ViTModel(config).eval()
    assert wrap(bare, preprocess=plain_scaling(12, 16)).parts.grid == (3, 4)
    with pytest.raises(BadData, match=r"images of \(12, 16\) pixels only"):
        wrap(bare, preprocess=plain_scaling(12, 16), image_size=24)


def test_siglip_text_is_read_at_its_last_token_padding_or_not():
    bare, model = wrapped("siglip-text")
    ids = tiny_input("siglip-text")
    for length in (4, 10):
        with torch.no_grad():
            assert torch.equal(model.run(ids[:, :length]).output, bare(ids[:, :length]).pooler_output)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 40
    assert (model.run(changed).output != model.run(ids).output).any(1).all()


def test_siglip_towers_load_from_inside_the_pair():
    pair = tiny("siglip", dtype=DOUBLE)
    clip = wrap(pair, preprocess=tiny_preprocess())
    vision, text = wrap(pair.vision_model, preprocess=tiny_preprocess()), wrap(pair.text_model)
    assert torch.equal(vision.run(pixels()).output, clip.vision.run(pixels()).output)
    assert torch.equal(text.run(tiny_input("clip-text")).output, clip.text.run(tiny_input("clip-text")).output)
    assert vision.graph.resolve("head.mlp.fc1") == "pool.mlp.hook_pre"
    assert clip.vision.graph.resolve("vision_model.head.mlp.fc1") == "pool.mlp.hook_pre"


def test_siglip_tower_may_lie_deeper():
    # Releases of transformers before the fifth kept the tower inside of SiglipVisionModel.
    outer = nn.Module()
    outer.vision_model = tiny("siglip-vision")
    outer.forward = outer.vision_model.forward
    outer.config = outer.vision_model.config
    model = wrap(outer.eval(), preprocess=tiny_preprocess(), family=siglip.vision)
    assert model.parity.plain == 0
    assert model.graph.resolve("vision_model.encoder.layers.1.self_attn.q_proj") == "blocks.1.attn.hook_q"


def test_siglip_pooling_stays_explicit_whatever_the_models_attention():
    _, model = wrapped("siglip-vision", attention="sdpa")
    attn = model.parts.pooling.attn
    assert not attn.fused() and attn.scale_queries and model.parts.blocks[0].attn.fused()
    run = model.run(pixels(), capture="pool.attn.hook_pattern")
    assert run.cache["pool.attn.hook_pattern"].shape == (3, 4, 1, 9)
    assert torch.equal(run.output, model.run(pixels()).output)


def test_variable_patches_are_refused_with_an_explanation():
    from transformers import Siglip2Config, Siglip2Model

    from mechvis.testing.tiny import _TEXT, _TOWER

    config = Siglip2Config(text_config=_TEXT, vision_config={**_TOWER, "patch_size": 4, "num_patches": 9})
    bare = Siglip2Model(config).eval()
    for module in (bare, bare.vision_model):
        with pytest.raises(UnsupportedModel, match=r"NaFlex.*SigLIP 2 of one resolution is supported.*SiglipModel"):
            mechvis.load(module)
    assert mechvis.load(bare.text_model).parity.plain == 0  # the text tower is an ordinary one


# DINO


@pytest.mark.parametrize("name,n_registers", [("dinov2", 0), ("dinov2-registers", 2), ("dinov3", 2)])
def test_prefix_tokens_are_cls_and_registers(name, n_registers):
    bare, model = wrapped(name)
    assert model.parts.prefix == ("cls", *(f"register{i}" for i in range(n_registers)))
    embedded = model.run(pixels(), capture="hook_embed").cache["hook_embed"]
    if n_registers:
        expected = bare.embeddings.register_tokens.detach().expand(3, -1, -1)
        assert torch.equal(embedded[:, 1:3], expected)
    assert model.parts.n_tokens == embedded.shape[1] == 1 + n_registers + 9


@pytest.mark.parametrize("size", [(12, 12), (20, 16)])
def test_rotation_of_some_tokens_is_that_of_all_picked(size):
    _, model = wrapped("dinov3")
    n = model.parts.at_size(size).n_tokens
    layout, x = model.parts.layout(size), torch.randn(2, n, 4, 4, dtype=DOUBLE)
    turned = dino.rotate(x, layout, None)
    for tokens in ([0], [0, 1, 2], [2, 3], [n - 1, 0, 5, 5], list(range(n))):
        index = torch.tensor(tokens)
        assert torch.equal(dino.rotate(x[:, index], layout, index), turned[:, index])
    assert torch.equal(turned[:, :3], x[:, :3])  # CLS and registers
    unmoved = torch.isclose(turned[:, 3:], x[:, 3:]).all(-1).all(-1).all(0)
    middle = [4] if size == (12, 12) else []  # coordinates are counted from the middle of the image
    assert unmoved.nonzero().flatten().tolist() == middle
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), 1e-13)


@pytest.mark.parametrize("size", [(12, 12), (20, 16)])
def test_rotated_queries_and_keys_are_upstreams(size):
    from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

    bare, model = wrapped("dinov3")
    x = pixels(size=size)
    cache = model.run(x, capture=["*hook_q", "*hook_k", "*hook_rot_*", "*hook_attn_scores"]).cache
    for layer in range(3):
        at = f"blocks.{layer}.attn."
        q, k = (cache[f"{at}hook_{letter}"].transpose(1, 2) for letter in "qk")
        with torch.no_grad():
            q, k = apply_rotary_pos_emb(q, k, *bare.rope_embeddings(x))
        assert torch.equal(cache[at + "hook_rot_q"], q.transpose(1, 2))
        assert torch.equal(cache[at + "hook_rot_k"], k.transpose(1, 2))
        assert_close(cache[at + "hook_attn_scores"], q @ k.transpose(-1, -2) / 2, 1e-13)


def test_rotated_scores_depend_on_where_patches_lie():
    """Moving all patches by one patch moves the scores with them: only differences of positions count."""
    _, model = wrapped("dinov3", image_size=24)
    layout, generator = model.parts.layout((24, 24)), torch.Generator().manual_seed(3)
    one, other = torch.randn(2, 1, 1, 4, 4, dtype=DOUBLE, generator=generator).expand(2, 1, 39, 4, 4)
    queries, keys = (dino.rotate(x, layout, None)[0, 3:].unflatten(0, (6, 6)) for x in (one, other))
    products = einsum(queries, keys, "y x h e, Y X h e -> h y x Y X")
    assert_close(products[:, 1, 2, 3, 1], products[:, 2, 3, 4, 2], 1e-5)  # coordinates are float32
    assert not torch.allclose(products[:, 1, 2, 3, 1], products[:, 1, 2, 3, 3])


@pytest.mark.parametrize("name", ["dinov2", "dinov2-classifier", "dinov3", "beit"])
def test_an_image_processor_of_another_size_sets_the_size(name):
    # The published DINOv2 models: 518 pixels in the config, 224 from the image processor.
    bare = tiny(name)
    with assert_untouched(bare):
        model = mechvis.load(bare, preprocess=tiny_preprocess(20))
    assert model.parts.image_size == (20, 20) and model.parts.grid == (5, 5) and model.parity.plain == 0
    n_prefix = len(model.parts.prefix)
    assert model.graph["blocks.0.attn.hook_z"].sizes == (None, 25 + n_prefix, 4, 4)


def test_swiglu_neurons_are_gate_times_linear():
    bare, model = wrapped("dinov2-swiglu")
    cache = model.run(pixels(), capture="blocks.1.*").cache
    mlp, normal = bare.encoder.layer[1].mlp, cache["blocks.1.ln2.hook_normalized"]
    with torch.no_grad():
        assert torch.equal(cache["blocks.1.mlp.hook_pre"], mlp.gate_proj(normal))
        assert torch.equal(cache["blocks.1.mlp.hook_pre_linear"], mlp.up_proj(normal))
        neurons = nn.functional.silu(mlp.gate_proj(normal)) * mlp.up_proj(normal)
    assert_close(cache["blocks.1.mlp.hook_post"], neurons, 0)
    assert model.cfg.d_mlp == mlp.down_proj.in_features


class OldAttention(nn.Module):
    """DINOv2's attention as transformers had it before 5.18."""

    def __init__(self, new):
        super().__init__()
        self.attention, self.output = nn.Module(), nn.Module()
        inner = self.attention
        inner.config, inner.scaling = new.config, new.scaling
        inner.num_attention_heads, inner.attention_head_size = new.num_attention_heads, new.head_dim
        inner.query, inner.key, inner.value, self.output.dense = new.q_proj, new.k_proj, new.v_proj, new.o_proj

    def forward(self, x, **settings):
        inner = self.attention
        k, v, q = (m(x).unflatten(-1, (4, 4)).transpose(1, 2) for m in (inner.key, inner.value, inner.query))
        z = nn.functional.scaled_dot_product_attention(q, k, v, scale=inner.scaling)
        return self.output.dense(z.transpose(1, 2).contiguous().flatten(2)), None


class OldMLP(nn.Module):
    """Its MLP."""

    def __init__(self, new):
        super().__init__()
        self.fc1, self.activation, self.fc2 = new.fc1, new.activation_fn, new.fc2

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class OldSwiGLU(nn.Module):
    """Its SwiGLU: gate and linear half by one product."""

    def __init__(self, new):
        super().__init__()
        self.weights_in = nn.Linear(16, 2 * new.gate_proj.out_features)
        for name in ("weight", "bias"):
            both = torch.cat([getattr(new.gate_proj, name), getattr(new.up_proj, name)])
            setattr(self.weights_in, name, nn.Parameter(both.detach()))
        self.weights_out = new.down_proj

    def forward(self, x):
        gate, linear = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(nn.functional.silu(gate) * linear)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu", "dinov2-registers-classifier"])
def test_layout_of_older_releases(name):
    bare, new = wrapped(name)
    expected = new.run(pixels(), capture="blocks.1.*")
    for layer in next(m for m in bare.modules() if hasattr(m, "layer")).layer:
        layer.attention = OldAttention(layer.attention)
        layer.mlp = (OldSwiGLU if hasattr(layer.mlp, "gate_proj") else OldMLP)(layer.mlp)
    bare.eval()
    (measured,) = check_family(bare, preprocess=tiny_preprocess())
    assert measured.outputs == measured.gradients == 0
    model = wrap(bare, preprocess=tiny_preprocess())
    run = model.run(pixels(), capture="blocks.1.*")
    for site in run.cache:
        assert_close(run.cache[site], expected.cache[site], 1e-13, site)
    path = next(path for path in model.graph.aliases if path.endswith("1.attention.attention.key"))
    assert model.graph.resolve(path) == "blocks.1.attn.hook_k"


# image processors

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
BILINEAR, BICUBIC = 2, 3
PROCESSORS = {
    "mae": ("ViTImageProcessorPil", IMAGENET, BILINEAR),
    "beit": ("BeitImageProcessorPil", HALF, BILINEAR),
    "siglip": ("SiglipImageProcessorPil", HALF, BICUBIC),
    "dinov2": ("BitImageProcessorPil", IMAGENET, BICUBIC),
    "dinov3": ("FloatResize", IMAGENET, BILINEAR),
}


@pytest.mark.parametrize("name", [name for name in NEW if not name.endswith("-text")])
def test_default_processor_is_that_of_the_published_models(name):
    with pytest.warns(DefaultPreprocessing, match="no image preprocessing came with"):
        model = mechvis.load(tiny(name))
    found = model.preprocess
    kind, (mean, std), resample = PROCESSORS[name.partition("-")[0]]
    assert (type(found.processor).__name__, found.mean, found.std) == (kind, mean, std)
    assert found.settings["resample"] == resample and (found.height, found.width) == (12, 12)
    image = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    assert found([image]).shape == (1, 3, 12, 12)
    assert found.masks([image[..., 0] > 100]).shape == (1, 12, 12)
    larger = found.at_size(24, 24)
    assert larger([image]).shape == (1, 3, 24, 24) and larger.mean == found.mean


def test_dinov2_default_is_the_published_resize_and_crop():
    processor = dino.resize_and_crop((224, 224))
    assert processor.size["shortest_edge"] == 256 and dict(processor.crop_size) == {"height": 224, "width": 224}


@pytest.mark.parametrize("kind", ["BeitImageProcessor", "BeitFeatureExtractor", "BeitImageProcessorFast"])
def test_processors_are_read_where_transformers_finds_none_without_torchvision(tmp_path, monkeypatch, kind):
    import json

    import transformers

    class Missing:
        @classmethod
        def from_pretrained(cls, path, backend):
            raise ImportError("AutoImageProcessor requires the Torchvision library")  # releases before 5.18

    monkeypatch.setattr(transformers, "AutoImageProcessor", Missing)
    assert maps.image_processor(tmp_path) is None
    key = "feature_extractor_type" if "Feature" in kind else "image_processor_type"
    settings = {key: kind, "size": {"height": 20, "width": 16}, "image_mean": [0.1] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = maps.image_processor(tmp_path)
    assert type(found).__name__ == "BeitImageProcessorPil" and list(found.image_mean) == [0.1] * 3
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Strange"}', encoding="utf-8")
    assert maps.image_processor(tmp_path) is None


SMALL = (np.arange(5 * 7 * 3).reshape(5, 7, 3) * 37 % 251).astype(np.uint8)
# What transformers' DINOv3ViTImageProcessor (torchvision 0.28, size 3 x 4) makes of it; first channel, two rows.
EXPECTED = torch.tensor([[-0.9460816, 0.8084722, 0.3515833, 0.0756953], [-0.4594305, -0.2841091, 0.5007373, 0.6760585]])


def test_dinov3_pixels_are_those_of_the_torchvision_processor():
    made = FloatResize(size={"height": 3, "width": 4})([SMALL])["pixel_values"]
    assert_close(made[0, 0, :2], EXPECTED, 1e-6)


@pytest.mark.parametrize("crop", [False, True])
def test_dinov3_processor_is_read_without_torchvision(tmp_path, crop):
    import json

    tiny("dinov3").save_pretrained(tmp_path)
    settings = {"image_processor_type": "DINOv3ViTImageProcessor", "size": {"height": 20, "width": 16}, "resample": 3}
    settings |= {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "do_center_crop": crop}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if crop:  # not what the published ones do, so it is not guessed at
        with pytest.warns(DefaultPreprocessing):
            assert mechvis.load(tmp_path).preprocess.mean == IMAGENET[0]
        return
    model = mechvis.load(tmp_path)
    assert model.preprocess.mean == (0.1,) * 3 and model.preprocess.std == (0.2,) * 3
    assert model.parts.image_size == (20, 16) and model.preprocess.settings["resample"] == 3
    assert model.preprocess.source == "folder"
