"""Second-order effects: the factorised form against the plain one, additivity, and the model's own forward pass."""

import numpy as np
import pytest
import torch
from einops import einsum

from mechvis import edits, testing
from mechvis.errors import BadData, BadImages, OutOfMemory, OutOfRange, RefusedMethod, UnknownName
from mechvis.models.load import wrap
from probes.second_order import coefficients, effect_of_write, effects_by_token, read_out_of

NEURONS = [0, 3, 17, 22]
READABLE = {
    "vit": "logits",
    "vit-base": "pooled",
    "deit": "logits",
    "clip-vision": "embedding",
    "clip-classifier": "logits",
    "mae": "pooled",
    "beit": "logits",
    "beit-mean": "logits",
    "siglip-classifier": "logits",
    "dinov2": "pooled",
    "dinov2-swiglu": "pooled",
    "dinov2-classifier": "logits",
    "dinov2-registers": "pooled",
    "dinov2-registers-classifier": "logits",
    "dinov3": "pooled",
    "dinov3-gated": "pooled",
}


def model_of(family):
    return wrap(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())


def pixels_of(family, n=3):
    return testing.tiny_input(family, n=n, dtype=torch.float64)


@pytest.fixture(scope="module")
def vit():
    return model_of("vit")


@pytest.mark.parametrize("family", READABLE)
def test_factorised_equals_token_level(family):
    model, pixels = model_of(family), pixels_of(family)
    for layer in (0, 1):
        found = coefficients(model, pixels, layer, neurons=NEURONS, of=READABLE[family], progress=False)
        plain = effects_by_token(model, pixels, layer, neurons=NEURONS, of=READABLE[family])
        assert found.effects().shape == plain.shape and np.abs(plain.numpy()).max() > 1e-4
        np.testing.assert_allclose(found.effects(), plain.numpy(), atol=1e-12)


@pytest.mark.parametrize("family", READABLE)
def test_neurons_add_up_to_the_mlp_output(family):
    model, pixels = model_of(family), pixels_of(family)
    for unit in (False, True):
        found = coefficients(model, pixels, 0, of=READABLE[family], unit=unit, progress=False)
        whole = effect_of_write(model, pixels, 0, of=READABLE[family], unit=unit)
        np.testing.assert_allclose(found.summed(), whole.numpy(), atol=1e-12)


def frozen_difference(model, pixels, layer, write):
    """Output with a write, minus output without it, in the model's own forward pass with patterns, norm scales and MLPs
    as they were. With one later block: the direct effect and the second-order effect, and nothing else."""
    after = f"blocks.{layer + 1}."
    held = [after + "attn.hook_pattern", after + "ln1.hook_scale", after + "hook_mlp_out", "ln_final.hook_scale"]
    clean = model.run(pixels, capture=held)
    held = [edits.freeze(name, clean.cache) for name in held]
    without = model.run(pixels, edits=[edits.add(f"blocks.{layer}.hook_resid_post", -write), *held])
    return clean.output - without.output


@pytest.mark.parametrize("family", ["vit", "clip-vision", "beit-mean", "dinov2-classifier", "dinov3"])
@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_against_the_models_own_forward(family):
    model, pixels = model_of(family), pixels_of(family)
    layer = 1
    cache = model.run(pixels, capture=[f"blocks.{layer}.mlp.hook_post", "ln_final.hook_scale"]).cache
    for neuron in (2, 9):
        write = cache[f"blocks.{layer}.mlp.hook_post"][..., [neuron]] * model.blocks[layer].mlp.W_out[neuron].detach()
        moved = frozen_difference(model, pixels, layer, write)
        read = read_out_of(model, READABLE[family], unit=False)
        direct = einsum(read.weigh(cache["ln_final.hook_scale"]), read.centre(write), "i s t, i t d -> i s d")
        direct = einsum(direct, read.matrix, "i s d, s d out -> i out")
        second = effects_by_token(model, pixels, layer, neurons=[neuron], of=READABLE[family], unit=False)[:, 0]
        testing.assert_close(second + direct, moved, 1e-10, f"neuron {neuron}")
        assert second.abs().max() > 1e-3 * moved.abs().max(), "the comparison is about something"


def test_last_block_has_none(vit):
    found = coefficients(vit, pixels_of("vit"), 2, progress=False)
    assert found.terms == () and found.alpha.shape == (3, 0, 32)
    assert (found.effects() == 0).all() and (found.summed() == 0).all() and (found.sizes() == 0).all()
    assert (effects_by_token(vit, pixels_of("vit"), -1, neurons=[1]) == 0).all()


