"""Both twins of the sparse decoder against a dense product in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import ShapeMismatch
from mechvis.kernels.sparse_decode import naive, sparse_decode
from mechvis.kernels.support import Support
from mechvis.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def case(rows, n, d, *, density=0.3, seed=0, device="cpu"):
    """A support with empty rows and latents among others, values, and a weight."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, n, generator=g) < density
    mask[rows // 2 :: 3], mask[:, n // 2 :: 4] = False, False
    support = Support.from_mask(mask.to(device))
    return torch.randn(len(support), generator=g).to(device), support, torch.randn(n, d, generator=g).to(device)


def dense(values, support, weight):
    return support.dense(values.double()) @ weight.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 33, 5), (4, 19, 300), (1, 1, 1)], ids=str)
def test_both_twins(twin, device, shape, dtype):
    values, support, weight = case(*shape, density=0.9 if shape[0] == 1 else 0.3, device=device)
    values, weight = values.to(dtype), weight.to(dtype)
    found = sparse_decode(values, support, weight)
    # The sums of narrow types are taken in float32, so the only rounding that counts is that of the inputs.
    assert found.dtype == torch.float32
    assert_close(found.double(), dense(values, support, weight), 1e-6)


@settings(max_examples=10)
@given(rows=st.integers(0, 5), n=st.integers(1, 40), d=st.integers(0, 9), seed=st.integers(0, 99))
def test_any_shape(twin, device, rows, n, d, seed):
    values, support, weight = case(rows, n, d, seed=seed, device=device)
    found = sparse_decode(values, support, weight)
    size = dense(values.abs(), support, weight.abs())
    assert found.shape == (rows, d)
    assert ((found.double() - dense(values, support, weight)).abs() <= 1e-6 * size).all()


def test_float64_stays_and_mixed_types_widen():
    values, support, weight = case(5, 20, 6)
    found = naive.sparse_decode(values.double(), support, weight.double())
    assert found.dtype == torch.float64
    assert_close(found, dense(values, support, weight), 1e-14)
    assert sparse_decode(values, support, weight.bfloat16()).dtype == torch.float32


def test_rows_without_entries_are_zero_and_doubled_entries_count_twice(twin, device):
    support = Support(
        offsets=torch.tensor([0, 0, 2, 2], device=device), latents=torch.tensor([1, 1], device=device),
        rows=torch.tensor([1, 1], device=device), n_latents=2,
    )  # fmt: skip
    found = sparse_decode(torch.tensor([1.0, 2.0], device=device), support, torch.tensor([[5.0], [7.0]], device=device))
    assert found.tolist() == [[0.0], [21.0], [0.0]]


def test_layouts(twin, device):
    values, support, weight = case(5, 20, 6, device=device)
    expected = sparse_decode(values, support, weight)
    for odd in (weight.mT.contiguous().mT, torch.stack([weight, weight * 0], dim=-1)[..., 0]):
        assert not odd.is_contiguous()
        assert_close(sparse_decode(torch.stack([values, values], 1)[:, 0], support, odd), expected, 1e-6)


def test_the_same_bits_every_time_and_no_gradient(twin, device):
    values, support, weight = case(9, 50, 130, device=device)
    first = sparse_decode(values.clone().requires_grad_(), support, weight.clone().requires_grad_())
    assert not first.requires_grad
    assert torch.equal(first, sparse_decode(values, support, weight))


def test_a_nan_stays_in_its_row(twin, device):
    values, support, weight = case(6, 30, 5, device=device)
    values[0] = float("nan")
    assert sparse_decode(values, support, weight).isnan().any(1).nonzero()[:, 0].tolist() == [int(support.rows[0])]


def test_offsets_past_two_to_the_31(twin, tmp_path):
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half()
    far = memory.as_strided(weight.shape, (stride, 1)).copy_(weight)
    support = Support.from_rows(torch.tensor([[2, 0], [1, 2]]), 3)
    values = torch.ones(4, dtype=torch.float16)
    assert torch.equal(sparse_decode(values, support, far), sparse_decode(values, support, weight))


def test_what_is_refused(twin, device):
    values, support, weight = case(5, 20, 6, device=device)
    for args in ((values[1:], support, weight), (values, support, weight[1:]), (values[:, None], support, weight)):
        with pytest.raises((ShapeMismatch, TypeCheckError), match=r"sparse_decode takes values|Type-check"):
            sparse_decode(*args)
