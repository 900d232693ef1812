"""Both twins against one unit after the other in float64, and against the block that they would serve."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mechvis.errors import ShapeMismatch
from mechvis.kernels.expand_norm import expand_norm, naive
from mechvis.testing import assert_close

TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
EPS = 1e-6


def loop(mid, change, weight, scale=None, norm_weight=None, norm_bias=None):
    """One unit at a time."""
    rows = []
    for unit in range(weight.shape[0]):
        write = change[:, :, unit] @ weight[unit]
        rows.append(mid + (write if scale is None else scale * write))
    rows = torch.stack(rows)
    return rows, F.layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, EPS)


def case(n, tokens, units, d_head, width, *, vectors=True, seed=0):
    """The stream is off centre and its rows differ in size, as real ones do."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    mid = draw(n, tokens, width) * (1 + draw(n, tokens, 1).abs()) + 2
    change, weight = draw(n, tokens, units, d_head), draw(units, d_head, width) / d_head**0.5
    return [mid, change, weight, *((draw(width), draw(width), draw(width)) if vectors else (None, None, None))]


def against(args, dtype, device, *, outputs=(True, True)):
    """Both outputs and all gradients against the loop."""
    given = [None if a is None else a.to(device, dtype).requires_grad_() for a in args]
    exact = [None if a is None else a.detach().cpu().double().requires_grad_() for a in given]
    found, expected = expand_norm(*given, eps=EPS), loop(*exact)
    total, wanted = 0, 0
    for got, true, used in zip(found, expected, outputs, strict=True):
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert_close(got.double().cpu(), true, TOLERANCE[dtype])
        if used:
            weights = torch.randn(true.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
            total, wanted = total + (got * weights.to(device)).sum(), wanted + (true * weights.double()).sum()
    total.backward()
    wanted.backward()
    for got, true, name in zip(
        given, exact, ("mid", "change", "weight", "scale", "norm_weight", "norm_bias"), strict=True
    ):
        if got is not None and true.grad is not None:
            assert_close(got.grad.double().cpu(), true.grad, 3 * TOLERANCE[dtype], f"gradient of {name}")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4, 8), (1, 17, 2, 13, 130), (3, 23, 1, 70, 65)], ids=str)
def test_values_and_gradients_of_both_twins(twin, device, shape, dtype):
    against(case(*shape), dtype, device)


@pytest.mark.parametrize("outputs", [(True, False), (False, True)], ids=["rows", "normed"])
def test_gradients_from_one_output_without_vectors(twin, device, outputs):
    against(case(2, 5, 3, 4, 8, vectors=False), torch.float32, device, outputs=outputs)


@settings(max_examples=8)
@given(
    n=st.integers(1, 3), tokens=st.integers(1, 9), units=st.integers(1, 4), d_head=st.integers(1, 20),
    width=st.integers(3, 80), vectors=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_for_both_twins(twin, device, n, tokens, units, d_head, width, vectors, seed):
    # Among a few columns alone, the variance can be so small that its inverse enlarges every rounding.
    args = case(n, tokens, units, d_head, width, vectors=vectors, seed=seed)
    args = [None if a is None else a.to(device) for a in args]
    exact = loop(*(None if a is None else a.cpu().double() for a in args))
    for got, true in zip(expand_norm(*args, eps=EPS), exact, strict=True):
        assert_close(got.double().cpu(), true, 2e-5)


def test_gradcheck_of_the_plain_twin():
    args = [a.double().requires_grad_() for a in case(1, 3, 2, 2, 5)]
    assert torch.autograd.gradcheck(lambda *a: naive.expand_norm(*a, eps=EPS), args)


def test_layouts(twin, device):
    mid, change, weight, *vectors = (a.to(device) for a in case(2, 5, 3, 4, 8))
    expected = expand_norm(mid, change, weight, *vectors, eps=EPS)
    odd = [
        mid.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([change, change * 0], dim=-1)[..., 0],
        weight.transpose(1, 2).contiguous().transpose(1, 2),
        *(torch.stack([v, v * 0], dim=-1)[..., 0] for v in vectors),
    ]
    assert not any(a.is_contiguous() for a in odd)
    for got, wanted in zip(expand_norm(*odd, eps=EPS), expected, strict=True):
        assert_close(got, wanted, 1e-6)
    one = expand_norm(mid[:1].expand(2, -1, -1), change, weight, *vectors, eps=EPS)
    for got, wanted in zip(one, expand_norm(mid[[0, 0]], change, weight, *vectors, eps=EPS), strict=True):
        assert_close(got, wanted, 1e-6)


def test_far_from_zero_the_variance_keeps_its_digits(twin, device):
    """A mean of 1000 and a spread of 1: a sum of squares in float32 would lose all but one digit of the variance."""
    mid, change, weight, *_ = (None if a is None else a.to(device) for a in case(1, 4, 2, 3, 200, vectors=False))
    mid = torch.randn(mid.shape, generator=torch.Generator().manual_seed(3)).to(device) + 1000
    _, normed = expand_norm(mid, change, weight, eps=EPS)
    _, exact = loop(mid.cpu().double(), change.cpu().double(), weight.cpu().double())
    assert_close(normed.double().cpu(), exact, 3e-4)


def test_no_units(twin, device):
    args = [a.to(device).requires_grad_() for a in case(2, 5, 0, 4, 8)]
    rows, normed = expand_norm(*args, eps=EPS)
    assert rows.shape == normed.shape == (0, 2, 5, 8)
    (rows.sum() + normed.sum()).backward()
    assert all((a.grad == 0).all() for a in args)


def test_offsets_past_two_to_the_31(twin, tmp_path):
    stride = 2**30 + 8
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * stride + 64, dtype=torch.float16)
    mid, change, weight, *vectors = (a.half() for a in case(3, 2, 2, 3, 8))
    far = memory.as_strided(mid.shape, (stride, 8, 1)).copy_(mid)
    for got, wanted in zip(*(expand_norm(m, change, weight, *vectors, eps=EPS) for m in (far, mid)), strict=True):
        assert torch.equal(got, wanted)


