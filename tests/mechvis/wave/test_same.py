"""Rounding is told from another answer."""

import pytest
import torch

from mechvis.wave.same import TOLERANCE, deviation, same


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rounding_is_the_same_and_a_little_more_is_not(dtype):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 96, generator=g).double(), torch.randn(96, 40, generator=g).double()
    exact, rounded = x @ weight, x.to(dtype) @ weight.to(dtype)
    assert same(rounded if dtype == torch.float64 else exact.to(dtype), rounded)
    other = rounded.clone()
    other[3, 7] += 3 * TOLERANCE[dtype] * rounded.abs().max()
    assert not same(other, rounded)


def test_what_is_never_the_same():
    ones = torch.ones(2, 3)
    assert same(ones, ones)
    assert same(ones * 0, ones * 0)
    assert not same(ones, ones[:1])
    assert not same(ones * torch.nan, ones)
    assert not same(ones, ones * torch.nan)
    assert not same(ones, ones * 0)
    assert deviation(2 * ones, ones) == 1
