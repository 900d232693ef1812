"""Distances from natural activations, and the part of a space that is read: against other implementations."""

import pytest
import torch

import mechvis
from circuits.subspace import Manifold, Tail, effective_row_space, linear_row_space, read_tail, site_tail
from circuits.subspace.manifold import SHRINK, percentiles
from circuits.subspace.row_space import jacobian_gram, row_space_of
from mechvis import testing
from mechvis.errors import BadData, OutOfRange
from mechvis.testing import assert_close


def test_mahalanobis_by_hand():
    h = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h[:, 3] = 0
    found = Manifold.of(h)
    covariance = torch.cov(h.T)
    shrunk = covariance + SHRINK * covariance.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    away = h - h.mean(0)
    expected = (away @ torch.linalg.inv(shrunk) * away).sum(1)
    assert_close(found.squared_distance(h), expected, 1e-8)
    assert found.mean_variance == pytest.approx(float(covariance.diagonal().mean()))
    eye = torch.eye(4, dtype=torch.float64)
    assert found.variance(eye[:1]) == pytest.approx(float(h[:, 0].var()))
    assert found.variance(eye[3:]) == 0.0


def test_neighbours_equal_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    h = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Manifold.of(h)
    white = ((h - found.mean) @ found.whiten).numpy()
    distance = NearestNeighbors(n_neighbors=5).fit(white).kneighbors(white[:7])[0][:, -1]
    assert_close(found.neighbours(h[:7]), torch.from_numpy(distance**2), 1e-8)


def test_percentiles_and_refusals():
    natural = torch.arange(10.0)
    assert percentiles(torch.tensor([-1.0, 4.0, 20.0]), natural).tolist() == pytest.approx([0.0, 0.45, 1.0])
    with pytest.raises(BadData, match="without any variance"):
        Manifold.of(torch.ones(5, 2))
    with pytest.raises(BadData, match="no direction"):
        Manifold.of(torch.randn(5, 2)).variance(torch.zeros(0, 2))


def test_linear_row_space():
    read = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = linear_row_space(read)
    assert found.rank == 2 and not found.everything and found.exact
    assert_close(
        found.project(torch.eye(3, dtype=torch.float64)), torch.diag(torch.tensor([1.0, 0, 1]).double()), 1e-10
    )
    with pytest.raises(BadData, match="zero: nothing of the hook is read"):
        linear_row_space(torch.zeros(3, 2))


def nonlinear(n=40, width=5, out=3):
    """Reads three directions through a tanh."""
    generator = torch.Generator().manual_seed(2)
    h, read = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, width), (width, out)))
    tail = read_tail(h, read, torch.tanh)
    return Tail(name="tanh", h=h, logits_of=tail.logits_of, reads_of=tail.logits_of), read


def test_gram_equals_stacked_jacobians():
    tail, read = nonlinear()
    images = torch.arange(40)
    gram, exact = jacobian_gram(tail, images)
    stacked = torch.stack(
        [torch.autograd.functional.jacobian(lambda x, i=i: torch.tanh(x @ read), tail.h[i]) for i in range(40)]
    )
    assert exact
    assert_close(gram, torch.einsum("ioa,iob->ab", stacked, stacked) / 40, 1e-10)
    found = effective_row_space(tail, images, energy=1.0)
    assert found.rank == 3
    assert_close(found.project(linear_row_space(read).basis), linear_row_space(read).basis, 1e-8)


def test_random_products_estimate_the_same():
    tail, _ = nonlinear(n=400)
    images = torch.arange(400)
    exact, _ = jacobian_gram(tail, images)
    sampled, is_exact = jacobian_gram(tail, images, limit=0)
    assert not is_exact
    assert float((sampled - exact).norm() / exact.norm()) < 0.15


def test_a_linear_read_that_sees_everything_gives_way_to_the_effective_one():
    h = torch.randn(20, 3, dtype=torch.float64)
    wide = torch.randn(3, 6, dtype=torch.float64)
    narrow = torch.diag(torch.tensor([1.0, 1.0, 1e-6], dtype=torch.float64))
    base = read_tail(h, wide, lambda out: out)
    tail = Tail(name="x", h=h, logits_of=base.logits_of, read=wide, reads_of=lambda rows, images: rows @ narrow)
    found = row_space_of(tail, torch.arange(20))
    assert found.rank == 2 and not found.exact and "effective" in found.how
    assert row_space_of(Tail(name="x", h=h, logits_of=base.logits_of), torch.arange(20)) is None


def test_of_a_vit_equals_autograd():
    model = mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    tail = site_tail(model, pixels, f"blocks.{len(model.parts.blocks) - 1}.hook_resid_post")
    gram, exact = jacobian_gram(tail, torch.arange(3))
    stacked = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda x, i=i: tail.logits_of(x[None], torch.tensor([i]))[0], tail.h[i])
            for i in range(3)
        ]
    )
    assert exact, "behind the last block the logits are what is read"
    assert_close(gram, torch.einsum("ioa,iob->ab", stacked, stacked) / 3, 1e-9)


def test_refusals():
    h = torch.randn(6, 3)
    silent = read_tail(h, torch.zeros(3, 2), lambda out: out)
    with pytest.raises(BadData, match="the Jacobians are zero"):
        effective_row_space(silent, torch.arange(6))
    with pytest.raises(BadData, match="does not say what is read"):
        jacobian_gram(Tail(name="x", h=h, logits_of=silent.logits_of), torch.arange(6))
    with pytest.raises(OutOfRange, match="energy=0"):
        effective_row_space(silent, torch.arange(6), energy=0.0)
