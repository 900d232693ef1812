"""Both twins against explicit attention, one row and one head after the other in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.kernels.patch_attention import naive, patch_attention
from mechvis.testing import assert_close

TOLERANCE = {torch.float32: 3e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}
TABLES = ("queries", "keys", "pattern")


def loop(q, k, v, head, *, scale, causal=False, drop=None, drop_for=None, **tables):
    """Each row, each head, each query by itself."""
    out = torch.zeros_like(q)
    for r in range(q.shape[0]):
        for h in range(q.shape[2]):
            edited = int(head[r]) == h
            one_q, one_k = q[r, :, h], k[r, :, h]
            if edited and tables.get("queries") is not None and tables["query_source"][r] >= 0:
                one_q = tables["queries"][tables["query_source"][r]]
            if edited and tables.get("keys") is not None and tables["key_source"][r] >= 0:
                one_k = tables["keys"][tables["key_source"][r]]
            for i in range(q.shape[1]):
                if edited and tables.get("pattern") is not None and tables["pattern_source"][r] >= 0:
                    out[r, i, h] = tables["pattern"][tables["pattern_source"][r]][i] @ v[r, :, h]
                    continue
                seen = [j for j in range(k.shape[1]) if not (causal and j > i)]
                if edited and drop is not None and (drop_for is None or drop_for[r, i]):
                    seen = [j for j in seen if not drop[r, j]]
                if seen:
                    out[r, i, h] = (one_q[i] @ one_k[seen].T * scale).softmax(-1) @ v[r, seen, h]
    return out


def case(rows, n_query, n_key, heads, width, kinds, *, seed=0, entries=3, causal=False):
    """Random edits of the asked kinds; some rows have none."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    def source():
        return torch.randint(-1, entries, (rows,), generator=g)

    tensors = [draw(rows, n_query, heads, width), draw(rows, n_key, heads, width), draw(rows, n_key, heads, width)]
    head = torch.randint(-1, heads, (rows,), generator=g)
    more = {"scale": width**-0.5, "causal": causal}
    if "drop" in kinds:
        more["drop"] = torch.rand(rows, n_key, generator=g) < 0.4
    if "drop_for" in kinds:
        more["drop_for"] = torch.rand(rows, n_query, generator=g) < 0.5
    if "queries" in kinds:
        more |= {"queries": draw(entries, n_query, width), "query_source": source()}
    if "keys" in kinds:
        more |= {"keys": draw(entries, n_key, width), "key_source": source()}
    if "pattern" in kinds:
        more |= {"pattern": draw(entries, n_query, n_key).softmax(-1), "pattern_source": source()}
    return tensors, head, more


def against(args, dtype, device, *, backward=True):
    """Values and all gradients against the loop."""
    tensors, head, more = args
    given = [t.to(device, dtype).requires_grad_(backward) for t in tensors]
    exact = [t.detach().cpu().double().requires_grad_(backward) for t in given]
    more_given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in more.items()}
    more_exact = dict(more)
    for name in set(TABLES) & set(more):
        more_given[name] = more[name].to(device, dtype).requires_grad_(backward)
        more_exact[name] = more_given[name].detach().cpu().double().requires_grad_(backward)
    found, expected = patch_attention(*given, head.to(device), **more_given), loop(*exact, head, **more_exact)
    assert found.dtype == dtype
    assert_close(found.double().cpu(), expected, TOLERANCE[dtype])
    if not backward:
        return
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    found.backward(weights.to(device))
    expected.backward(weights.double())
    pairs = [*zip(("q", "k", "v"), given, exact, strict=True)]
    pairs += [(name, more_given[name], more_exact[name]) for name in set(TABLES) & set(more)]
    for name, got, true in pairs:
        wanted = torch.zeros_like(true) if true.grad is None else true.grad
        assert_close(got.grad.double().cpu(), wanted, 4 * TOLERANCE[dtype], f"gradient of {name}")


