"""Both twins against torch's own Adam in float64, and rows that stay on the sphere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.kernels.adam_rows import adam_rows
from mechvis.testing import assert_close

LR, BETAS, EPS = 0.05, (0.9, 0.99), 1e-8


def case(n, width, *, seed=0, steps=4):
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, width, generator=g), dim=1)
    return rows, torch.randn(steps, n, width, generator=g)


def by_torch(rows, gradients, *, unit, factor):
    """torch.optim.Adam in float64, with projection and norm written out."""
    p = torch.nn.Parameter(rows.double().clone())
    adam = torch.optim.Adam([p], lr=LR, betas=BETAS, eps=EPS)
    for gradient in gradients.double():
        along = (gradient * p).sum(1, keepdim=True).detach()
        p.grad = (gradient - along * p.detach() if unit else gradient) * (1.0 if factor is None else factor)
        adam.step()
        if unit:
            with torch.no_grad():
                p.div_(p.norm(dim=1, keepdim=True))
    state = adam.state[p]
    return p.detach(), state["exp_avg"], state["exp_avg_sq"]


def by_twin(rows, gradients, device, *, unit, factor):
    rows, gradients = rows.to(device).clone(), gradients.to(device)
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    scale = None if factor is None else torch.tensor(factor, device=device)
    for count, gradient in enumerate(gradients, 1):
        along = (gradient * rows).sum(1) if unit else None
        adam_rows(
            rows, gradient.clone(), first, second, lr=LR, count=count, betas=BETAS, eps=EPS, along=along, factor=scale
        )
    return rows, first, second


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("factor", [None, 0.3])
@pytest.mark.parametrize("shape", [(3, 5), (7, 64), (2, 4100)], ids=str)
def test_both_twins_against_torch(twin, device, shape, factor, unit):
    found = by_twin(*case(*shape), device, unit=unit, factor=factor)
    for got, true in zip(found, by_torch(*case(*shape), unit=unit, factor=factor), strict=True):
        assert_close(got.double().cpu(), true, 2e-6)
    norms = found[0].norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6) == unit


@settings(max_examples=8)
@given(n=st.integers(1, 5), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_shape_for_both_twins(twin, device, n, width, seed):
    rows, gradients = case(n, width, seed=seed, steps=2)
    found = by_twin(rows, gradients, device, unit=False, factor=0.5)
    for got, true in zip(found, by_torch(rows, gradients, unit=False, factor=0.5), strict=True):
        assert_close(got.double().cpu(), true, 1e-5)


def test_layouts_of_the_gradient(twin, device):
    rows, gradients = case(4, 6, steps=1)
    expected = by_twin(rows, gradients, device, unit=True, factor=None)
    turned = gradients.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned[0].is_contiguous()
    for got, true in zip(by_twin(rows, turned, device, unit=True, factor=None), expected, strict=True):
        assert_close(got, true, 1e-6)


def test_a_row_of_zeros_and_nothing_to_do(twin, device):
    rows, gradients = (t.to(device) for t in case(3, 6, steps=1))
    rows[1], gradients[0, 1] = 0.0, 0.0
    moments = torch.zeros(2, 3, 6, device=device)
    adam_rows(rows, gradients[0], *moments, lr=LR, count=1, along=(rows * gradients[0]).sum(1))
    assert (rows[1] == 0).all() and torch.isfinite(rows).all()
    empty = torch.zeros(0, 6, device=device)
    adam_rows(empty, empty, empty, empty, lr=LR, count=1)


def test_the_same_bits_twice(twin, device):
    one, two = (by_twin(*case(9, 33), device, unit=True, factor=0.7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_is_refused(twin, device):
    rows, gradients = (t.to(device) for t in case(4, 6, steps=1))
    moments = torch.zeros(2, 4, 6, device=device)
    good = (rows, gradients[0], *moments)
    refused = pytest.raises((ShapeMismatch, TypeCheckError), match=r"adam_rows takes|Type-check")
    with refused:
        adam_rows(rows[:2], *good[1:], lr=LR, count=1)
    with refused:
        adam_rows(*good, lr=LR, count=1, along=rows[:2, 0])
    with pytest.raises(ShapeMismatch, match="give contiguous ones"):
        adam_rows(rows.T.contiguous().T, *good[1:], lr=LR, count=1)
    with pytest.raises(OutOfRange, match="step 0; the first one is 1"):
        adam_rows(*good, lr=LR, count=0)
