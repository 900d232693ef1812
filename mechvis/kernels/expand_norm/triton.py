"""The kernels of `expand_norm`.

1. Forward: a program owns a block of positions (image, token) of one unit. It walks over `d_model` once: product with
   W_O, plus the clean stream, write, and mean and variance of the row so far (blocks are merged as Chan et al. 1983
   do it, which does not lose digits as a sum of squares does). It then walks over what it wrote, which is still in the
   cache, and writes the normed rows. Memory sees one write of each.
2. Backward: one launch brings both gradients to the rows; from there it is sums and matrix products, which are torch's.

Offsets are 64 bit: units, positions and columns are int64 before they meet a stride or a width.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels.expand_norm.naive import require_shapes
from mechvis.kernels.language import INTERPRETED, cdiv, jit, on_device_of, power_of_two, product, products, tl

# Positions and columns of a program. Not measured yet: W_O of a head is read once per 64 positions, a quarter of what
# these positions write at d_model 768; an accumulator of 64 x 64 leaves registers for the operands.
POSITIONS, COLUMNS = 64, 64
# Part of d_head that is multiplied at once, by bytes per entry: float32 products are unrolled multiply-adds, whose code
# should fit the instruction cache (374 KB at 64).
HEAD = {2: 64, 4: 16}


@jit
def _rows_and_norm(
    mid,  # [image token d_model], any strides
    change,  # [image token unit d_head], any strides
    weight,  # [unit d_head d_model], any strides
    scale,  # [d_model]
    norm_weight,  # [d_model]
    norm_bias,  # [d_model]
    rows,  # [unit image token d_model], contiguous
    normed,  # the same
    means,  # float32 [unit image token], contiguous
    inverses,  # the same: 1 / standard deviation
    eps,
    n_positions,
    n_tokens,
    width,
    d_head,
    mid_image,
    mid_token,
    mid_column,
    change_image,
    change_token,
    change_unit,
    change_e,
    weight_unit,
    weight_e,
    weight_column,
    HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)  # [POSITIONS]
    unit = tl.program_id(1).to(tl.int64)
    inside = position < n_positions
    image, token = position // n_tokens, position % n_tokens
    mid += image * mid_image + token * mid_token
    change += image * change_image + token * change_token + unit * change_unit
    weight += unit * weight_unit
    out = (unit * n_positions + position) * width  # [POSITIONS]

    mean = tl.zeros([POSITIONS], dtype=tl.float32)
    spread = tl.zeros([POSITIONS], dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
        exists = column < width
        mask = inside[:, None] & exists[None, :]
        write = tl.zeros([POSITIONS, COLUMNS], dtype=tl.float32)
        for first in range(0, d_head, HEAD):
            e = first + tl.arange(0, HEAD).to(tl.int64)  # [HEAD]
            a = tl.load(
                change[:, None] + e[None, :] * change_e, mask=inside[:, None] & (e < d_head)[None, :], other=0.0
            )
            b = weight + e[:, None] * weight_e + column[None, :] * weight_column
            b = tl.load(b, mask=(e < d_head)[:, None] & exists[None, :], other=0.0)
            write = product(a, b, write, PRECISION, WIDEN)
        if HAS_SCALE:
            write *= tl.load(scale + column, mask=exists, other=0.0).to(tl.float32)[None, :]
        clean = tl.load(mid[:, None] + column[None, :] * mid_column, mask=mask, other=0.0).to(tl.float32)
        row = (clean + write).to(rows.dtype.element_ty)
        tl.store(rows + out[:, None] + column[None, :], row, mask=mask)
        value = tl.where(mask, row.to(tl.float32), 0.0)
        n_new = tl.minimum(width - start, COLUMNS).to(tl.float32)
        n_all = n_new + start
        new_mean = tl.sum(value, axis=1) / n_new
        apart = tl.where(mask, value - new_mean[:, None], 0.0)
        step = new_mean - mean
        spread += tl.sum(apart * apart, axis=1) + step * step * (n_new * start / n_all)
        mean += step * (n_new / n_all)

    inverse = 1.0 / tl.sqrt(spread / width + eps)
    tl.store(means + unit * n_positions + position, mean, mask=inside)
    tl.store(inverses + unit * n_positions + position, inverse, mask=inside)
    # Threads read below what other threads of this program wrote above.
    tl.debug_barrier()
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        exists = column < width
        mask = inside[:, None] & exists[None, :]
        at = out[:, None] + column[None, :]
        value = (tl.load(rows + at, mask=mask, other=0.0).to(tl.float32) - mean[:, None]) * inverse[:, None]
        if HAS_WEIGHT:
            value *= tl.load(norm_weight + column, mask=exists, other=0.0).to(tl.float32)[None, :]
        if HAS_BIAS:
            value += tl.load(norm_bias + column, mask=exists, other=0.0).to(tl.float32)[None, :]
        tl.store(normed + at, value.to(normed.dtype.element_ty), mask=mask)


@jit
def _to_rows(
    rows,  # [row d_model], contiguous
    from_rows,  # [row d_model], contiguous: gradient of the rows
    from_normed,  # [row d_model], contiguous: gradient of the normed rows
    norm_weight,  # [d_model]
    means,  # float32 [row]
    inverses,  # float32 [row]
    out,  # float32 [row d_model], contiguous
    n_rows,
    width,
    HAS_ROWS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    inside = row < n_rows
    mean = tl.load(means + row, mask=inside, other=0.0)
    inverse = tl.load(inverses + row, mask=inside, other=0.0)
    plain = tl.zeros([ROWS], dtype=tl.float32)
    along = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
        mask = inside[:, None] & (column < width)[None, :]
        at = row[:, None] * width + column[None, :]
        grad = tl.load(from_normed + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            grad *= tl.load(norm_weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        value = (tl.load(rows + at, mask=mask, other=0.0).to(tl.float32) - mean[:, None]) * inverse[:, None]
        plain += tl.sum(grad, axis=1)
        along += tl.sum(grad * tl.where(mask, value, 0.0), axis=1)
    plain /= width
    along /= width
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        mask = inside[:, None] & (column < width)[None, :]
        at = row[:, None] * width + column[None, :]
        grad = tl.load(from_normed + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            grad *= tl.load(norm_weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        value = (tl.load(rows + at, mask=mask, other=0.0).to(tl.float32) - mean[:, None]) * inverse[:, None]
        grad = (grad - plain[:, None] - value * along[:, None]) * inverse[:, None]
        if HAS_ROWS:
            grad += tl.load(from_rows + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, grad, mask=mask)


def expand_norm(mid, change, weight, scale=None, norm_weight=None, norm_bias=None, *, eps: float, out=None):
    """See `mechvis.kernels.expand_norm.expand_norm`."""
    require_shapes(mid, change, weight, scale, norm_weight, norm_bias, out)
    # The kernel walks along vectors with step one; they are short.
    vectors = (None if v is None else v.contiguous() for v in (scale, norm_weight, norm_bias))
    return _ExpandNorm.apply(mid, change, weight, *vectors, eps, out)


class _ExpandNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mid, change, weight, scale, norm_weight, norm_bias, eps, out):
        ctx.set_materialize_grads(False)
        n, tokens, width = mid.shape
        units, d_head = weight.shape[:2]
        normed = torch.empty(units, n, tokens, width, dtype=mid.dtype, device=mid.device)
        rows = torch.empty_like(normed) if out is None else out
        means, inverses = (torch.empty(units, n, tokens, device=mid.device) for _ in range(2))
        if rows.numel():
            with on_device_of(mid):
                _rows_and_norm[(cdiv(n * tokens, POSITIONS), units)](
                    mid, change, weight, *(mid if v is None else v for v in (scale, norm_weight, norm_bias)),
                    rows, normed, means, inverses, eps, n * tokens, tokens, width, d_head,
                    *mid.stride(), *change.stride(), *weight.stride(),
                    HAS_SCALE=scale is not None, HAS_WEIGHT=norm_weight is not None, HAS_BIAS=norm_bias is not None,
                    POSITIONS=POSITIONS, COLUMNS=COLUMNS, HEAD=power_of_two(d_head, 16, HEAD[mid.element_size()]),
                    PRECISION=products(), WIDEN=INTERPRETED,
                )  # fmt: skip
        ctx.save_for_backward(change, weight, scale, norm_weight, rows, means, inverses)
        ctx.dtypes = [None if t is None else t.dtype for t in (mid, change, weight, scale, norm_weight, norm_bias)]
        return rows, normed

    @staticmethod
    @once_differentiable
    def backward(ctx, from_rows, from_normed):
        change, weight, scale, norm_weight, rows, means, inverses = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if from_normed is None:
            grad = None if from_rows is None else from_rows.float()
        else:
            grad = _bring_to_rows(rows, from_rows, from_normed, norm_weight, means, inverses)
        found: list[Tensor | None] = [None] * 6
        if grad is not None:
            found[0] = grad.sum(0) if needs[0] else None
            scaled = grad if scale is None else grad * scale.float()
            found[1] = torch.einsum("uitd,ued->itue", scaled, weight.float()) if needs[1] else None
            found[2] = torch.einsum("itue,uitd->ued", change.float(), scaled) if needs[2] else None
            if needs[3]:
                found[3] = (torch.einsum("itue,ued->uitd", change.float(), weight.float()) * grad).sum((0, 1, 2))
        if from_normed is not None and needs[4]:
            unit_free = (rows.float() - means[..., None]) * inverses[..., None]
            found[4] = (unit_free * from_normed.float()).sum((0, 1, 2))
        if from_normed is not None and needs[5]:
            found[5] = from_normed.float().sum((0, 1, 2))
        given = (None if g is None else g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))
        return *given, None, None


def _bring_to_rows(
    rows: Tensor,
    from_rows: Tensor | None,
    from_normed: Tensor,
    norm_weight: Tensor | None,
    means: Tensor,
    inverses: Tensor,
) -> Tensor:
    """Gradient of the rows from both outputs, float32."""
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    if not rows.numel():
        return out
    width = rows.shape[-1]
    columns = power_of_two(width, most=256)
    block = max(1, 2048 // columns)
    # Gradients come contiguous from a matrix product, or else are copied once: six strides more would not pay.
    from_normed = from_normed.contiguous()
    from_rows = None if from_rows is None else from_rows.contiguous()
    with on_device_of(rows):
        _to_rows[(cdiv(means.numel(), block),)](
            rows, rows if from_rows is None else from_rows, from_normed, rows if norm_weight is None else norm_weight,
            means, inverses, out, means.numel(), width,
            HAS_ROWS=from_rows is not None, HAS_WEIGHT=norm_weight is not None, ROWS=block, COLUMNS=columns,
        )  # fmt: skip
    return out
