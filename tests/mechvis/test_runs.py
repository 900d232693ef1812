"""What a run promises: gradients everywhere, real restarts, fused attention unless asked, sum rules, loud failures."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

import mechvis
from mechvis import edits
from mechvis.clip import HookedCLIP
from mechvis.errors import (
    EditNeverFired,
    EffectlessEdit,
    MechvisError,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    TrainMode,
    UnknownSite,
)
from mechvis.hooked import HookedViT
from mechvis.models.load import wrap
from mechvis.testing import assert_close, hand_wired_images, hand_wired_vit, rand_vit, tiny, tiny_input, tiny_preprocess

DOUBLE = torch.float64
QUIET = "ignore::mechvis.errors.EffectlessEdit"


@pytest.fixture(scope="module")
def model():
    return wrap(rand_vit(), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", dtype=DOUBLE)


def readout(logits):
    """A smooth scalar that depends on every logit."""
    return (logits * torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)).sum() + logits.logsumexp(-1).sum()


# gradients


@pytest.mark.filterwarnings(QUIET)
def test_gradient_at_every_site_is_the_gradient_of_a_leaf_there(model, pixels):
    run = model.run(pixels, capture="*", grad=True)
    names = model.graph.names
    captured = torch.autograd.grad(readout(run.logits), [run.cache[name] for name in names])
    values = model.run(pixels, capture="*").cache
    for name, gradient in zip(names, captured, strict=True):
        leaf = values[name].clone().requires_grad_()
        # The edit sees attention as [row query head key], everything else as it is.
        given = leaf.transpose(1, 2) if "query" in model.graph[name].axes else leaf
        replace = edits.call(name, lambda x, given=given: given.reshape(x.shape))
        replaced = model.run(pixels, edits=[replace], capture="*pattern", grad=True)
        (expected,) = torch.autograd.grad(readout(replaced.logits), leaf)
        assert_close(gradient, expected, 1e-10, name)


@pytest.mark.parametrize(
    "name",
    [
        "hook_embed",
        "blocks.0.attn.hook_q",
        "blocks.1.attn.hook_pattern",
        "blocks.1.attn.hook_z",
        "blocks.2.mlp.hook_post",
        "blocks.2.ln2.hook_scale",
        "ln_final.hook_scale",
        "hook_pooled",
    ],
)
def test_gradient_against_finite_differences(model, pixels, name):
    run = model.run(pixels, capture=[name], grad=True)
    (gradient,) = torch.autograd.grad(readout(run.logits), run.cache[name])
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(gradient.shape, generator=generator, dtype=DOUBLE)
    step = 1e-5

    def shifted(sign):
        return readout(model.run(pixels, edits=[edits.add(name, direction, sign * step)]).logits)

    slope = (shifted(1) - shifted(-1)) / (2 * step)
    assert_close((gradient * direction).sum(), slope, 1e-7)


@pytest.mark.filterwarnings(QUIET)
def test_gradients_flow_through_edits_to_their_values(model, pixels):
    vector = torch.zeros(16, dtype=DOUBLE, requires_grad=True)
    run = model.run(
        pixels,
        edits=[edits.add("blocks.1.hook_resid_post", vector, 2.0)],
        capture=["blocks.1.hook_resid_post"],
        grad=True,
    )
    at_site, at_vector = torch.autograd.grad(readout(run.logits), [run.cache["resid_post", 1], vector])
    assert_close(at_vector, 2 * at_site.sum((0, 1)), 1e-12)


def test_without_grad_nothing_keeps_a_graph(model, pixels):
    run = model.run(pixels, capture="*")
    assert not run.logits.requires_grad and not any(t.requires_grad for t in run.cache.values())
    with torch.enable_grad():
        assert not model.run(pixels).logits.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_site_fires_under_every_grad_mode(model, pixels, context):
    with context():
        assert len(model.run(pixels, capture="*").cache) == len(model.graph)


# restarts


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_stop_and_start_are_the_two_halves(model, pixels, layer):
    whole = model.run(pixels)
    first = model.run(pixels, stop_at_layer=layer)
    assert first.output_site == f"the stream before block {layer}"
    assert torch.equal(model.run(first.output, start_at_layer=layer).logits, whole.logits)
    with pytest.raises(MechvisError, match="it has no logits"):
        first.logits


def test_stopping_really_skips(model, pixels, monkeypatch):
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    model.run(pixels, stop_at_layer=1)
    assert len(calls) == 1
    stream = model.run(pixels, stop_at_layer=2).output
    calls.clear()
    model.run(stream, start_at_layer=2)
    assert len(calls) == 1


def test_edits_and_captures_after_a_restart(model, pixels):
    edit = edits.zero("blocks.2.attn.hook_z", heads=[1])
    stream = model.run(pixels, stop_at_layer=2).output
    restarted = model.run(stream, start_at_layer=2, edits=[edit], capture="blocks.2.*")
    whole = model.run(pixels, edits=[edit], capture="blocks.2.*")
    for name in whole.cache:
        assert torch.equal(restarted.cache[name], whole.cache[name]), name


@pytest.mark.parametrize("option", ["start_at_layer", "stop_at_layer"])
@pytest.mark.parametrize("layer", [4, -4, 99])
def test_restart_out_of_range(model, pixels, option, layer):
    inputs = torch.zeros(3, 10, 16, dtype=DOUBLE) if option == "start_at_layer" else pixels
    with pytest.raises(OutOfRange, match=rf"{option}={layer}: this model has layers 0 to 2"):
        model.run(inputs, **{option: layer})


def test_restart_takes_the_stream(model, pixels):
    with pytest.raises(ShapeMismatch, match=r"takes the stream \[row token 16\], got \[3, 3, 12, 12\]"):
        model.run(pixels, start_at_layer=1)


# fused attention


def test_attention_is_fused_unless_scores_or_pattern_are_asked_for(model, pixels, monkeypatch):
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))

    def count(**options):
        calls.clear()
        model.run(pixels, **options)
        return len(calls)

    assert count() == 3
    assert count(capture=["*hook_z", "*hook_q", "*resid*", "*mlp*", "*hook_result"]) == 3
    assert count(capture=["blocks.1.attn.hook_pattern"]) == 2  # that layer only
    assert count(capture=["*hook_attn_scores"]) == 0
    assert count(edits=[edits.zero("blocks.0.attn.hook_pattern", heads=[0], tokens=[0])]) == 2


# sum rules


@pytest.mark.parametrize("family", ["vit", "deit", "clip-vision", "clip-text"])
def test_sum_rules(family):
    model = wrap(tiny(family, dtype=DOUBLE), preprocess=tiny_preprocess())
    cache = model.run(tiny_input(family, dtype=DOUBLE), capture="*").cache
    total = cache["hook_embed"]
    for layer, block in enumerate(model.blocks):
        pattern, v, z = cache["pattern", layer], cache["v", layer], cache["z", layer]
        assert (pattern >= 0).all() and ((pattern.sum(-1) - 1).abs() < 1e-14).all()
        assert_close(torch.einsum("rhqk,rkhe->rqhe", pattern, v).contiguous(), z, 1e-14)
        if model.parts.blocks[layer].attn.causal:
            assert (pattern.triu(1) == 0).all()
        scores = (
            torch.einsum("rqhe,rkhe->rhqk", cache["q", layer], cache["k", layer]) * model.parts.blocks[layer].attn.scale
        )
        finite = torch.isfinite(cache["attn_scores", layer])
        assert_close(cache["attn_scores", layer][finite], scores[finite], 1e-12)
        assert_close(torch.einsum("rthe,hed->rthd", z, block.attn.W_O), cache["result", layer], 1e-13)
        assert_close(cache["result", layer].sum(2) + block.attn.b_O, cache["attn_out", layer], 1e-13)
        assert_close(cache["post", layer] @ block.mlp.W_out + block.mlp.b_out, cache["mlp_out", layer], 1e-13)
        assert torch.equal(cache["resid_pre", layer] + cache["attn_out", layer], cache["resid_mid", layer])
        assert torch.equal(cache["resid_mid", layer] + cache["mlp_out", layer], cache["resid_post", layer])
        for norm, parts, stream in (
            ("ln1", model.parts.blocks[layer].ln1, "resid_pre"),
            ("ln2", model.parts.blocks[layer].ln2, "resid_mid"),
        ):
            x = cache[stream, layer]
            rebuilt = (x - x.mean(-1, keepdim=True)) / cache[
                f"blocks.{layer}.{norm}.hook_scale"
            ] * parts.weight + parts.bias
            assert_close(rebuilt.detach(), cache[f"blocks.{layer}.{norm}.hook_normalized"], 1e-12)
        normal = cache[f"blocks.{layer}.ln1.hook_normalized"]
        for letter, weight, bias in (
            ("q", block.attn.W_Q, block.attn.b_Q),
            ("k", block.attn.W_K, block.attn.b_K),
            ("v", block.attn.W_V, block.attn.b_V),
        ):
            assert_close((torch.einsum("rtd,hde->rthe", normal, weight) + bias).detach(), cache[letter, layer], 1e-12)
        total = total + cache["attn_out", layer] + cache["mlp_out", layer]
    assert_close(total, cache["resid_post", -1], 1e-13)
    assert_close((cache["resid_post", 0] - cache["hook_embed"]), cache["attn_out", 0] + cache["mlp_out", 0], 1e-12)


def test_hook_zeroing_is_weight_zeroing():
    pixels = tiny_input("vit", dtype=DOUBLE)
    for layer in range(3):
        for head in range(4):
            bare = rand_vit()
            model = wrap(bare, preprocess=tiny_preprocess())
            ablated = model.run(pixels, edits=[edits.zero(f"blocks.{layer}.attn.hook_z", heads=[head])]).logits
            with torch.no_grad():
                bare.vit.layers[layer].attention.o_proj.weight[:, 4 * head : 4 * head + 4] = 0
                assert_close(ablated, bare(pixels).logits, 1e-10)


def test_zeroing_neurons_is_zeroing_their_weights():
    bare, pixels = rand_vit(), tiny_input("vit", dtype=DOUBLE)
    model = wrap(bare, preprocess=tiny_preprocess())
    ablated = model.run(pixels, edits=[edits.zero("blocks.1.mlp.hook_post", units=[3, 7])]).logits
    with torch.no_grad():
        bare.vit.layers[1].mlp.fc2.weight[:, [3, 7]] = 0
        assert_close(ablated, bare(pixels).logits, 1e-10)


# the hand-wired model: effects are a theorem


def test_hand_wired_effects_and_norms():
    model = wrap(hand_wired_vit(), preprocess=tiny_preprocess())
    pixels, brightness = hand_wired_images(256)
    clean = model.run(pixels, capture=["blocks.0.attn.hook_result", "blocks.0.attn.hook_pattern"])
    logit = clean.logits[:, 0]
    assert torch.corrcoef(torch.stack([logit, brightness[:, 4]]))[0, 1] > 0.9999
    for other in (0, 1, 2, 3, 5, 6, 7, 8):
        assert torch.corrcoef(torch.stack([logit, brightness[:, other]]))[0, 1].abs() < 0.15
    effects = [
        (logit - model.run(pixels, edits=[edits.zero("blocks.0.attn.hook_z", heads=[h])]).logits[:, 0]).abs().mean()
        for h in range(4)
    ]
    assert effects[0] == pytest.approx(0.38, abs=0.02) and max(effects[1:]) < 5e-4
    norms = clean.cache["result", 0][:, 0].norm(dim=-1).mean(0)
    assert norms[0] == pytest.approx(0.53, abs=0.03) and min(norms[1:]) == pytest.approx(2.6, abs=0.15)
    for head, place in enumerate((4, 0, 2, 7)):
        assert (clean.cache["pattern", 0][:, head, 0, 1 + place] > 0.999999).all()


def test_hand_wired_places_are_free():
    model = hand_wired_vit(planted=8, distractors=(1, 3, 5))
    pixels, brightness = hand_wired_images(32, seed=3)
    with torch.no_grad():
        assert_close(model(pixels).logits[:, 0], 0.75 * brightness[:, 8], 5e-3)
    with pytest.raises(MechvisError, match="four different patches of 0 to 8"):
        hand_wired_vit(planted=1, distractors=(1, 3, 5))


# loud, not silent


def test_nan_in_a_capture_names_the_site_and_the_rows(model, pixels):
    poison = edits.call("blocks.1.mlp.hook_post", lambda x: x * float("nan"), rows=[2])
    with pytest.raises(NotFinite, match=r"blocks\.1\.mlp\.hook_post: 320 NaN or Inf values, first in row\(s\) \[2\]"):
        model.run(pixels, edits=[poison], capture="*")
    run = model.run(pixels, edits=[poison], capture=["hook_logits"], check_finite=False)
    assert run.cache["hook_logits"][2].isnan().all() and run.cache["hook_logits"][:2].isfinite().all()


def test_nan_in_a_weight_is_found_where_it_first_shows(pixels):
    bare = rand_vit()
    model = wrap(bare, preprocess=tiny_preprocess())
    bare.vit.layers[1].mlp.fc1.bias.data[5] = float("nan")
    with pytest.raises(NotFinite, match=r"^blocks\.1\.mlp\.hook_pre"):
        model.run(pixels, capture="*")


def test_causal_scores_may_hold_minus_infinity():
    model = wrap(tiny("clip-text"))
    scores = model.run(tiny_input("clip-text"), capture=["*hook_attn_scores"]).cache["attn_scores", 0]
    assert torch.isinf(scores).any() and not torch.isnan(scores).any()


def test_edits_that_never_fire(model, pixels):
    with pytest.raises(EditNeverFired, match=r"edits\.zero\('blocks\.2.*never fired.*blocks\.2\.attn\.hook_z"):
        model.run(pixels, edits=[edits.zero("blocks.2.attn.hook_z")], stop_at_layer=2)
    with pytest.raises(EditNeverFired):
        model.run(torch.zeros(1, 10, 16, dtype=DOUBLE), edits=[edits.zero("hook_embed")], start_at_layer=1)


def test_captures_that_never_happen(model, pixels):
    with pytest.raises(EditNeverFired, match=r"nothing was captured at hook_logits"):
        model.run(pixels, capture=["hook_logits"], stop_at_layer=1)


def test_edits_without_effect_warn(model, pixels):
    with pytest.warns(EffectlessEdit, match=r"edits\.scale\('hook_embed', factor=1\) changed nothing at hook_embed"):
        model.run(pixels, edits=[edits.scale("hook_embed", 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run(pixels, edits=[edits.scale("hook_embed", 1.1)])


def test_the_warning_points_at_the_line_of_the_user(model, pixels):
    with pytest.warns(EffectlessEdit) as seen:
        model.run(pixels, edits=[edits.scale("hook_embed", 1.0)])
    # Run-time checks of annotations add a frame of their own.
    assert seen[0].filename == __file__ or hasattr(HookedViT.run, "__wrapped__")


def test_capture_of_nothing_is_an_error(model, pixels):
    with pytest.raises(UnknownSite, match=r"no site matches '\*hook_zz'"):
        model.run(pixels, capture=["*hook_zz"])


@pytest.mark.parametrize("path", ["", "vit.layers.1.mlp", "vit.embeddings.dropout"])
def test_train_mode_anywhere_is_refused(path):
    bare = rand_vit()
    model = wrap(bare, preprocess=tiny_preprocess())
    bare.get_submodule(path).train()
    with pytest.raises(TrainMode, match=rf"^{path or 'the model'} \(\w+\) is in train mode.*model\.eval\(\)"):
        model.run(tiny_input("vit", dtype=DOUBLE))
    bare.eval()
    model.run(tiny_input("vit", dtype=DOUBLE))


def test_train_mode_of_the_other_tower_is_seen_too():
    bare = tiny("clip")
    model = wrap(bare, preprocess=tiny_preprocess())
    bare.vision_model.train()
    with pytest.raises(TrainMode, match="vision_model"):
        model.vision.run(tiny_input("clip"))


def test_no_public_function_swallows_keyword_arguments():
    for function in (
        HookedViT.run,
        HookedViT.edited,
        HookedViT.forward,
        HookedCLIP.classifier,
        mechvis.load,
        mechvis.means,
        *(getattr(edits, name) for name in (*edits.KINDS, "save", "load")),
    ):
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds, function


# edited(), a context for code that calls the model itself


def test_edited_context(model, pixels):
    edit = edits.zero("blocks.1.attn.hook_z", heads=[2])
    with model.edited([edit]) as same:
        assert same is model
        inside = model(pixels)
    assert torch.equal(inside.detach(), model.run(pixels, edits=[edit]).logits)
    assert torch.equal(model(pixels).detach(), model.run(pixels).logits)
    with pytest.raises(EditNeverFired, match="never fired"), model.edited([edit]):
        pass
    with pytest.raises(ZeroDivisionError), model.edited([edit]):  # what the user sees is their own error
        1 / 0


# text and CLIP


def test_clip_logits_are_the_bare_models():
    bare = tiny("clip")
    model = wrap(bare, preprocess=tiny_preprocess())
    ids, pixels = tiny_input("clip-text", n=4), tiny_input("clip")
    prompts = model.text.run(ids).embedding
    prompts = prompts / prompts.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        expected = bare(input_ids=ids, pixel_values=pixels).logits_per_image
    image = model.encode_image(pixels)
    assert_close(image @ prompts.T * model.logit_scale.detach(), expected, 1e-6)


def test_text_edits_reach_the_read_out_only_through_the_end_of_text():
    model = wrap(tiny("clip-text"))
    ids = tiny_input("clip-text")
    ends = (ids == 49).int().argmax(-1)
    clean = model.run(ids).embedding
    after = edits.add("blocks.0.hook_resid_post", torch.ones(16), rows=[0], tokens=[int(ends[0]) + 1])
    assert torch.equal(model.run(ids, edits=[after]).embedding, clean)  # causal: what comes later is not seen
    at = edits.add("blocks.0.hook_resid_post", torch.arange(16.0), rows=[0], tokens=[int(ends[0])])
    moved = model.run(ids, edits=[at]).embedding
    assert not torch.equal(moved[0], clean[0]) and torch.equal(moved[1:], clean[1:])


def test_runs_print():
    model = wrap(rand_vit(), preprocess=tiny_preprocess())
    run = model.run(
        tiny_input("vit", dtype=DOUBLE), edits=[edits.zero("blocks.0.attn.hook_z", heads=[0])], capture=["hook_pooled"]
    )
    assert repr(run) == "Run(hook_logits [3, 8], 1 captured, 1 edits)"
    assert run.edits == (edits.zero("blocks.0.attn.hook_z", heads=[0]),)
    with pytest.raises(MechvisError, match="capture 'hook_embedding'"):
        run.embedding


def test_an_edit_that_cannot_reach_the_read_out_is_told() -> None:
    model = mechvis.load(tiny("vit"), preprocess=tiny_preprocess())
    pixels, last = tiny_input("vit"), model.cfg.n_layers - 1
    for site in ("hook_mlp_out", "attn.hook_z", "attn.hook_q", "hook_resid_post"):
        with pytest.warns(EffectlessEdit, match="cannot change the output"):
            model.run(pixels, edits=[edits.zero(f"blocks.{last}.{site}", tokens="patches")])
    # Keys and values still reach CLS; CLS itself is read; a pattern over all layers means the earlier ones too.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kept in (
            edits.zero(f"blocks.{last}.attn.hook_v", tokens="patches"),
            edits.zero(f"blocks.{last}.hook_mlp_out", tokens="cls"),
            edits.zero("blocks.*.hook_mlp_out", tokens="patches"),
        ):
            assert not torch.equal(model.run(pixels, edits=[kept]).logits, model.run(pixels).logits)


def test_frozen_weights_have_the_same_gradients_at_every_site() -> None:
    bare = tiny("vit", dtype=torch.float64)
    model = mechvis.load(bare, preprocess=tiny_preprocess())
    pixels = tiny_input("vit", dtype=torch.float64)
    sites = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.ln2.hook_scale", "hook_pooled"]

    def gradients() -> list[torch.Tensor]:
        run = model.run(pixels, capture=sites, grad=True)
        return list(torch.autograd.grad(run.logits[:, 0].sum(), [run.cache[site] for site in sites]))

    trainable = gradients()
    bare.requires_grad_(False)
    for one, other in zip(trainable, gradients(), strict=True):
        assert torch.equal(one, other) and one.abs().sum() > 0
