"""Suite A: which head and which patch matter is a theorem, and exact methods find it."""

import numpy as np
import pytest
import torch

from mechvis.testing import evidence
from mechvis.testing.evidence.wired import wired, wired_images


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", ["wired", "wired_loud"])
def test_the_logit_is_the_brightness_of_the_planted_patch(variant, seed):
    made = wired(variant, seed)
    pixels = wired_images(40, seed)
    brightness = pixels[:, 0, ::4, ::4].flatten(1)
    with torch.no_grad():
        logits = made.model(pixels).logits[:, 0]
    torch.testing.assert_close(
        logits, 0.75 * brightness[:, made.patch], atol=3e-4 if variant == "wired" else 2e-3, rtol=0
    )


def test_seeds_move_the_head_and_the_patch():
    made = [wired("wired", seed) for seed in range(12)]
    assert len({one.patch for one in made}) > 3
    assert len({int(np.flatnonzero(one.heads)[0]) for one in made}) == 4
    assert all(one.heads[0].sum() == 1 and not one.heads[1].any() for one in made)
    assert all(one.patch not in one.decoys for one in made)


@pytest.mark.parametrize("edit", ["zero", "mean_positional", "resample"])
@pytest.mark.parametrize("variant", ["wired", "wired_loud"])
def test_the_planted_head_has_a_thousand_times_the_effect(variant, edit):
    planted = evidence.load(variant, 1)
    effects = evidence.head_effects(planted.model, planted.ask(64).pixels, edit)
    assert float(effects[planted.heads].min() / effects[~planted.heads].max()) >= 1000


def test_with_a_small_pin_the_loud_heads_leak():
    """The control that must fail: the pin is what makes the ratio."""
    import mechvis
    from mechvis.testing import tiny_preprocess

    made = wired("wired_loud", 1, pin=32.0)
    model = mechvis.load(made.model, preprocess=tiny_preprocess())
    effects = evidence.head_effects(model, wired_images(32), "zero")
    assert float(effects[made.heads].min() / effects[~made.heads].max()) < 1000


def test_exact_methods_find_the_patch_and_rollout_does_not():
    found = evidence.table_of(["occlusion", "input_ig", "rollout"], "A", n=16).table
    exact = found.filter(found["method"] != "rollout")
    assert exact["auroc"].to_list() == [1.0] * 4 and exact["hit"].to_list() == [1.0] * 4
    assert max(found.filter(found["method"] == "rollout")["hit"].to_list()) < 0.5
