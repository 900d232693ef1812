"""Both twins against one edge after the other in float64, and against edge attribution with every output split."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import ShapeMismatch
from mechvis.kernels.edge_scores import edge_scores, naive
from mechvis.testing import assert_close

# Relative to the largest score, from inputs that were rounded before; gradients come back in the inputs' type.
TOLERANCE = {torch.float32: (3e-6, 3e-6), torch.float16: (1e-5, 2e-3), torch.bfloat16: (1e-5, 1e-2)}


def loop(change, weight, gradient):
    """One edge at a time: project the gradient back through the head's W_O."""
    n, _, sources, _ = change.shape
    out = change.new_zeros(n, sources, gradient.shape[2])
    for i in range(n):
        for s in range(sources):
            for r in range(gradient.shape[2]):
                out[i, s, r] = (change[i, :, s] * (gradient[i, :, r] @ weight[s].T)).sum()
    return out


def case(n, tokens, sources, d_head, width, readers, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((n, tokens, sources, d_head), (sources, d_head, width), (n, tokens, readers, width))
    return [torch.randn(*shape, generator=g) for shape in shapes]


def against(args, dtype, device, *, backward=True):
    given = [a.to(device, dtype).requires_grad_() for a in args]
    exact = [a.detach().cpu().double().requires_grad_() for a in given]
    found, expected = edge_scores(*given), loop(*exact)
    assert found.dtype == torch.float32
    assert_close(found.double().cpu(), expected, TOLERANCE[dtype][0])
    if not backward:
        return
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    found.backward(weights.to(device))
    expected.backward(weights.double())
    for got, true in zip(given, exact, strict=True):
        assert got.grad.dtype == dtype
        assert_close(got.grad.double().cpu(), true.grad, TOLERANCE[dtype][1])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4, 8, 2), (1, 17, 19, 35, 18, 33)], ids=str)
def test_values_and_gradients_of_both_twins(twin, device, shape, dtype):
    against(case(*shape), dtype, device)


@settings(max_examples=8)
@given(
    n=st.integers(1, 3), tokens=st.integers(1, 9), sources=st.integers(1, 5), d_head=st.integers(1, 20),
    width=st.integers(1, 20), readers=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_for_both_twins(twin, device, n, tokens, sources, d_head, width, readers, seed):
    change, weight, gradient = case(n, tokens, sources, d_head, width, readers, seed=seed)
    exact = loop(change.double(), weight.double(), gradient.double())
    found = edge_scores(change.to(device), weight.to(device), gradient.to(device)).double().cpu()
    # A score can be a small rest of large terms: the scale of its rounding is that of the terms.
    size = loop(change.double().abs(), weight.double().abs(), gradient.double().abs())
    assert ((found - exact).abs() <= 1e-6 * size).all()


def test_gradcheck_of_the_plain_twin():
    args = [a.double().requires_grad_() for a in case(2, 3, 2, 2, 3, 2)]
    assert torch.autograd.gradcheck(naive.edge_scores, args)
    assert naive.edge_scores(*args).dtype == torch.float64


def test_layouts(twin, device):
    change, weight, gradient = (a.to(device) for a in case(2, 5, 3, 4, 8, 2))
    expected = edge_scores(change, weight, gradient)
    odd = (
        change.transpose(1, 2).contiguous().transpose(1, 2),
        weight.mT.contiguous().mT,
        torch.stack([gradient, gradient * 0], dim=-1)[..., 0],
    )
    assert not any(a.is_contiguous() for a in odd)
    assert_close(edge_scores(*odd), expected, 1e-6)
    assert_close(edge_scores(change[:1].expand(2, -1, -1, -1), weight, gradient)[0], expected[0], 1e-6)


@pytest.mark.parametrize("axis", [0, 2, 5], ids=["images", "sources", "readers"])
def test_nothing_to_do(twin, device, axis):
    shape = [2, 5, 3, 4, 8, 2]
    shape[axis] = 0
    assert edge_scores(*(a.to(device) for a in case(*shape))).shape == (shape[0], shape[2], shape[5])


def test_no_tokens_are_no_effect(twin, device):
    assert (edge_scores(*(a.to(device) for a in case(2, 0, 3, 4, 8, 2))) == 0).all()


def test_offsets_past_two_to_the_31(twin, tmp_path):
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    change, weight, gradient = (a.half() for a in case(3, 2, 2, 3, 8, 2))
    far = memory.as_strided(gradient.shape, (stride, 16, 8, 1)).copy_(gradient)
    assert torch.equal(edge_scores(change, weight, far), edge_scores(change, weight, gradient))


def test_a_linear_network_where_the_scores_are_exact(twin, device):
    """Heads that write, readers that read by a direction, and a metric that is their weighted sum: cutting an edge
    changes the metric by exactly its score."""
    change, weight, _ = case(1, 4, 3, 5, 8, 2)
    direction, strength = torch.randn(2, 8), torch.tensor([2.0, -0.5])
    scores = edge_scores(
        change.to(device), weight.to(device), (strength[:, None] * direction).expand(1, 4, 2, 8).to(device)
    )
    for source in range(3):
        write = change[:, :, source] @ weight[source]
        for reader in range(2):
            cut = float((write @ direction[reader]).sum() * strength[reader])
            assert float(scores[0, source, reader]) == pytest.approx(cut, rel=1e-4, abs=1e-4)


def test_what_is_refused(twin, device):
    change, weight, gradient = (a.to(device) for a in case(2, 5, 3, 4, 8, 2))
    refused = pytest.raises((ShapeMismatch, TypeCheckError), match=r"edge_scores takes change|Type-check")
    for args in ((change[:1], weight, gradient), (change, weight[:2], gradient), (change, weight, gradient[..., :7])):
        with refused:
            edge_scores(*args)