def test_rows_of_a_head_sweep(twin, device):
    """Zero-ablated heads of a real attention half, rows and normed rows."""
    from mechvis.testing import tiny

    model = tiny("vit")
    layer = next(m for m in model.modules() if type(m).__name__ == "ViTLayer")
    out = layer.attention.o_proj
    norm, width = layer.layernorm_after, out.weight.shape[0]
    z = torch.randn(2, 5, 2, width // 2)
    before = torch.randn(2, 5, width)
    with torch.no_grad():
        mid = before + out(z.flatten(2))
        weight = out.weight.T.reshape(2, width // 2, width)
        rows, normed = expand_norm(
            mid.to(device), -z.to(device), weight.to(device), None, norm.weight.to(device), norm.bias.to(device),
            eps=norm.eps,
        )  # fmt: skip
        for head in range(2):
            ablated = z.clone()
            ablated[:, :, head] = 0
            expected = before + out(ablated.flatten(2))
            assert_close(rows[head].cpu(), expected, 2e-6)
            assert_close(normed[head].cpu(), norm(expected), 1e-5)


def test_what_is_refused(twin, device):
    mid, change, weight, *vectors = (a.to(device) for a in case(2, 5, 3, 4, 8))
    refused = pytest.raises((ShapeMismatch, TypeCheckError), match=r"expand_norm takes mid|Type-check")
    with refused:
        expand_norm(mid, change[:, :3], weight, eps=EPS)
    with refused:
        expand_norm(mid, change, weight[:1], eps=EPS)
    with refused:
        expand_norm(mid, change, weight, vectors[0][:3], eps=EPS)


def test_a_place_for_the_rows(twin, device):
    args = [a.to(device) for a in case(2, 5, 3, 4, 8)]
    place = torch.full((4, 2, 5, 8), float("nan"), device=device)
    rows, normed = expand_norm(*args, eps=EPS, out=place[1:])
    for got, wanted in zip((rows, normed), expand_norm(*args, eps=EPS), strict=True):
        assert torch.equal(got, wanted)
    assert rows.data_ptr() == place[1:].data_ptr()
    assert place[0].isnan().all()
    for wrong in (place, place[1:].double(), torch.empty(3, 2, 8, 5, device=device).mT):
        with pytest.raises(ShapeMismatch, match="can put its rows into a contiguous"):
            expand_norm(*args, eps=EPS, out=wrong)
    with pytest.raises(ShapeMismatch, match="gradients are asked for"):
        expand_norm(args[0].requires_grad_(), *args[1:], eps=EPS, out=place[1:])


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_a_whole_head_sweep(twin, device, family):
    """Narrow models take the kernel: the same outputs as one full forward per head."""
    import mechvis
    from mechvis import testing
    from mechvis.engine import plain_edit
    from mechvis.units import units_of
    from mechvis.wave import wave

    model = mechvis.load(testing.tiny(family), preprocess=testing.tiny_preprocess()).to(device)
    pixels = testing.tiny_input("vit").to(device)
    units = units_of(model, "heads")
    _, edited = wave(model.parts, pixels, units, lambda site: None)
    rows = [model.run(pixels, edits=[plain_edit(unit, lambda site: None)]).output for unit in units]
    assert_close(edited, torch.stack(rows), 1e-5)
