"""What CIGMA is compared with: random heads, direct effects, Locate-Then-Correct."""

import math

import numpy as np
import pytest
import torch

import mechvis
from circuits import comparators
from mechvis import testing
from mechvis.errors import BadData, OutOfRange
from mechvis.metrics import classes_of
from mechvis.units import head_units

N = 6


def wrapped(family, dtype=torch.float64):
    bare = testing.tiny("clip" if family == "clip-zero-shot" else family, dtype=dtype)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    return model.classifier(["circle", "star", "a blue square"]) if family == "clip-zero-shot" else model


def some_images(n_classes, n=N, groups=None, seed=0):
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    return mechvis.data.ImageSet(
        name="noise",
        ids=tuple(f"noise/{i}" for i in range(n)),
        read=drawn.__getitem__,
        rows=np.arange(n),
        labels=generator.integers(0, n_classes, n),
        groups=groups,
    )


@pytest.fixture(scope="module")
def vit():
    return wrapped("vit")


def test_random_heads_are_sets_and_reproducible(vit):
    drawn = comparators.random_heads(vit, 5, 30, seed=1)
    assert len(drawn) == 30 and all(len(set(heads)) == 5 and heads == sorted(heads) for heads in drawn)
    assert len({tuple(heads) for heads in drawn}) == 30
    assert drawn == comparators.random_heads(vit, 5, 30, seed=1)
    assert drawn != comparators.random_heads(vit, 5, 30, seed=2)


def test_random_heads_reach_every_head(vit):
    seen = {unit for heads in comparators.random_heads(vit, 2, 60, seed=0) for unit in heads}
    assert seen == set(comparators.all_heads(vit))


def test_the_chosen_set_is_not_its_own_control(vit):
    chosen = head_units([(1, 2)])
    drawn = comparators.random_heads(vit, 1, 200, seed=0, without=chosen)
    assert len(drawn) == 200 and chosen not in drawn
    assert len({tuple(heads) for heads in drawn}) == 11, "few sets: they repeat"


def test_too_many_random_heads(vit):
    assert comparators.random_heads(vit, 12, 2, seed=0) == [comparators.all_heads(vit)] * 2
    with pytest.raises(OutOfRange, match="13 random heads asked for, the model has 12"):
        comparators.random_heads(vit, 13, 1, seed=0)
    with pytest.raises(OutOfRange, match="only one set of 12 of 12"):
        comparators.random_heads(vit, 12, 20, seed=0, without=comparators.all_heads(vit))


@pytest.mark.parametrize("family", ["vit", "clip-zero-shot"])
def test_heads_and_the_rest_sum_to_the_logit_difference(family):
    """In float64: all heads, embedding, MLPs, output biases, LayerNorm bias and head bias are the whole."""
    model = wrapped(family)
    images = some_images(3)
    effects, logits = comparators.direct_effects(model, images)
    parts, n_layers = model.parts, len(model.parts.blocks)
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in range(n_layers)]
    extra = ["hook_embed", "ln_final.hook_scale", *(["hook_embedding"] if parts.project is not None else [])]
    run = model.run(images, capture=[*sites, *extra])
    rest = run.cache["hook_embed"][:, 0] + sum(run.cache[site][:, 0] for site in sites)
    rest = rest + sum(block.attn.out_bias() for block in parts.blocks)
    scale = run.cache["ln_final.hook_scale"][:, 0]
    gained = (rest - rest.mean(-1, keepdim=True)) / scale * parts.ln_final.weight + parts.ln_final.bias
    if family == "clip-zero-shot":
        length = run.cache["hook_embedding"].norm(dim=-1, keepdim=True)
        per_class = parts.project(gained) / length @ parts.head.prompts.T * parts.head.scale
    else:
        per_class = parts.head(gained)
    target, contrast = classes_of(run.logits, images.label_tensor)
    rows = torch.arange(N)
    whole = run.logits[rows, target] - run.logits[rows, contrast]
    total = effects.sum(1) + per_class[rows, target] - per_class[rows, contrast]
    testing.assert_close(total, whole, 1e-10, "sum of parts")
    assert torch.equal(logits, run.logits)
    assert effects.shape == (N, 12)


