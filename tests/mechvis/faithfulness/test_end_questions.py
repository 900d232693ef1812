"""What a feature attribution cannot tell, asked directly (methods2.md 20.4)."""

import math

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from mechvis.faithfulness import SignAgreement, additive, local_effect, recourse, samples_needed, uses_feature
from mechvis.testing.patch_game import PatchGame

HERE = torch.tensor([True])
ONE = torch.tensor([1.0]).double()


def first(x):
    return x[:, 0]


def second(x):
    """The same integrated gradient from 0 to 1, and the opposite slope at 1."""
    return x[:, 0] + 4 * torch.sin(math.pi * x[:, 0]) / math.pi


def integrated_gradient(f, steps=2000):
    points = ((torch.arange(steps) + 0.5) / steps).double()[:, None].requires_grad_(True)
    (gradient,) = torch.autograd.grad(f(points).sum(), points)
    return float(gradient.mean())


def test_equal_attributions_and_opposite_answers():
    assert integrated_gradient(first) == pytest.approx(1) and integrated_gradient(second) == pytest.approx(1, abs=1e-6)
    step = torch.tensor([0.1])
    assert local_effect(first, ONE, HERE, step).effect == pytest.approx(0.100)
    assert local_effect(second, ONE, HERE, step).effect == pytest.approx(-0.293, abs=5e-4)


def test_intervals_over_changes():
    changes = 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    found = local_effect(lambda x: 3 * x[:, 0], ONE, HERE, changes)
    assert found.n == 400 and found.low < 0 < found.high
    assert found.effect == pytest.approx(3 * float(changes.mean()), abs=1e-6)
    up = local_effect(lambda x: 3 * x[:, 0], ONE, HERE, changes.abs())
    assert up.low > 0


def test_recourse_takes_the_smallest_change_that_flips():
    decide = lambda x: (x[:, 0] > 2).long()  # noqa: E731
    assert recourse(decide, ONE, HERE, torch.tensor([0.5, 3.0, -9.0, 1.5])) == 1.5
    assert recourse(decide, ONE, HERE, torch.tensor([0.5, -9.0])) is None


def test_a_region_that_is_used_and_one_that_is_not():
    x = torch.zeros(6, 6).double()
    others = torch.randn(16, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    used = torch.zeros(6, 6).bool()
    used[:2, :2] = True

    def f(rows):
        return rows[:, :2, :2].sum((1, 2))

    beside = torch.zeros(6, 6).bool()
    beside[4:, 4:] = True
    found, not_used = (uses_feature(f, x, region, others) for region in (used, beside))
    assert found.p == pytest.approx(0.01) and found.change > 1 and len(found.others) == 99
    assert not_used.change == 0 and not_used.p == 1.0
    given = uses_feature(f, x, used, others, regions=torch.stack([beside, used.roll(3, 0)]))
    assert given.p == pytest.approx(1 / 3) and given.others.tolist() == [0, 0]
    again = uses_feature(f, x, used, others)
    np.testing.assert_array_equal(again.others, found.others)


def test_how_many_samples():
    assert samples_needed(4.0, 0.1) == math.ceil(1.96**2 * 400)
    with pytest.raises(OutOfRange, match="error=0"):
        samples_needed(1.0, 0)


def test_what_cannot_be_asked():
    with pytest.raises(ShapeMismatch, match="`where` is boolean"):
        local_effect(first, ONE, torch.tensor([1.0]), torch.tensor([1.0]))
    with pytest.raises(BadData, match="nothing changes"):
        local_effect(first, ONE, torch.tensor([False]), torch.tensor([1.0]))
    with pytest.raises(NotFinite):
        local_effect(lambda x: x[:, 0].log(), ONE, HERE, torch.tensor([-5.0]))
    x, others = torch.zeros(4), torch.zeros(2, 4)
    with pytest.raises(BadData, match="the region is empty"):
        uses_feature(first, x, torch.zeros(4).bool(), others)
    with pytest.raises(ShapeMismatch, match="have to fit x"):
        uses_feature(first, x, torch.ones(3).bool(), others)
    with pytest.raises(ShapeMismatch, match="1 entries each"):
        uses_feature(first, x, torch.tensor([True, False, False, False]), others, regions=torch.ones(2, 4).bool())


def test_signs_of_the_largest_values():
    weights = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    assert (SignAgreement(k=5).measure(weights, additive(weights)).values == 1).all()
    assert (SignAgreement(k=5).measure(-weights, additive(weights)).values == 0).all()
    noise = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    assert abs(SignAgreement(k=5).measure(noise, additive(weights)).values.mean() - 0.5) < 0.15
    zero = SignAgreement().measure(torch.zeros(1, 9), PatchGame())
    assert zero.reasons == {"the map is zero": 1}
