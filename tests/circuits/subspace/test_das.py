"""The training loop: gradients, settings, refusals; the soft mask of boundless DAS."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from circuits.subspace import BoundlessSettings, DasSettings, Drawer, interchange, label_variable, read_tail, train_das
from circuits.subspace.boundless import COLD, HOT, mask_of, temperature_at, train_boundless
from circuits.subspace.das import rows_of, start_at
from mechvis.errors import BadData, NotFinite, OutOfRange
from mechvis.testing import assert_close


@pytest.fixture
def tail():
    """Coordinate 0 is the variable and is read; the rest is noise."""
    h = torch.randn(80, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return read_tail(h, torch.eye(4, dtype=torch.float64)[:, :1] * torch.tensor([[5.0, -5.0]]), lambda out: out)


@pytest.fixture
def variable(tail):
    return label_variable(tail.clean.argmax(1))


def test_one_step_is_adam_on_the_loss_that_is_written(tail, variable):
    """Against a loop that is written out, and whose gradient comes from finite differences."""
    images, rate, penalty = torch.arange(80), 0.05, 0.3
    settings = DasSettings(steps=1, rate=rate, batch=16, penalty=penalty)
    found = train_das(tail, variable, images, k=1, seed=7, settings=settings)
    start = start_at(tail, 1, 7).detach()
    pairs = Drawer(images, seed=int(np.random.default_rng([7, 1]).integers(2**31))).draw(16)
    mean, covariance = tail.h.mean(0), torch.cov(tail.h.T)
    inverse = torch.linalg.inv(covariance + 0.01 * covariance.diagonal().mean() * torch.eye(4, dtype=torch.float64))

    def loss(free):
        changed = interchange(tail.h[pairs.base], tail.h[pairs.source], torch.linalg.qr(free).Q.T)
        away = changed - mean
        extra = penalty * ((away @ inverse) * away).sum(1).mean() / 4
        return F.cross_entropy(tail.logits_of(changed, pairs.base), variable.values[pairs.source]) + extra

    assert found.losses[0] == pytest.approx(float(loss(start)), rel=1e-6)
    gradient = torch.zeros_like(start)
    for i in range(4):
        step = torch.zeros_like(start)
        step[i] = 1e-6
        gradient[i] = (loss(start + step) - loss(start - step)) / 2e-6
    # The first step of Adam is the rate times the gradient's sign.
    expected = rows_of(start - rate * gradient / (gradient.abs() + 1e-8))
    assert_close((found.rows @ expected.T).abs(), torch.ones(1, 1, dtype=torch.float64), 1e-5)


def test_it_finds_what_is_read(tail, variable):
    found = train_das(tail, variable, torch.arange(80), k=1, settings=DasSettings(steps=300, rate=2e-2))
    assert abs(float(found.rows[0, 0])) > 0.9
    assert found.losses[-20:].mean() < 0.5 * found.losses[:5].mean()
    assert_close(found.rows @ found.rows.T, torch.eye(1, dtype=torch.float64), 1e-10)
    assert not found.rows.requires_grad and found.k == 1


def test_starts_differ_between_seeds(tail):
    starts = torch.cat([start_at(tail, 1, seed).detach() for seed in range(4)], dim=1)
    overlap = (starts.T @ starts - torch.eye(4, dtype=torch.float64)).abs()
    assert overlap.max() < 0.99


@pytest.mark.parametrize(
    "more", [{"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"penalty": -1.0}, {"penalty": float("inf")}]
)
def test_settings_that_cannot_be(more):
    with pytest.raises(OutOfRange, match="1 or more"):
        DasSettings(**more)


def test_boundless_settings_that_cannot_be():
    with pytest.raises(OutOfRange, match="rates above 0"):
        BoundlessSettings(boundary_rate=0.0)


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_fit(tail, variable, k):
    with pytest.raises(OutOfRange, match="between 1 and 4"):
        train_das(tail, variable, torch.arange(80), k=k)


def test_a_loss_that_is_not_finite_stops(variable, tail):
    def broken(rows):
        return torch.full_like(rows, float("nan"))

    bad = read_tail(tail.h, torch.eye(4, dtype=torch.float64)[:, :2], broken)
    with pytest.raises(NotFinite, match="step 0"):
        train_das(bad, variable, torch.arange(80), k=1)


def test_a_tail_without_gradient_is_refused(variable, tail):
    dead = read_tail(tail.h, torch.eye(4, dtype=torch.float64)[:, :2], lambda out: out.detach())
    with pytest.raises(BadData, match="does the tail detach it"):
        train_das(dead, variable, torch.arange(80), k=1)


# boundless


def test_the_mask_counts_coordinates():
    for boundary, count in ((0.25, 2), (0.5, 4), (1.0, 8)):
        mask = mask_of(torch.tensor(boundary, dtype=torch.float64), 0.01, 8)
        assert mask.round().sum() == count and bool((mask[:count] > 0.99).all())
    soft = mask_of(torch.tensor(0.5), HOT, 8)
    assert soft.max() < 0.3, "hot: nearly flat"


def test_the_temperature_falls_from_hot_to_cold():
    path = [temperature_at(step, 100) for step in range(100)]
    assert path[0] == HOT and path[-1] == pytest.approx(COLD)
    assert all(later < earlier for earlier, later in pairwise(path))


def test_boundless_finds_the_size_and_the_direction(tail, variable):
    settings = BoundlessSettings(steps=400, rate=1e-2, boundary_rate=2e-2)
    found = train_boundless(tail, variable, torch.arange(80), settings=settings)
    assert found.k == 1 and abs(float(found.rows[0, 0])) > 0.9
    assert len(found.boundaries) == 400 and found.boundary == found.boundaries[-1]
    assert 1e-3 <= found.boundaries.min() <= found.boundaries.max() <= 1.0
