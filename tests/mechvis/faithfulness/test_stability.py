"""Stability under small noise: against captum, by hand, and what is left out."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.faithfulness import (
    AverageSensitivity,
    LocalLipschitz,
    MaxSensitivity,
    RelativeInputStability,
    RelativeOutputStability,
    RelativeRepresentationStability,
)

EVERY = (AverageSensitivity, LocalLipschitz, MaxSensitivity, RelativeInputStability)


def pixels(n=6):
    return torch.rand(n, 3, 4, 6, generator=torch.Generator().manual_seed(0)).double() + 0.5


def explain(x):
    """A map of six patches that is no linear function."""
    return x.mean((1, 2)).sin() * x.sum((1, 2, 3))[:, None]


def test_max_sensitivity_is_captums():
    from captum.metrics import sensitivity_max

    one = MaxSensitivity(n=7, radius=0.1)
    noise = one.noise(pixels())  # [copy image ...]

    def perturb(inputs):
        return inputs + noise.transpose(0, 1).flatten(0, 1)  # captum repeats each image n times in a row

    theirs = sensitivity_max(
        lambda x: (explain(x[0] if isinstance(x, tuple) else x),),  # it takes rows of a tensor for inputs
        pixels(),
        perturb_func=perturb,
        n_perturb_samples=7,
        norm_ord="fro",
    )
    np.testing.assert_allclose(one.measure(pixels(), explain).values, theirs.numpy(), rtol=1e-9)


def test_all_ratios_by_a_plain_loop():
    x = pixels()
    for kind in EVERY:
        one = kind(n=5)
        found = one.measure(x, explain)
        for image in range(6):
            ratios = []
            for noise in one.noise(x):
                moved = (explain(x + noise) - explain(x))[image].norm()
                if kind is LocalLipschitz:
                    ratios.append(float(moved / noise[image].norm()))
                else:
                    ratio = moved / explain(x)[image].norm()
                    if kind is RelativeInputStability:
                        ratio = ratio / (noise[image].norm() / x[image].norm())
                    ratios.append(float(ratio))
            expected = np.mean(ratios) if kind is AverageSensitivity else max(ratios)
            assert found.values[image] == pytest.approx(expected, rel=1e-9)


def test_a_constant_map_is_perfectly_stable():
    """So stability is no evidence of faithfulness."""
    assert (MaxSensitivity().measure(pixels(), lambda x: torch.ones(len(x), 6)).values == 0).all()


def test_noise_stays_in_the_box_and_belongs_to_the_image():
    one = MaxSensitivity(n=40, radius=0.3)
    noise = one.noise(pixels())
    assert noise.abs().max() <= 0.3 and noise.abs().max() > 0.29 and noise.mean().abs() < 0.01
    assert torch.equal(one.noise(pixels()[2:3], ids=[2])[:, 0], noise[:, 2])
    assert not torch.equal(MaxSensitivity(n=40, radius=0.3, seed=1).noise(pixels()), noise)


def test_copies_that_are_predicted_differently_are_left_out():
    x = pixels()

    def predict(some):
        changed = (some - x).flatten(1).abs().sum(1) > 0
        return changed.long() * torch.tensor([0, 1, 0, 0, 0, 0])  # image 1 always changes

    found = MaxSensitivity(n=3).measure(x, explain, predict=predict)
    assert found.reasons == {"every disturbed copy is predicted differently": 1} and np.isnan(found.values[1])
    assert found.extra["copies"].tolist() == [3, 0, 3, 3, 3, 3]
    whole = MaxSensitivity(n=3).measure(x, explain)
    np.testing.assert_array_equal(found.values[[0, 2]], whole.values[[0, 2]])


def test_what_is_undefined_is_counted():
    zero = MaxSensitivity().measure(pixels(), lambda x: torch.zeros(len(x), 6))
    assert zero.reasons == {"the map is zero": 6}
    still = RelativeOutputStability().measure(pixels(), explain, read=lambda x: torch.ones(len(x), 2))
    assert still.reasons == {"what the change is divided by does not change": 6}
    black = RelativeInputStability().measure(pixels() * 0, lambda x: x.flatten(1)[:, :6] + 1)
    assert black.reasons == {"what the change is relative to is zero": 6}


def test_settings_and_inputs_that_cannot_be():
    with pytest.raises(OutOfRange, match="radius=0"):
        MaxSensitivity(radius=0).measure(pixels(), explain)
    with pytest.raises(ShapeMismatch, match="1 ids for 6 images"):
        MaxSensitivity().measure(pixels(), explain, ids=[0])
    for kind in (RelativeOutputStability, RelativeRepresentationStability):
        with pytest.raises(BadData, match="give read="):
            kind().measure(pixels(), explain)


def test_pixels_stay_as_they_are():
    x = pixels()
    before = x.clone()
    for kind in EVERY:
        kind(n=2).measure(x, explain)
    assert torch.equal(x, before)
