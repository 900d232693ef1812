"""Both twins of the sparse gradients against dense products in float64, and against autograd of a dense decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.kernels.sparse_decode import sparse_decode
from mechvis.kernels.sparse_grad import column_sums, entry_products, naive, segment_sum
from mechvis.kernels.support import Support
from mechvis.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def case(rows, n, d, *, dtype=torch.float32, density=0.3, seed=0, device="cpu"):
    """values, x, support, weight; some rows and some latents have no entries."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, n, generator=g) < density
    mask[rows // 2 :: 3], mask[:, n // 2 :: 4] = False, False
    support = Support.from_mask(mask.to(device))
    values, x, weight = (torch.randn(*shape, generator=g) for shape in ((len(support),), (rows, d), (n, d)))
    return values.to(device, dtype), x.to(device, dtype), support, weight.to(device, dtype)


def sums(values, x, support):
    return support.dense(values.double()).T @ x.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 33, 5), (40, 9, 300), (1, 1, 1)], ids=str)
def test_both_twins(twin, device, shape, dtype):
    values, x, support, weight = case(*shape, dtype=dtype, density=0.9 if shape[0] == 1 else 0.3, device=device)
    products = (x.double() @ weight.double().T)[support.rows, support.latents]
    expected = sums(values, x, support)
    out, squares, inner = segment_sum(values, x, support, against=weight)
    found = {
        "products": (entry_products(x, weight, support), products),
        "sums": (segment_sum(values, x, support), expected),
        "sums, with norms": (out, expected),
        "squares": (squares, expected.square().sum(1)),
        "inner": (inner, (expected * weight.double()).sum(1)),
        "column sums": (column_sums(values, support), support.dense(values.double()).sum(0)),
    }
    for name, (got, true) in found.items():
        assert got.dtype == torch.float32, name
        assert_close(got.double(), true, 2e-6, name)


@settings(max_examples=10)
@given(rows=st.integers(0, 6), n=st.integers(1, 40), d=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_shape(twin, device, rows, n, d, seed):
    values, x, support, weight = case(rows, n, d, seed=seed, device=device)
    found = segment_sum(values, x, support)
    assert found.shape == (n, d)
    size = sums(values.abs(), x.abs(), support)
    assert ((found.double() - sums(values, x, support)).abs() <= 1e-6 * size).all()
    products = entry_products(x, weight, support)
    size = (x.double().abs() @ weight.double().abs().T)[support.rows, support.latents]
    true = (x.double() @ weight.double().T)[support.rows, support.latents]
    assert ((products.double() - true).abs() <= 1e-6 * size).all()


def test_these_are_the_gradients_of_the_decoder(twin, device):
    """Of a loss that is not linear: dense autograd in float64."""
    values, target, support, weight = case(12, 30, 7, device=device)
    dense_values, dense_weight = values.double().requires_grad_(), weight.double().requires_grad_()
    ((support.dense(dense_values) @ dense_weight - target.double()) ** 4).sum().backward()
    error = sparse_decode(values, support, weight) - target
    gradient = 4 * error**3
    assert_close(entry_products(gradient, weight, support).double(), dense_values.grad, 1e-5)
    assert_close(segment_sum(values, gradient, support).double(), dense_weight.grad, 1e-5)


def test_the_projected_norm_from_the_two_numbers(twin, device):
    values, x, support, weight = case(30, 20, 300, device=device)
    weight = weight / weight.norm(dim=1, keepdim=True)
    out, squares, inner = segment_sum(values, x, support, against=weight)
    projected = out.double() - (out.double() * weight.double()).sum(1, keepdim=True) * weight.double()
    assert_close((squares - inner.square()).double(), projected.square().sum(1), 1e-5)


def test_latents_without_entries_are_zero(twin, device):
    values, x, support, weight = case(7, 33, 5, device=device)
    empty = support.fires == 0
    assert empty.any() and not empty.all()
    for got in (*segment_sum(values, x, support, against=weight), column_sums(values, support)):
        assert (got[empty] == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0), (3, 0, 4)], ids=["no rows", "no width", "no latents"])
def test_nothing_to_do(twin, device, shape):
    values, x, support, weight = case(*shape, device=device)
    out, squares, inner = segment_sum(values, x, support, against=weight)
    assert (out.shape, squares.shape, inner.shape) == ((shape[1], shape[2]), (shape[1],), (shape[1],))
    assert (segment_sum(values, x, support) == 0).all() and (squares == 0).all() and (inner == 0).all()
    assert entry_products(x, weight, support).tolist() == [0.0] * len(support)
    assert column_sums(values, support).shape == (shape[1],)


def test_float64_stays():
    values, x, support, weight = case(9, 20, 6, dtype=torch.float64)
    out, squares, inner = naive.segment_sum(values, x, support, against=weight)
    products = naive.entry_products(x, weight, support)
    assert {t.dtype for t in (out, squares, inner, products, naive.column_sums(values, support))} == {torch.float64}
    assert_close(out, sums(values, x, support), 1e-14)
    assert_close(products, (x @ weight.T)[support.rows, support.latents], 1e-14)


@pytest.mark.parametrize("entries", [1, 7, 1000])
def test_stretches_change_no_bit_and_agree_with_the_fast_way(entries):
    _, x, support, weight = case(9, 40, 130)
    whole = naive.in_stretches(x, weight, support)
    assert torch.equal(naive.in_stretches(x, weight, support, entries=entries), whole)
    assert_close(naive.entry_products(x, weight, support), whole, 1e-6)
    assert naive.in_stretches(x.bfloat16(), weight, support).dtype == torch.float32


