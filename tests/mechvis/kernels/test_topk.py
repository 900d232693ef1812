"""The k largest: plain twin, CPU way and Triton kernel against a stable sort, bit for bit; the threshold of a batch
against a sort of the whole batch."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.kernels.topk import chunked, histogram, naive, threshold_of, topk

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = ("numbers", "whole numbers", "mostly zeros of both signs", "NaN of both signs", "mostly -inf", "all the same")


def case(kind, rows, n, *, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=g)
    if kind == "whole numbers":
        x = x.round()
    elif kind == "mostly zeros of both signs":
        x = x.clamp(min=1.5).where(x > 1.5, 0.0) * (torch.rand(rows, n, generator=g) < 0.5).float().mul(2).sub(1)
    elif kind == "NaN of both signs":
        x[torch.rand(rows, n, generator=g) < 0.1] = float("nan")
        x[:1] = float("nan")
        x.view(torch.int32)[1:, ::5] = -(2**22)  # 0xFFC00000
    elif kind == "mostly -inf":
        x[torch.rand(rows, n, generator=g) < 0.95] = -torch.inf
    elif kind == "all the same":
        x = torch.full((rows, n), -0.5)
    return x.to(dtype)


def sorted_truth(values, k, among=None):
    """A stable sort says which of equal values comes first."""
    values = values if among is None else values.masked_fill(~among, -torch.inf)
    latents = torch.sort(values, dim=1, stable=True, descending=True).indices[:, :k].sort(1).values
    return values.gather(1, latents), latents


def assert_same(found, expected):
    assert found[0].dtype == expected[0].dtype
    assert torch.equal(found[1].cpu(), expected[1].cpu())
    # Bits, so that NaN equals itself and 0.0 is not -0.0.
    assert torch.equal(found[0].cpu().float().view(torch.int32), expected[0].cpu().float().view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_both_twins_for_every_kind_of_value(twin, device, kind, dtype):
    values = case(kind, 3, 131, dtype=dtype)
    among = torch.rand(131, generator=torch.Generator().manual_seed(1)) < 0.3
    for k in (0, 1, 17, 130, 131):
        assert_same(topk(values.to(device), k), sorted_truth(values, k))
        assert_same(topk(values.to(device), k, among=among.to(device)), sorted_truth(values, k, among))


@settings(max_examples=15)
@given(
    kind=st.sampled_from(KINDS), rows=st.integers(0, 3), n=st.integers(1, 200), share=st.floats(0, 1),
    allowed=st.floats(0, 1), seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_any_shape(twin, device, kind, rows, n, share, allowed, seed, dtype):
    values, k = case(kind, rows, n, seed=seed, dtype=dtype), round(share * n)
    among = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < allowed
    assert_same(topk(values.to(device), k, among=among.to(device)), sorted_truth(values, k, among))


def test_more_columns_than_a_block_of_the_kernel(twin, device):
    for kind in KINDS:
        values = case(kind, 1, 4099)
        for k in (33, 3000):
            assert_same(topk(values.to(device), k), sorted_truth(values, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "n", "k"), [(16, 640, 2), (150, 1000, 7), (17, 4096, 16), (20, 2048, 32)])
def test_the_cpu_way(kind, rows, n, k, dtype, monkeypatch):
    """With 640 and 4,096 columns groups of 64, else of 32; 1,000 is no multiple, 150 rows are more than a block."""
    taken = []
    block = chunked._block
    monkeypatch.setattr(chunked, "_block", lambda *args: taken.append(args[2]) or block(*args))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    values = case(kind, rows, n, dtype=dtype)
    assert_same(chunked.topk(values, k), sorted_truth(values, k))
    assert taken == [chunked.group_size(n, k)] * (1 if rows <= chunked.ROWS else 2)
    assert_same(chunked.topk(values.mT.contiguous().mT, k), sorted_truth(values, k))
    for share in (0.002, 0.3, 0.8):
        among = torch.rand(n, generator=torch.Generator().manual_seed(2)) < share
        assert_same(chunked.topk(values, k, among=among), sorted_truth(values, k, among))


def test_the_cpu_way_looks_at_few_columns_only_where_few_are_allowed(monkeypatch):
    seen = []
    way = chunked._all_columns
    monkeypatch.setattr(chunked, "_all_columns", lambda values, k: seen.append(values.shape[1]) or way(values, k))
    values, among = case("numbers", 4, 500), torch.arange(500) < 40
    assert_same(chunked.topk(values, 7, among=among), sorted_truth(values, 7, among))
    assert seen == [40]
    values[2, :36] = -torch.inf  # of -inf the lowest latents, allowed or not: only the whole row can tell
    assert_same(chunked.topk(values, 7, among=among), sorted_truth(values, 7, among))
    assert seen == [40, 40, 500]


@pytest.mark.parametrize(
    "change", [dict(rows=8), dict(k=40), dict(dtype=torch.float64), dict(threads=16), dict(k=0)], ids=str
)
def test_when_the_cpu_way_leaves_it_to_the_plain_twin(change, monkeypatch):
    asked = dict(rows=32, k=4, dtype=torch.float32, threads=1) | change
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked["threads"])
    monkeypatch.setattr(chunked, "_block", None)
    values = case("whole numbers", asked["rows"], 2048, dtype=asked["dtype"])
    found, latents = chunked.topk(values, asked["k"])
    expected = sorted_truth(values, asked["k"])
    assert torch.equal(found, expected[0]) and torch.equal(latents, expected[1])


def test_which_way_a_call_goes(monkeypatch):
    taken = []
    for way in (chunked, naive):
        monkeypatch.setattr(way, "topk", lambda *_, among=None, way=way, real=way.topk: taken.append(way) or real(*_))
    for forced, expected in (("", chunked), ("naive", naive)):
        monkeypatch.setenv("MECHVIS_KERNELS", forced)
        taken.clear()
        topk(torch.ones(1, 2), 1)
        assert taken[0] is expected


def test_sortable_keys():
    numbers = [float("nan"), torch.inf, 1.0, 1e-45, 0.0, -0.0, -1e-45, -1.0, -torch.inf]
    keys = chunked.sortable(np.array(numbers, dtype=np.float32)).tolist()
    assert keys[4] == keys[5]
    assert keys == sorted(keys, reverse=True) and len(set(keys)) == len(keys) - 1
    assert chunked.sortable(np.array([-(2**22)], dtype=np.int32).view(np.float32)).tolist() == [2**31 - 1]


def test_torch_alone_breaks_ties_otherwise():
    """Why the plain twin is not a bare `torch.topk`."""
    values = case("whole numbers", 4, 300)
    bare = values.topk(40).indices.sort(1).values
    assert not torch.equal(bare, sorted_truth(values, 40)[1])
    assert_same(naive.topk(values, 40), sorted_truth(values, 40))


def test_fewer_allowed_than_wanted(twin, device):
    among = torch.tensor([False, False, True, False], device=device)
    values, latents = topk(torch.tensor([[5.0, 6.0, 7.0, 8.0]], device=device), 3, among=among)
    assert values.tolist() == [[-torch.inf, -torch.inf, 7.0]]
    assert latents.tolist() == [[0, 1, 2]]


def test_a_nan_comes_out(twin, device):
    values = torch.arange(6.0, device=device).repeat(2, 1)
    values[1, 3] = float("nan")
    found, latents = topk(values, 2)
    assert latents.tolist() == [[4, 5], [3, 5]]
    assert found.isnan().tolist() == [[False, False], [True, False]]


def test_layouts_and_bits(twin, device):
    values = case("whole numbers", 5, 90)
    odd = values.to(device).mT.contiguous().mT
    assert not odd.is_contiguous()
    assert_same(topk(odd, 9), sorted_truth(values, 9))
    among = torch.arange(90, device=device) % 2 == 0
    wide = torch.stack([among, ~among], 1)[:, 0]
    assert not wide.is_contiguous()
    assert_same(topk(odd, 9, among=wide), topk(odd, 9, among=wide))
    assert_same(topk(odd, 9, among=wide), sorted_truth(values, 9, among.cpu()))


def test_no_gradient_and_the_input_stays(twin, device):
    values = case("numbers", 3, 50).to(device).requires_grad_()
    before = values.detach().clone()
    found, _ = topk(values, 4, among=torch.arange(50, device=device) > 9)
    assert not found.requires_grad
    assert torch.equal(values, before)


def test_offsets_past_two_to_the_31(twin, tmp_path):
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    values = case("numbers", 3, 20, dtype=torch.float16)
    far = memory.as_strided(values.shape, (stride, 1)).copy_(values)
    assert_same(topk(far, 4), sorted_truth(values, 4))
    far = memory.as_strided((20, 3), (1, stride)).copy_(values.T)
    assert_same(topk(far, 1), sorted_truth(values.T, 1))


def test_what_is_refused(twin, device):
    values = torch.zeros(2, 5, device=device)
    for k in (-1, 6):
        with pytest.raises(OutOfRange, match=f"the {k} largest of 5 latents"):
            topk(values, k)
    refused = (ShapeMismatch, TypeCheckError)
    with pytest.raises(refused, match=r"topk takes values \[row latent\]; got \[5\]|Type-check"):
        topk(values[0], 1)
    for among in (torch.ones(4, dtype=torch.bool, device=device), torch.ones(5, device=device)):
        with pytest.raises(refused, match=r"topk takes among as a mask of 5 latents|Type-check"):
            topk(values, 1, among=among)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_threshold_is_that_of_a_sort(dtype):
    values = torch.randn(30, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    ranked = values.flatten().to(torch.bfloat16).float().sort(descending=True).values
    counts = histogram(values)
    assert int(counts.sum()) == int((ranked > 0).sum())
    for count in (1, 2, 333, int((ranked > 0).sum())):
        found = threshold_of(counts, count)
        assert float(found.value) == float(ranked[count - 1])
        assert int(found.above) == int((ranked > found.value).sum()) < count
        assert int(found.equal) == int((ranked == found.value).sum())
        assert int(found.above + found.equal) >= count


def test_histograms_add_up(monkeypatch):
    values = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))
    whole = histogram(values)
    assert torch.equal(histogram(values[:4]) + histogram(values[4:]), whole)
    # By its name: the function of the same name hides the module.
    monkeypatch.setattr(sys.modules["mechvis.kernels.topk.histogram"], "AT_ONCE", 7)
    assert torch.equal(histogram(values), whole)


def test_the_ends_of_the_histogram():
    counts = histogram(torch.tensor([0.0, -0.0, -1.0, -torch.inf, 1e-45]))
    assert int(counts.sum()) == 0  # the last one is zero in bfloat16
    assert threshold_of(counts, 1) == (0.0, 0, 0)
    counts = histogram(torch.tensor([torch.inf, 3e38, 2.0**-133, 0.0]))
    assert threshold_of(counts, 1) == (torch.inf, 0, 1)
    assert float(threshold_of(counts, 3).value) == 2.0**-133
    # More than there are: everything positive is kept.
    assert threshold_of(counts, 4) == (0.0, 3, 0)
    assert int(histogram(torch.zeros(0)).sum()) == 0


def test_nan_surfaces_as_the_threshold():
    values = torch.tensor([1.0, float("nan"), 2.0])
    values.view(torch.int32)[2] = -(2**22)
    counts = histogram(values)
    assert threshold_of(counts, 1).value.isnan() and threshold_of(counts, 2).value.isnan()
    assert threshold_of(counts, 3) == (1.0, 2, 1)


def test_what_the_threshold_refuses():
    with pytest.raises((ShapeMismatch, TypeCheckError), match=r"a histogram of 32768 bins; got \[5\]"):
        threshold_of(torch.zeros(5, dtype=torch.long), 1)
    with pytest.raises((BadData, TypeCheckError), match=r"whole numbers of values per bin|Type-check"):
        threshold_of(torch.zeros(2**15), 1)
    with pytest.raises(OutOfRange, match="the 0 largest values"):
        threshold_of(torch.zeros(2**15, dtype=torch.long), 0)
