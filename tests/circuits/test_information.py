"""Divergences, views and gains against numbers that can be computed by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits.information import (
    FLAT,
    WITHOUT_CONTEXT,
    WITHOUT_OBJECT,
    background_influence_ratio,
    fill_of,
    information,
    mean_of_ratios,
    three_views,
)
from mechvis import testing
from mechvis.errors import ShapeMismatch, UnknownName
from mechvis.metrics import jensen_shannon

LN2 = math.log(2)


def distributions(seed, n=5, classes=4, sharpness=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(-1)


def test_jensen_shannon_by_hand():
    # m = (5/8, 3/8); KL(p|m) = ln(8/5); KL(q|m) = 1/4 ln(2/5) + 3/4 ln 2
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])
    expected = 0.5 * math.log(8 / 5) + 0.5 * (0.25 * math.log(2 / 5) + 0.75 * math.log(2))
    assert float(jensen_shannon(p, q)) == pytest.approx(expected, abs=1e-12)


def test_jensen_shannon_of_disjoint_and_equal():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert float(jensen_shannon(p, p.flip(0))) == pytest.approx(LN2, abs=1e-12)
    assert float(jensen_shannon(p, p)) == 0.0


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_jensen_shannon_is_symmetric_and_bounded(seed, sharpness):
    p, q = distributions(seed, sharpness=sharpness), distributions(seed + 1, sharpness=sharpness)
    forward, backward = jensen_shannon(p, q), jensen_shannon(q, p)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-14)
    assert bool((forward >= 0).all()) and bool((forward <= LN2 + 1e-12).all())
    assert bool((jensen_shannon(p, p) == 0).all())


def test_views_take_the_right_pixels():
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.float64).reshape(2, 3, 4, 4)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :, 3] = True, True
    original, object_only, context_only = three_views(pixels, masks, "mean")
    assert torch.equal(original, pixels)
    colour = pixels.mean((-2, -1))
    for image in range(2):
        on = masks[image]
        assert torch.equal(object_only[image][:, on], pixels[image][:, on])
        assert torch.equal(context_only[image][:, ~on], pixels[image][:, ~on])
        assert (object_only[image][:, ~on] == colour[image][:, None]).all()
        assert (context_only[image][:, on] == colour[image][:, None]).all()


def test_zero_fill_is_what_the_fixture_calls_removed():
    images = testing.shortcut_images(8)
    views = three_views(images.pixels, images.masks, "zero")
    assert torch.equal(views[WITHOUT_CONTEXT], images.without_context)
    assert torch.equal(views[WITHOUT_OBJECT], images.without_object)


def test_blur_keeps_what_is_flat_and_flattens_what_is_not():
    flat = torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64)
    torch.testing.assert_close(fill_of(flat, "blur"), flat)
    stripes = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    stripes[..., ::2] = 1.0
    blurred = fill_of(stripes, "blur")
    assert blurred.shape == stripes.shape
    assert float((blurred - 0.5).abs().max()) < 0.1


@given(st.sampled_from(["mean", "blur", "zero"]), st.integers(1, 9), st.integers(1, 9))
def test_fills_of_any_size_are_finite_and_inside_the_range(fill, height, width):
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 10 + width))
    filled = fill_of(pixels, fill)
    assert filled.shape == pixels.shape and bool(torch.isfinite(filled).all())
    low, high = min(float(pixels.min()), 0.0), max(float(pixels.max()), 0.0)
    assert low - 1e-5 <= float(filled.min()) and float(filled.max()) <= high + 1e-5


def test_an_unknown_fill_names_the_nearest():
    with pytest.raises(UnknownName, match=r"'bluur'.*blur"):
        fill_of(torch.zeros(1, 3, 4, 4), "bluur")


def test_masks_of_another_size_are_refused():
    with pytest.raises(ShapeMismatch, match=r"masks of shape \[1, 4, 5\] do not fit pixels \[1, 3, 4, 4\]"):
        three_views(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.bool))


def test_gains_of_a_hand_made_model():
    """Two images, two classes. Image 0 is decided by its context, image 1 by its object."""
    log = torch.log
    sure, unsure = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    original = torch.stack([sure, sure])
    without_context, without_object = torch.stack([unsure, sure]), torch.stack([sure, unsure])
    found = information(log(torch.stack([original, without_context, without_object])), torch.tensor([0, 1]))

    def entropy(p):
        return -sum(x * math.log(x) for x in p)

    gain = entropy((0.7, 0.3)) - (entropy((0.9, 0.1)) + entropy((0.5, 0.5))) / 2
    assert found.big.tolist() == pytest.approx([gain, 0.0], abs=1e-12)
    assert found.fig.tolist() == pytest.approx([0.0, gain], abs=1e-12)
    assert found.correct.tolist() == [1.0, 0.0]
    big, fig = found.big.numpy(), found.fig.numpy()
    assert background_influence_ratio(big, fig) == pytest.approx(0.5)
    assert background_influence_ratio(big[:1], fig[:1]) == pytest.approx(1.0)
    assert background_influence_ratio(big[1:], fig[1:]) == pytest.approx(0.0)


def test_answers_come_from_their_own_view():
    logits = torch.zeros(3, 1, 3)
    for view, answer in enumerate((0, 1, 2)):
        logits[view, 0, answer] = 1.0
    rows = [information(logits, torch.tensor([label])) for label in range(3)]
    assert [(float(r.correct), float(r.object_only), float(r.context_only)) for r in rows] == [
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 1.0),
    ]


def test_temperature_divides_the_logits():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(5, dtype=torch.int64)
    warm, scaled = information(logits, labels, tau=5.0), information(logits / 5, labels)
    torch.testing.assert_close(warm.big, scaled.big, rtol=1e-5, atol=1e-9)
    assert bool((warm.big < information(logits, labels).big).all())


def test_leading_axes_are_rows():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(7, 3, 5, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0])
    together = information(logits, labels)
    for row in range(7):
        alone = information(logits[row], labels)
        for name in ("big", "fig", "correct", "object_only", "context_only"):
            assert torch.equal(getattr(together, name)[row], getattr(alone, name))


def test_saturated_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]], [[1e4, -1e4]]])
    found = information(logits, torch.tensor([0]))
    assert float(found.big) == pytest.approx(LN2) and float(found.fig) == 0.0


def test_ratio_without_any_influence_is_not_a_number():
    assert math.isnan(background_influence_ratio(np.zeros(3), np.zeros(3)))
    ratio, dropped = mean_of_ratios(np.zeros(3), np.zeros(3))
    assert math.isnan(ratio) and dropped == 3


def test_mean_of_ratios_drops_and_counts_images_without_influence():
    big = np.array([0.3, 0.0, FLAT / 4, FLAT])
    fig = np.array([0.1, 0.2, FLAT / 4, 0.0])
    ratio, dropped = mean_of_ratios(big, fig)
    assert dropped == 1
    assert ratio == pytest.approx((0.75 + 0.0 + 1.0) / 3)


@given(st.lists(st.tuples(st.floats(0, LN2), st.floats(0, LN2)), min_size=1, max_size=20))
def test_ratios_lie_between_zero_and_one(pairs):
    big, fig = (np.array(column) for column in zip(*pairs, strict=True))
    ratio = background_influence_ratio(big, fig)
    assert math.isnan(ratio) if (big + fig).sum() == 0 else 0 <= ratio <= 1
    mean, dropped = mean_of_ratios(big, fig)
    assert 0 <= dropped <= len(pairs)
    assert math.isnan(mean) if dropped == len(pairs) else 0 <= mean <= 1