def test_stretches_hold_little_at_once(monkeypatch):
    """Of 4,096 entries with 64 numbers each, no more than the limit is ever gathered."""
    _, x, support, weight = case(64, 256, 64, density=0.5)
    monkeypatch.setattr(naive, "GATHERED_BYTES", 2**14)
    held = []
    index = torch.Tensor.__getitem__

    def watched(tensor, at):
        found = index(tensor, at)
        held.append(found.numel() * found.element_size())
        return found

    monkeypatch.setattr(torch.Tensor, "__getitem__", watched)
    naive.in_stretches(x, weight, support)
    assert len(held) > 100 and max(held) <= 2**14


def test_norms_of_more_latents_than_a_block(monkeypatch):
    values, x, support, weight = case(9, 40, 6)
    whole = naive.segment_sum(values, x, support, against=weight)
    monkeypatch.setattr(naive, "BLOCK", 7)
    for got, true in zip(naive.segment_sum(values, x, support, against=weight), whole, strict=True):
        assert_close(got, true, 1e-6)


def test_layouts(twin, device):
    values, x, support, weight = case(9, 20, 6, device=device)
    doubled = [torch.stack([t, t * 0], dim=-1)[..., 0] for t in (values, x, weight)]
    turned = [values, x.mT.contiguous().mT, weight.mT.contiguous().mT]
    expected = (entry_products(x, weight, support), *segment_sum(values, x, support, against=weight))
    for v, odd, w in (doubled, turned):
        assert not odd.is_contiguous() and not w.is_contiguous()
        found = (entry_products(odd, w, support), *segment_sum(v, odd, support, against=w))
        for got, true in zip(found, expected, strict=True):
            assert_close(got, true, 1e-6)


def test_the_same_bits_every_time_and_no_gradient(twin, device):
    values, x, support, weight = case(50, 20, 130, density=0.8, device=device)

    def run():
        leaves = [t.clone().requires_grad_() for t in (values, x, weight)]
        fresh = Support.from_mask(support.mask())
        return (
            entry_products(leaves[1], leaves[2], fresh), *segment_sum(leaves[0], leaves[1], fresh, against=leaves[2]),
            column_sums(leaves[0], fresh),
        )  # fmt: skip

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
        assert not first.requires_grad


def test_the_order_of_a_sum_is_that_of_the_rows():
    """1e8 + 1 - 1e8 is 0 in float32 in this order, and 1 in another: the plain twin goes through rows as they come."""
    support = Support.from_rows(torch.tensor([[0], [0], [0]]), 1)
    for values, expected in (([1e8, 1.0, -1e8], 0.0), ([1e8, -1e8, 1.0], 1.0)):
        assert naive.segment_sum(torch.tensor(values), torch.ones(3, 1), support).item() == expected
        assert naive.column_sums(torch.tensor(values), support).item() == expected


def test_offsets_past_two_to_the_31(twin, tmp_path):
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    near = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half()
    far = memory.as_strided(near.shape, (stride, 1)).copy_(near)
    support = Support.from_rows(torch.tensor([[2, 0], [1, 2], [0, 1]]), 3)
    values = torch.ones(6, dtype=torch.float16)
    assert torch.equal(entry_products(far, near, support), entry_products(near, near, support))
    assert torch.equal(entry_products(near, far, support), entry_products(near, near, support))
    found = segment_sum(values, far, support, against=far)
    for got, true in zip(found, segment_sum(values, near, support, against=near), strict=True):
        assert torch.equal(got, true)


def test_what_is_refused(twin, device):
    values, x, support, weight = case(5, 20, 6, device=device)
    refused = (ShapeMismatch, TypeCheckError)
    for args in ((x[1:], weight), (x, weight[1:]), (x[:, 1:], weight), (x[0], weight)):
        with pytest.raises(refused, match=r"entry_products takes a \[row d\]|Type-check"):
            entry_products(*args, support)
    with pytest.raises(refused, match="segment_sum takes one value per entry"):
        segment_sum(values[1:], x, support)
    with pytest.raises(refused, match=r"segment_sum takes x \[row d\] for 5 rows"):
        segment_sum(values, x[1:], support)
    with pytest.raises(refused, match=r"segment_sum takes against|Type-check"):
        segment_sum(values, x, support, against=weight[:, 1:])
    with pytest.raises(refused, match="column_sums takes one value per entry"):
        column_sums(values[1:], support)


def test_a_latent_that_does_not_exist_is_refused_on_a_cpu():
    """`torch.sparse.sampled_addmm` would read past the end of the weight."""
    support = Support.from_rows(torch.tensor([[0, 3]]), 3)
    with pytest.raises(OutOfRange, match="names latents 0 to 3, but there are 3"):
        naive.entry_products(torch.ones(1, 2), torch.ones(3, 2), support)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_row_by_row_and_latent_by_latent_are_the_same_bits(dtype, monkeypatch):
    """On a CPU the order depends on the weight's size alone."""
    _, x, support, weight = case(40, 90, 70, dtype=dtype)
    twice = Support.from_rows(torch.tensor([[5, 2], [1, 1]]), 90)
    by_row = [entry_products(x, weight, support), entry_products(x[:2], weight, twice)]
    asked = []
    kept = naive._products_at
    monkeypatch.setattr(naive, "_products_at", lambda *args: asked.append(args[0]) or kept(*args))
    monkeypatch.setattr(naive, "CACHED_BYTES", 0)
    by_latent = [naive.entry_products(x, weight, support), naive.entry_products(x[:2], weight, twice)]
    assert [len(offsets) for offsets in asked] == [91, 91], "both went latent by latent"
    assert all(torch.equal(a, b) for a, b in zip(by_row, by_latent, strict=True))