KINDS = [(), ("drop",), ("drop", "drop_for"), ("queries",), ("keys",), ("pattern",),
         ("drop", "drop_for", "queries", "keys", "pattern")]  # fmt: skip


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "+".join(kinds) or "none")
def test_values_and_gradients_of_every_edit(twin, device, kinds):
    against(case(5, 7, 9, 3, 4, kinds), torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(twin, device, dtype):
    against(case(4, 6, 6, 2, 16, KINDS[-1]), dtype, device)


@pytest.mark.parametrize("kinds", [("drop",), KINDS[-1]], ids=lambda kinds: "+".join(kinds))
def test_causal(twin, device, kinds):
    against(case(4, 7, 7, 2, 5, kinds, causal=True), torch.float32, device)


def test_more_than_one_block_of_queries_and_keys(twin, device):
    against(case(2, 67, 131, 1, 20, ("drop", "drop_for", "keys"), seed=4), torch.float32, device, backward=False)
    tensors, _, more = case(2, 67, 131, 2, 20, ("drop", "pattern"), seed=5)
    more["pattern_source"] = torch.tensor([2, -1])
    against((tensors, torch.tensor([1, 0]), more), torch.float32, device, backward=False)


@settings(max_examples=8)
@given(
    rows=st.integers(1, 4), n_query=st.integers(1, 6), n_key=st.integers(1, 9), heads=st.integers(1, 4),
    width=st.integers(1, 18), kinds=st.sets(st.sampled_from(["drop", "queries", "keys", "pattern"])),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_for_both_twins(twin, device, rows, n_query, n_key, heads, width, kinds, seed):
    against(case(rows, n_query, n_key, heads, width, kinds, seed=seed), torch.float32, device, backward=False)


def test_a_query_that_may_look_nowhere_gets_nothing(twin, device):
    tensors, _, more = case(2, 4, 5, 2, 3, ())
    head, drop = torch.tensor([1, 0]), torch.ones(2, 5, dtype=torch.bool)
    args = (tensors, head, more | {"drop": drop})
    against(args, torch.float32, device)
    found = patch_attention(*(t.to(device) for t in tensors), head.to(device), drop=drop.to(device), **more)
    assert (found[0, :, 1] == 0).all()
    assert (found[1, :, 0] == 0).all()


def test_a_pattern_of_zeros_is_a_head_that_is_gone(twin, device):
    tensors, _, more = case(2, 4, 5, 2, 3, ())
    zero = torch.zeros(2, dtype=torch.int64, device=device)
    tensors = [t.to(device) for t in tensors]
    found = patch_attention(
        *tensors, zero + 1, pattern=torch.zeros(1, 4, 5, device=device), pattern_source=zero, **more
    )
    assert (found[:, :, 1] == 0).all()
    assert_close(found[:, :, 0], patch_attention(*tensors, zero - 1, **more)[:, :, 0], 1e-6)


def test_gradcheck_of_the_plain_twin():
    tensors, head, more = case(3, 3, 4, 2, 2, KINDS[-1])
    tables = [more.pop(name).double().requires_grad_() for name in TABLES]
    inputs = [t.double().requires_grad_() for t in tensors] + tables

    def function(q, k, v, *tables):
        return naive.patch_attention(q, k, v, head, **more, **dict(zip(TABLES, tables, strict=True)))

    assert torch.autograd.gradcheck(function, inputs)


def test_layouts(twin, device):
    """q, k and v as views into one tensor, as a model with one projection has them; tables as strided views."""
    tensors, head, more = case(3, 6, 6, 2, 8, KINDS[-1])
    more = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in more.items()}
    head, together = head.to(device), torch.stack(tensors, dim=3).to(device)
    expected = patch_attention(*(t.to(device) for t in tensors), head, **more)
    for name in TABLES:
        more[name] = more[name].mT.contiguous().mT
    more["drop"] = more["drop"].T.contiguous().T
    views = together.unbind(3)
    assert not any(view.is_contiguous() for view in views)
    assert_close(patch_attention(*views, head, **more), expected, 1e-6)
    by_head = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in views]
    assert_close(patch_attention(*by_head, head, **more), expected, 1e-6)


def test_no_rows(twin, device):
    tensors, head, more = case(0, 4, 5, 2, 3, ("drop",))
    tensors = [t.to(device).requires_grad_() for t in tensors]
    out = patch_attention(*tensors, head.to(device), scale=more["scale"], drop=more["drop"].to(device))
    assert out.shape == (0, 4, 2, 3)


def test_offsets_past_two_to_the_31(twin, tmp_path):
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    (q, k, v), head, more = case(3, 2, 2, 2, 4, ("drop",))
    q, k, v = q.half(), k.half(), v.half()
    far = memory.as_strided(k.shape, (stride, 8, 4, 1)).copy_(k)
    near = patch_attention(q, k, v, head, **more)
    assert_close(patch_attention(q, far, v, head, **more), near, 1e-3)
    assert_close(patch_attention(q, k, far, head, **more), patch_attention(q, k, k, head, **more), 1e-3)


def test_what_is_refused(twin, device):
    (q, k, v), head, more = case(2, 4, 5, 2, 3, KINDS[-1])
    q, k, v, head = (t.to(device) for t in (q, k, v, head))
    more = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in more.items()}

    def refused(error, text, head=head, k=k, **changed):
        with pytest.raises((error, TypeCheckError), match=rf"{text}|Type-check"):
            patch_attention(q, k, v, head, **more | changed)

    refused(OutOfRange, "head 2 does not exist; there are 2", head=head * 0 + 2)
    refused(OutOfRange, "key_source 3 does not exist; there are 3", key_source=head * 0 + 3)
    refused(BadData, "pattern edits and pattern_source belong together", pattern_source=None)
    refused(BadData, "drop is missing", drop=None)
    refused(ShapeMismatch, "causal needs as many queries as keys; got 4 and 5", causal=True)
    refused(ShapeMismatch, r"v is \[2, 5, 2, 3\], wanted \[2, 4, 2, 3\]", k=k[:, :4])
    refused(ShapeMismatch, r"query edits is \[3, 3, 3\], wanted \[3, 4, 3\]", queries=more["queries"][:, :3])
    refused(ShapeMismatch, r"drop is \[2, 4\], wanted \[2, 5\]", drop=more["drop"][:, :4])