def test_direct_effect_agrees_with_transformer_lens(vit):
    """`ActivationCache.logit_attrs` on each head's result, for the class direction."""
    images = some_images(8)
    effects, logits = comparators.direct_effects(vit, images)
    vit.cfg.use_attn_result = True
    try:
        _, cache = vit.run_with_cache(images.pixels_for(vit.preprocess).double())
    finally:
        vit.cfg.use_attn_result = False
    target, contrast = classes_of(logits, images.label_tensor)
    direction = vit.tokens_to_residual_directions(target) - vit.tokens_to_residual_directions(contrast)
    for layer in range(3):
        result = cache[f"blocks.{layer}.attn.hook_result"][:, 0]
        centred = (result - result.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"][:, 0, None]
        expected = (centred * direction[:, None]).sum(-1)
        testing.assert_close(effects[:, 4 * layer : 4 * layer + 4], expected, 1e-10, f"layer {layer}")


def test_direct_effect_of_a_model_without_a_last_norm():
    """ShortcutViT reads the stream as it is: nothing is centred or divided, and heads of the last layer say it all."""
    model, drawn = testing.shortcut_vit(), testing.shortcut_images(40)
    effects, logits = comparators.direct_effects(model, drawn.image_set())
    target, contrast = classes_of(logits, drawn.labels)
    rows = torch.arange(40)
    assert float(effects[:, 4].min()) > 0, "the object head speaks for the label"
    conflict = ~drawn.agree
    assert bool((effects[conflict, 5] < 0).all()), "the shortcut head speaks against it where they conflict"
    testing.assert_close(effects.sum(1), logits[rows, target] - logits[rows, contrast], 1e-10, "sum of heads")
    assert comparators.by_direct_effect(model, drawn.image_set())[0].name == "L1H1"


def test_a_distilled_model_is_refused():
    model = wrapped("deit-distilled")
    with pytest.raises(BadData, match=r"read-out from one token \(CLS\); Hugging Face DeiT reads 2 tokens"):
        comparators.direct_effects(model, some_images(3))


def test_locate_then_correct_by_hand():
    """Ten images, three heads. Head 0 is salient on 4 of 5 right images and 1 of 5 wrong ones; head 2 on 1 of 5 right
    and 4 of 5 wrong ones; head 1 never. Two heads count, so the bar is 1/2: w - c = 3/5 for head 2 only."""
    right = torch.tensor([True] * 5 + [False] * 5)
    salient = [0, 0, 0, 0, 2, 0, 2, 2, 2, 2]
    effects = torch.full((10, 3), 0.1)
    for image, head in enumerate(salient):
        effects[image, head] = 3.0
    effects[5:] *= -1  # wrong images: the head speaks against the label
    assert comparators.spurious(effects, right) == [2]
    # One image less: w - c = 3/5 - 1/5 = 2/5 is below the bar.
    effects[6] = -torch.tensor([3.0, 0.1, 0.1])
    assert comparators.spurious(effects, right) == []


def test_locate_then_correct_without_mistakes_finds_nothing():
    assert comparators.spurious(torch.rand(5, 3), torch.ones(5, dtype=torch.bool)) == []


def test_only_conflicting_images_are_used(monkeypatch):
    effects = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [-1.0, 0.0]])
    logits = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 3)  # labels are all 0: two right, three wrong
    monkeypatch.setattr(comparators, "direct_effects", lambda *a, **k: (effects, logits))
    images = some_images(1, n=5, groups=np.array(["conflicting", "x", "conflicting", "x", "x"]))
    model = wrapped("vit")
    conflicting = comparators.conflicting_images(images)
    assert conflicting.tolist() == [True, False, True, False, False]
    assert [u.name for u in comparators.locate_then_correct(model, images, conflicting)] == ["L0H1"]
    assert comparators.locate_then_correct(model, images) == []


def test_groups_that_do_not_say_what_conflicts():
    assert comparators.conflicting_images(some_images(2)) is None
    assert comparators.conflicting_images(some_images(2, groups=np.array(["land", "water"] * 3))) is None


def test_labels_of_another_model_are_refused(vit):
    images = some_images(3)
    images.labels[0] = 99
    with pytest.raises(OutOfRange, match="label 99 is outside the head's 8 classes"):
        comparators.direct_effects(vit, images)


def test_effects_of_many_batches_are_those_of_one(vit):
    images = some_images(3, n=9)
    whole, _ = comparators.direct_effects(vit, images)
    parts, _ = comparators.direct_effects(vit, images, batch_size=4)
    testing.assert_close(parts, whole, 1e-12, "batches")
    assert math.isfinite(float(whole.sum()))
