"""The interchange: full rank is the full swap, no rows change nothing, and what is no subspace is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits.subspace import interchange, orthonormal, random_rows
from circuits.subspace.interchange import checked_rows
from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.testing import assert_close

WIDTH = 6


def activations(seed, n=5):
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_full_rank_is_the_full_swap_and_no_rows_are_no_edit():
    base, source = activations(0), activations(1)
    every = random_rows(WIDTH, WIDTH, 3, like=base)
    assert_close(interchange(base, source, every), source, 1e-12)
    assert torch.equal(interchange(base, source, base[:0]), base)


@given(k=st.integers(1, WIDTH - 1), seed=st.integers(0, 1000))
def test_the_subspace_comes_from_the_source_and_the_rest_stays(k, seed):
    base, source = activations(seed), activations(seed + 1)
    rows = random_rows(WIDTH, k, seed, like=base)
    changed = interchange(base, source, rows)
    assert_close(changed @ rows.T, source @ rows.T, 1e-10, "inside")
    rest = torch.eye(WIDTH, dtype=torch.float64) - rows.T @ rows
    assert_close(changed @ rest, base @ rest, 1e-10, "outside")


def test_the_span_counts_not_the_basis():
    base, source = activations(0), activations(1)
    rows = random_rows(WIDTH, 2, 0, like=base)
    turned = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64) @ rows
    assert_close(interchange(base, source, turned), interchange(base, source, rows), 1e-12)


def test_orthonormal_rows_of_dependent_directions():
    rows = orthonormal(torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 3.0, 4.0]]))
    assert rows.shape == (2, 3)
    assert_close(rows @ rows.T, torch.eye(2), 1e-6)
    assert_close(rows[0].abs(), torch.tensor([0.0, 0.6, 0.8]), 1e-6, "largest first")
    assert orthonormal(torch.zeros(2, 3)).shape == (0, 3)
    assert orthonormal(1e-9 * torch.eye(3), at_least=1e-3).shape == (0, 3)


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (torch.eye(3), ShapeMismatch, r"orthonormal rows \[k 6\]"),
        (torch.randn(7, 6), ShapeMismatch, "at most 6"),
        (2 * torch.eye(6)[:2], ShapeMismatch, "differs from the identity by 3"),
        (torch.full((1, 6), float("nan")), NotFinite, "NaN"),
    ],
)
def test_what_is_no_subspace_is_refused(rows, error, text):
    with pytest.raises(error, match=text):
        checked_rows(rows, WIDTH)


def test_orthonormal_refuses_nan_and_other_shapes():
    with pytest.raises(NotFinite, match="NaN or Inf"):
        orthonormal(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ShapeMismatch, match="direction width"):
        orthonormal(torch.zeros(2, 2, 2))
