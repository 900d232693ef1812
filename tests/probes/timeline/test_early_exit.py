"""Leaving early: the running program's twin, and that compute counts anchor l* + k."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.testing import shortcut_images, shortcut_vit
from probes.timeline import decision_layer, exit_curve, exits, fell_back
from probes.timeline.early_exit import anchor_cost, exits_plain


@given(st.integers(2, 8), st.integers(1, 4), st.floats(0, 1), st.integers(0, 10_000))
def test_as_a_running_program_would(anchors, k, p, seed):
    rng = np.random.default_rng(seed)
    predictions, confidence = rng.integers(0, 2, (7, anchors)), rng.random((7, anchors))
    k = min(k, anchors - 1)
    for mine, theirs in zip(
        exits(predictions, confidence, k=k, p=p), exits_plain(predictions, confidence, k=k, p=p), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_what_was_computed_is_k_anchors_further():
    predictions = np.random.default_rng(0).integers(0, 3, (200, 9))
    where, answers = exits(predictions, np.ones((200, 9)), k=2)
    layers, never = decision_layer(predictions, 2), fell_back(predictions, 2)
    np.testing.assert_array_equal(where[~never], layers[~never] + 2)
    assert (where[never] == 8).all() and (answers[never] == predictions[never, -1]).all()


def test_curve_by_hand():
    """Four images, five anchors of cost 1 to 5: two leave at anchor 1 (one of them wrongly), one at 4, one never."""
    predictions = np.array([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1], [0, 1, 0, 1, 0]])
    confidence = np.tile([0.3, 0.6, 0.9, 0.9, 0.9], (4, 1))
    labels = np.array([0, 0, 1, 0])
    rows = exit_curve(predictions, confidence, labels, np.arange(1.0, 6.0), k=1, confidences=(0.0, 0.9), resamples=50)
    first, sure, full = rows
    assert first["cost"] == pytest.approx((2 + 2 + 5 + 5) / 4 / 5) and first["accuracy"] == 0.75
    assert sure["cost"] == pytest.approx((3 + 4 + 5 + 5) / 4 / 5) and sure["accuracy"] == 1.0
    assert full["cost"] == 1.0 and full["accuracy"] == 1.0 and full["loss"] == 0
    assert first["loss"] == 0.25 and first["left_early"] == 0.5 and full["p"] is None and first["n"] == 4


def test_cost_is_counted_and_rises():
    model, pixels = shortcut_vit(), shortcut_images(1).pixels
    sites = ["hook_embed", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    flops = anchor_cost(model, pixels, sites, classes=3, width=14)
    assert (np.diff(flops) > 0).all()
    seconds = anchor_cost(model, pixels, sites, classes=3, width=14, unit="seconds")
    assert seconds[0] > 0 and (np.diff(seconds) >= 0).all()


def test_attention_is_counted():
    """Products of queries, keys and values are compute, whatever kernel does them."""
    import mechvis
    from mechvis.testing import tiny, tiny_preprocess

    model = mechvis.load(tiny("vit"), preprocess=tiny_preprocess())
    tokens, d = model.parts.n_tokens, model.parts.d_model
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid"]
    pixels = torch.zeros(1, 3, *model.parts.image_size)
    before, after = anchor_cost(model, pixels, sites, classes=2, width=d) - 4 * d * np.array([1, 2])
    assert after - before == 2 * 4 * tokens * d * d + 2 * 2 * tokens * tokens * d


def test_bad_input():
    predictions = np.zeros((2, 3), int)
    with pytest.raises(ShapeMismatch, match=r"are \[image anchor\]"):
        exits(predictions, np.ones((2, 2)))
    with pytest.raises(OutOfRange, match="k of 1 to 2"):
        exits(predictions, np.ones((2, 3)), k=3)
    with pytest.raises(ShapeMismatch, match="one rising number per anchor"):
        exit_curve(predictions, np.ones((2, 3)), np.zeros(2, int), np.array([1.0, 3.0, 2.0]))
