"""The plain twin of the kernel against a Python loop: values, gradients, odd sizes, strides, NaN."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechvis.kernels.patch_rows import patch_rows
from mechvis.testing import assert_close


def loop(x, row, token, group, keep, gain, table, source):
    """One target at a time."""
    out = x.clone()
    for i in range(len(row)):
        at = row[i], token[i], group[i]
        new = torch.zeros_like(x[at]) if keep[i] == 0 else keep[i] * x[at]
        if table is not None and source is not None and source[i] >= 0:
            new = new + gain[i] * table[source[i]]
        out[at] = new
    return out


def case(shape, n, *, seed=0, dtype=torch.float64, entries=5):
    """Random distinct targets with random factors, some exactly zero or one, some without a source."""
    g = torch.Generator().manual_seed(seed)
    rows, tokens, groups, width = shape
    flat = torch.randperm(rows * tokens * groups, generator=g)[:n]
    row, token, group = torch.unravel_index(flat, (rows, tokens, groups))
    keep = torch.randn(n, generator=g).to(dtype) * torch.randint(0, 2, (n,), generator=g)
    gain = torch.randn(n, generator=g).to(dtype)
    table = torch.randn(entries, width, generator=g).to(dtype)
    source = torch.randint(-1, entries, (n,), generator=g)
    x = torch.randn(shape, generator=g).to(dtype)
    return x, row, token, group, keep, gain, table, source


SHAPES = [(1, 1, 1, 1), (2, 10, 4, 4), (3, 17, 1, 13), (5, 1, 7, 3), (4, 6, 63, 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_a_loop(shape, dtype):
    n = max(1, shape[0] * shape[1] * shape[2] // 2)
    args = case(shape, n, dtype=dtype)
    before = args[0].clone()
    assert_close(patch_rows(*args), loop(*args), {torch.float64: 0, torch.float32: 0, torch.bfloat16: 1e-2}[dtype])
    assert torch.equal(args[0], before)


@given(
    rows=st.integers(1, 4),
    tokens=st.integers(1, 6),
    groups=st.integers(1, 5),
    width=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_shape_against_a_loop(rows, tokens, groups, width, share, seed):
    args = case((rows, tokens, groups, width), int(share * rows * tokens * groups), seed=seed)
    assert torch.equal(patch_rows(*args), loop(*args))


def test_untouched_entries_are_bitwise_the_same():
    x, row, token, group, *rest = case((3, 5, 4, 6), 20)
    out = patch_rows(x, row, token, group, *rest)
    touched = torch.zeros(3, 5, 4, dtype=torch.bool)
    touched[row, token, group] = True
    assert torch.equal(out[~touched], x[~touched])


def test_empty_plan_returns_the_activation_itself():
    x = torch.randn(2, 3, 4, 5)
    nothing = torch.zeros(0, dtype=torch.int64)
    factors = torch.zeros(0)
    assert patch_rows(x, nothing, nothing, nothing, factors, factors) is x


def test_without_a_table():
    x, row, token, group, keep, gain, _, _ = case((2, 4, 3, 5), 10)
    assert torch.equal(patch_rows(x, row, token, group, keep, gain), loop(x, row, token, group, keep, gain, None, None))


def test_gradients_against_the_loop():
    (*_,) = args = list(case((3, 5, 4, 6), 30))
    results = []
    for function in (patch_rows, loop):
        x, table = args[0].clone().requires_grad_(), args[6].clone().requires_grad_()
        out = function(x, *args[1:6], table, args[7])
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append((x.grad, table.grad))
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected, 1e-14)


def test_gradcheck():
    x, row, token, group, keep, gain, table, source = case((2, 3, 2, 3), 7)
    assert torch.autograd.gradcheck(
        lambda a, b: patch_rows(a, row, token, group, keep, gain, b, source),
        (x.requires_grad_(), table.requires_grad_()),
    )


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_non_contiguous_activations(layout):
    args = list(case((4, 6, 3, 4), 20))
    dense = args[0]
    if layout == "transposed":
        args[0] = dense.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "strided":
        args[0] = torch.stack([dense, dense * 0], dim=-1)[..., 0]
    else:
        dense = dense[:1].expand(4, -1, -1, -1)
        args[0] = dense
        dense = dense.contiguous()
    assert layout == "expanded" or torch.equal(args[0], dense)
    assert not args[0].is_contiguous()
    assert torch.equal(patch_rows(*args), loop(dense, *args[1:]))


def test_a_nan_that_is_replaced_does_not_spread():
    x = torch.full((2, 2, 2, 3), float("nan"))
    index = torch.cartesian_prod(*[torch.arange(2)] * 3).T
    ones, table = torch.ones(8), torch.arange(3.0)[None]
    out = patch_rows(x, *index, ones * 0, ones, table, torch.zeros(8, dtype=torch.int64))
    assert torch.equal(out, table.expand(2, 2, 2, 3))
    out = patch_rows(x, *index, ones * 0, ones * 0)
    assert (out == 0).all()


def test_a_nan_in_an_unused_table_row_does_not_spread():
    x, row, token, group, keep, gain, table, source = case((2, 4, 3, 5), 10)
    table[0] = float("nan")
    source = torch.where(source == 0, -1, source)
    assert torch.isfinite(patch_rows(x, row, token, group, keep, gain, table, source)).all()
