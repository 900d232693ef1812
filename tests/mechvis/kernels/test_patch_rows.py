"""Both twins against a Python loop: values, gradients, odd sizes, strides, NaN, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.kernels.patch_rows import patch_rows, patch_rows_
from mechvis.testing import assert_close

TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 2e-2}


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


def both(args, dtype, device):
    """The same numbers in a kernel's type and, for the loop, in float64."""
    given = [a.to(dtype) if a is not None and a.is_floating_point() else a for a in args]
    exact = [a.double() if a is not None and a.is_floating_point() else a for a in given]
    return [None if a is None else a.to(device) for a in given], exact


def against(function, given, exact, dtype):
    """Values and both gradients of a twin against the loop."""
    x, table = given[0].clone().requires_grad_(), given[6].clone().requires_grad_()
    out = function(x, *given[1:6], table, given[7])
    a, b = exact[0].clone().requires_grad_(), exact[6].clone().requires_grad_()
    expected = loop(a, *exact[1:6], b, exact[7])
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(dtype)
    out.backward(weights.to(out.device))
    expected.backward(weights.double())
    unused = torch.zeros_like(b) if b.grad is None else b.grad  # the loop leaves a table alone that nobody uses
    for got, wanted in ((out, expected), (x.grad, a.grad), (table.grad, unused)):
        assert got.dtype == dtype
        assert_close(got.double().cpu(), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 10, 4, 4), (3, 17, 1, 13), (4, 6, 63, 1), (2, 1, 3, 300)], ids=str)
