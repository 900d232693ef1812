"""Hard-concrete gates against their distribution, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from circuits.search.hard_concrete import STRETCH, TEMPERATURE, discrete, noise, sampled, settled
from mechvis import testing

LOW, HIGH = STRETCH


def draws(log_alpha, n=200_000, seed=0):
    alphas = torch.tensor([log_alpha], dtype=torch.float64)
    drawn = noise((n, 1), torch.Generator().manual_seed(seed), alphas)
    return sampled(alphas, drawn)[:, 0]


def at_least(gate, log_alpha):
    """P(z > gate): s > (gate - low) / (high - low), where logit(u) > T logit(that) - log_alpha."""
    s = (gate - LOW) / (HIGH - LOW)
    return 1 / (1 + math.exp(TEMPERATURE * math.log(s / (1 - s)) - log_alpha))


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_distribution(log_alpha):
    z = draws(log_alpha)
    assert z.min() >= 0 and z.max() <= 1
    for gate in (0.0, 0.25, 0.9):
        expected = at_least(gate, log_alpha)
        assert float((z > gate).double().mean()) == pytest.approx(expected, abs=0.005)
    closed, opened = 1 - at_least(0.0, log_alpha), at_least(1.0, log_alpha)
    assert float((z == 0).double().mean()) == pytest.approx(closed, abs=0.005) and closed > 0.03
    assert float((z == 1).double().mean()) == pytest.approx(opened, abs=0.005) and opened > 0.01
    grid = np.linspace(0, 1, 2001)
    mean = np.trapezoid([at_least(gate, log_alpha) for gate in grid], grid)
    assert float(z.mean()) == pytest.approx(mean, abs=0.005)


def test_constants_are_those_of_the_source():
    assert TEMPERATURE == 2 / 3 and STRETCH == (-0.1, 1.1)


def test_without_noise():
    alphas = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0], dtype=torch.float64)
    by_hand = [min(1.0, max(0.0, -0.1 + 1.2 / (1 + math.exp(-value)))) for value in alphas.tolist()]
    np.testing.assert_allclose(settled(alphas), by_hand, rtol=1e-12)
    assert settled(alphas)[0] == 0 and settled(alphas)[-1] == 1


def test_gradient():
    alphas = torch.tensor([-1.0, 0.2, 0.7], dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([[0.3, 0.6, 0.5], [0.9, 0.2, 0.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: sampled(a, drawn), [alphas])
    (gradient,) = torch.autograd.grad(sampled(alphas + 30, drawn).sum(), alphas)
    assert gradient[0] == 0, "a gate that is clamped has no gradient"


def test_noise_is_the_generators_alone():
    like = torch.zeros(1, dtype=torch.float32)
    with testing.assert_untouched(torch.nn.Linear(1, 1)):
        one = noise((3, 4), torch.Generator().manual_seed(5), like)
        other = noise((3, 4), torch.Generator().manual_seed(5), like)
    assert one.dtype == torch.float32 and torch.equal(one, other) and one.min() > 0 and one.max() < 1
    assert not torch.equal(one, noise((3, 4), torch.Generator().manual_seed(6), like))


@pytest.mark.parametrize("seed", range(5))
def test_as_many_stay_as_the_soft_gates_say(seed):
    alphas = torch.from_numpy(np.random.default_rng(seed).normal(scale=3, size=101))
    kept = discrete(alphas, settled(alphas))
    wanted = float(settled(alphas).sum())
    assert abs(int(kept.sum()) - wanted) <= 0.5
    best = alphas.argsort(descending=True)[: int(kept.sum())]  # the plain twin: sort and count
    assert set(kept.nonzero()[:, 0].tolist()) == set(best.tolist())


def test_ties_go_together():
    alphas = torch.tensor([2.0, -4.0, -4.0, -4.0, -4.0])
    assert discrete(alphas, torch.tensor([1.0, 0.3, 0.3, 0.3, 0.3])).tolist() == [True, False, False, False, False]
    assert discrete(alphas, torch.tensor([1.0, 0.8, 0.8, 0.8, 0.8])).tolist() == [True] * 5
    assert not discrete(torch.zeros(3), torch.zeros(3)).any() and discrete(torch.zeros(3), torch.ones(3)).all()
