"""The kernel of `adam_rows`: every number is read once and written once.

A program owns a row: it loads weight, gradient and moments, projects, scales, steps, takes the norm of the new row and
writes. Rows longer than a block are stepped block by block, and divided in a second walk, which finds them in the
cache. The factor is read on the device. A step is bound by memory: 28 bytes per weight in float32, against about 70 of
the plain form. Not measured on a GPU yet.
"""

import torch
from torch import Tensor

from mechvis.kernels.adam_rows import naive
from mechvis.kernels.language import jit, on_device_of, power_of_two, tl

BLOCK = 4096
"""Columns that a program holds at once."""


@jit
def _adam(
    rows,  # [latent d], contiguous, as the moments
    grad,  # [latent d], any strides
    first,
    second,
    along,  # [latent], where UNIT
    factor,  # one number, where SCALED
    width,
    grad_row,
    grad_column,
    step_size,
    root,
    eps,
    keep_first,
    keep_second,
    UNIT: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    times = 1.0
    if SCALED:
        times = tl.load(factor).to(tl.float32)
    dot = 0.0
    if UNIT:
        dot = tl.load(along + row).to(tl.float32)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)  # [BLOCK]
        real = column < width
        at = row * width + column
        w = tl.load(rows + at, mask=real, other=0.0).to(tl.float32)
        g = tl.load(grad + row * grad_row + column * grad_column, mask=real, other=0.0).to(tl.float32)
        m = tl.load(first + at, mask=real, other=0.0).to(tl.float32)
        v = tl.load(second + at, mask=real, other=0.0).to(tl.float32)
        if UNIT:
            g = g - dot * w
        if SCALED:
            g = g * times
        m = m + (1.0 - keep_first) * (g - m)
        v = keep_second * v + (1.0 - keep_second) * g * g
        w = w - step_size * m / (tl.sqrt(v) / root + eps)
        squares += tl.where(real, w * w, 0.0)
        tl.store(first + at, m, mask=real)
        tl.store(second + at, v, mask=real)
        tl.store(rows + at, w, mask=real)
    if UNIT:
        norm = tl.sqrt(tl.sum(squares, axis=0))
        norm = tl.where(norm > 0, norm, 1.0)
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK).to(tl.int64)
            real = column < width
            at = row * width + column
            w = tl.load(rows + at, mask=real, other=0.0).to(tl.float32)
            tl.store(rows + at, w / norm, mask=real)


@torch.no_grad()
def adam_rows(
    rows: Tensor, grad: Tensor, first: Tensor, second: Tensor, *, lr, count, betas, eps, along, factor
) -> None:
    """See `mechvis.kernels.adam_rows.adam_rows`."""
    naive.require_shapes(rows, grad, first, second, along, count)
    n, width = rows.shape
    if not rows.numel():
        return
    b1, b2 = betas
    with on_device_of(rows):
        _adam[(n,)](
            rows, grad, first, second, rows if along is None else along, rows if factor is None else factor, width,
            *grad.stride(), float(lr / (1 - b1**count)), float((1 - b2**count) ** 0.5), float(eps), float(b1),
            float(b2), UNIT=along is not None, SCALED=factor is not None, BLOCK=power_of_two(width, 16, BLOCK),
        )  # fmt: skip