def test_unit_length_of_clip_and_zero_shot_logits():
    model, pixels = model_of("clip-vision"), pixels_of("clip-vision")
    length = model.run(pixels).output.norm(dim=1).numpy()
    unit = coefficients(model, pixels, 1, neurons=NEURONS, progress=False)
    plain = coefficients(model, pixels, 1, neurons=NEURONS, unit=False, progress=False)
    assert unit.unit and not plain.unit and unit.of == "embedding"
    np.testing.assert_allclose(unit.effects() * length[:, None, None], plain.effects(), atol=1e-12)
    clip = wrap(
        testing.tiny("clip", dtype=torch.float64), tokenizer=testing.Words(), preprocess=testing.tiny_preprocess()
    )
    names = ["cat", "bird"]
    zero_shot = clip.classifier(names)
    logits = coefficients(zero_shot, pixels, 1, neurons=NEURONS, progress=False)
    embedding = coefficients(clip.vision, pixels, 1, neurons=NEURONS, progress=False)
    by_hand = embedding.effects() @ clip.prompts(names).detach().numpy().T * clip.logit_scale.item()
    np.testing.assert_allclose(logits.effects(), by_hand, atol=1e-12)
    with pytest.raises(RefusedMethod, match="a zero-shot head takes cosines"):
        coefficients(zero_shot, pixels, 1, unit=False, progress=False)


def test_sizes_mean_and_batches_do_not_change_the_numbers(vit):
    pixels = pixels_of("vit", n=7)
    found = coefficients(vit, pixels, 0, progress=False)
    effects = found.effects()
    np.testing.assert_allclose(found.mean, effects.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.sizes(), np.linalg.norm(effects - effects.mean(0), axis=2), atol=1e-10)
    small = coefficients(vit, pixels, 0, neurons=[5], batch_size=2, progress=False)
    np.testing.assert_allclose(small.effects()[:, 0], effects[:, 5], atol=1e-12)
    assert found.names[5] == "L0N5" and found.terms[:4] == ("L1H0", "L1H1", "L1H2", "L1H3")
    assert "32 neurons through 8 later heads" in repr(found)


def test_a_write_of_ones_own_and_its_shape(vit):
    pixels = pixels_of("vit")
    write = torch.randn(3, 10, 16, dtype=torch.float64)
    one, two = effect_of_write(vit, pixels, 0, write), effect_of_write(vit, pixels, 0, 2 * write)
    testing.assert_close(two, 2 * one, 1e-12, "linear")
    with pytest.raises(BadData, match=r"a write is \[3, 10, 16\] here, got \[3, 4, 16\]"):
        effect_of_write(vit, pixels, 0, write[:, :4])


@pytest.mark.parametrize(
    ("family", "of", "said"),
    [
        ("siglip-vision", "output", "attention pooling"),
        ("vit-base", "embedding", "not linear"),
        ("vit", "embedding", "no projection"),
        ("dinov2", "logits", "no head"),
    ],
)
def test_readouts_without_a_linear_map_are_refused(family, of, said):
    with pytest.raises(RefusedMethod, match=said):
        read_out_of(model_of(family), of)


def test_text_towers_and_strange_requests_are_refused(vit):
    with pytest.raises(RefusedMethod, match="a text tower"):
        read_out_of(wrap(testing.tiny("clip-text", dtype=torch.float64)))
    with pytest.raises(RefusedMethod, match=r"Convert it: model.to\(torch.float32\)"):
        read_out_of(wrap(testing.tiny("vit", dtype=torch.bfloat16), preprocess=testing.tiny_preprocess()))
    with pytest.raises(UnknownName, match="logits"):
        read_out_of(vit, "logit")
    with pytest.raises(OutOfRange, match="layers 0 to 2"):
        coefficients(vit, pixels_of("vit"), 3, progress=False)
    with pytest.raises(OutOfRange, match="neurons 0 to 31"):
        coefficients(vit, pixels_of("vit"), 1, neurons=[32], progress=False)
    with pytest.raises(BadData, match="whole numbers"):
        coefficients(vit, pixels_of("vit"), 1, neurons=[], progress=False)
    with pytest.raises(BadImages):
        coefficients(vit, torch.zeros(2, 3, 16, 16, dtype=torch.float64), 1, progress=False)


def test_what_does_not_fit_into_memory_is_refused(vit, monkeypatch):
    monkeypatch.setattr("probes.second_order.effects.free_memory", lambda: 100)
    with pytest.raises(OutOfMemory, match="Take fewer neurons at a time"):
        coefficients(vit, pixels_of("vit"), 1, progress=False)


def test_the_model_leaves_as_it_came(vit):
    with testing.assert_untouched(vit):
        coefficients(vit, pixels_of("vit"), 1, progress=False)