def test_values_and_gradients_of_both_twins(twin, device, shape, dtype):
    given, exact = both(case(shape, shape[0] * shape[1] * shape[2] // 2), dtype, device)
    against(patch_rows, given, exact, dtype)
    if dtype == torch.float32:
        against(lambda x, *rest: patch_rows_(x.clone(), *rest), given, exact, dtype)


@settings(max_examples=12)
@given(
    rows=st.integers(1, 4),
    tokens=st.integers(1, 6),
    groups=st.integers(1, 5),
    width=st.integers(1, 9),
    share=st.floats(0.01, 1),
    entries=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_shape_for_both_twins(twin, device, rows, tokens, groups, width, share, entries, seed):
    n = max(1, int(share * rows * tokens * groups))
    given, exact = both(case((rows, tokens, groups, width), n, seed=seed, entries=entries), torch.float32, device)
    against(patch_rows, given, exact, torch.float32)


def test_many_targets_of_few_entries(twin, device):
    # Steering vectors: several programs share the gradient of an entry, in parts that are not equal.
    given, exact = both(case((16, 64, 4, 3), 3001, entries=2), torch.float32, device)
    given[7] = torch.arange(3001, device=device) % 2
    grads = []
    for _ in range(2):
        table = given[6].clone().requires_grad_()
        patch_rows(*given[:6], table, given[7]).sum().backward()
        grads.append(table.grad)
    expected = torch.stack([exact[5][0::2].sum(), exact[5][1::2].sum()])
    assert_close(grads[0].double().cpu(), expected[:, None].expand(2, 3), 1e-5)
    assert torch.equal(*grads)


def test_untouched_entries_of_both_twins(twin, device):
    (x, row, token, group, *rest), _ = both(case((3, 5, 4, 6), 20), torch.bfloat16, device)
    touched = torch.zeros(3, 5, 4, dtype=torch.bool, device=device)
    touched[row, token, group] = True
    for out in (patch_rows(x, row, token, group, *rest), patch_rows_(x.clone(), row, token, group, *rest)):
        assert torch.equal(out[~touched], x[~touched])


def test_in_place(twin, device):
    given, _ = both(case((3, 5, 4, 6), 20), torch.float32, device)
    expected = patch_rows(*given)
    x = given[0].clone()
    assert patch_rows_(x, *given[1:]) is x
    assert torch.equal(x, expected)
    assert torch.equal(patch_rows_(given[0].clone(), *given[1:], check=False), expected)


def test_in_place_from_its_own_rows(twin, device):
    """Rows that change places: every value is read before any is written, by whichever program."""
    x = torch.randn(2, 600, 1, 5, device=device)
    row, token = (t.flatten() for t in torch.meshgrid(torch.arange(2), torch.arange(600), indexing="ij"))
    row, token, ones = row.to(device), token.to(device), torch.ones(1200, device=device)
    expected = x.flip(0)
    patch_rows_(x, row, token, row * 0, ones * 0, ones, x.view(1200, 5), (1 - row) * 600 + token)
    assert torch.equal(x, expected)


def test_in_place_inside_a_graph(twin, device):
    given, _ = both(case((3, 5, 4, 6), 20), torch.float32, device)
    grads = []
    for function in (patch_rows, patch_rows_):
        x = given[0].clone().requires_grad_()
        function(x * 2, *given[1:]).square().sum().backward()
        grads.append(x.grad)
    assert_close(*grads, 1e-6)


def test_empty_plan_of_both_twins(twin, device):
    x = torch.randn(2, 3, 4, 5, device=device)
    nothing, factors = torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, device=device)
    assert patch_rows(x, nothing, nothing, nothing, factors, factors) is x
    assert patch_rows_(x, nothing, nothing, nothing, factors, factors) is x


def test_order_does_not_matter_with_and_without_check(twin, device):
    given, _ = both(case((3, 5, 4, 6), 30), torch.float32, device)
    order = torch.arange(29, -1, -1, device=device)
    expected = patch_rows(*given)
    x, row, token, group, keep, gain, table, source = given
    backwards = [x, row[order], token[order], group[order], keep[order], gain[order], table, source[order]]
    for check in (True, False):
        assert torch.equal(patch_rows(*given, check=check), expected)
        assert torch.equal(patch_rows(*backwards, check=check), expected)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_layouts_of_both_twins(twin, device, layout):
    given, _ = both(case((4, 6, 3, 4), 20), torch.float32, device)
    dense, table = given[0], given[6]
    expected = patch_rows(*given)
    if layout == "transposed":
        given[0] = dense.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "strided":
        given[0] = torch.stack([dense, dense * 0], dim=-1)[..., 0]
    else:
        given[0] = dense[:1].expand(4, -1, -1, -1)
        expected = patch_rows(given[0].contiguous(), *given[1:])
    given[6] = torch.stack([table, table * 0], dim=-1)[..., 0]
    assert torch.equal(patch_rows(*given), expected)
    x = given[0].detach().requires_grad_()
    patch_rows(x, *given[1:]).transpose(0, 3).square().sum().backward()
    assert_close(x.grad.sum(), (2 * expected * _kept(given)).sum(), 1e-4)
    if layout == "expanded":
        with pytest.raises(BadData, match="several entries share one place"):
            patch_rows_(*given)
    else:
        assert torch.equal(patch_rows_(*given), expected)


def _kept(given):
    kept = torch.ones_like(given[0])
    kept[given[1], given[2], given[3]] = given[4][:, None]
    return kept


def test_offsets_past_two_to_the_31(twin, tmp_path):
    """Row 2 lies 2^31 entries from row 0, though each stride fits int32. The file is sparse: 4 GiB on paper."""
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    x = memory.as_strided((3, 2, 2, 4), (stride, 8, 4, 1))
    x.copy_(torch.randn(3, 2, 2, 4))
    expected = x.clone()
    two, one = torch.tensor([2]), torch.tensor([1])
    expected[2, 1, 1] = 7
    args = (two, one, one, torch.zeros(1), torch.ones(1), torch.full((1, 4), 7.0).half(), two * 0)
    assert torch.equal(patch_rows(x, *args), expected)
    patch_rows_(x, *args)
    assert torch.equal(x.clone(), expected)


def test_nan_that_is_replaced_in_both_twins(twin, device):
    x = torch.full((2, 2, 2, 3), float("nan"), device=device)
    index = torch.cartesian_prod(*[torch.arange(2)] * 3).T.to(device)
    ones, table = torch.ones(8, device=device), torch.arange(3.0, device=device)[None]
    for function in (patch_rows, patch_rows_):
        out = function(x.clone(), *index, ones * 0, ones, table, torch.zeros(8, dtype=torch.int64, device=device))
        assert torch.equal(out, table.expand(2, 2, 2, 3))
        assert (function(x.clone(), *index, ones * 0, ones * 0) == 0).all()


def test_what_is_refused(twin, device):
    (x, row, token, group, keep, gain, table, source), _ = both(case((2, 3, 4, 5), 6), torch.float32, device)
    for function in (patch_rows, patch_rows_):
        with pytest.raises(BadData, match=r"1 of 5 targets come more than once.*'row': \d, 'token'.*left to chance"):
            twice = [torch.cat([t[:5], t[:1]]) for t in (row, token, group)]
            function(x, *twice, keep, gain, table, source)
        with pytest.raises(OutOfRange, match=r"'token': 3.*'token': 3"):
            function(x, row, torch.full_like(token, 3), group, keep, gain, table, source)
        with pytest.raises(OutOfRange, match="'row': -1"):
            function(x, torch.full_like(row, -1), token, group, keep, gain)
        with pytest.raises(OutOfRange, match="'source': 5"):
            function(x, row, token, group, keep, gain, table, torch.full_like(source, 5))
        with pytest.raises((ShapeMismatch, TypeCheckError), match=r"wanted \[entry, 5\]|Type-check"):
            function(x, row, token, group, keep, gain, table[:, :2], source)
        with pytest.raises((ShapeMismatch, TypeCheckError), match=r"one entry per target|Type-check"):
            function(x, row, token, group, keep[:3], gain, table, source)
