"""The kernel of `topk`: a program owns a row, finds its k-th largest key by radix, and writes what reaches it.

1. A key is the value's bits as a signed integer that sorts as the value does (0.0 and -0.0 alike, NaN the largest).
2. From the top, eight bits at a time: a histogram of the digit among the keys that agree with the digits found so far
   says which digit the k-th largest key has, and how many keys are above it. float32 takes four passes over the row,
   float16 three, bfloat16 two, since the rest of their bits is the same for all; a row stays in the cache meanwhile.
3. A last pass in the order of the columns writes keys above the k-th, and the first of those equal to it. Where each
   goes is a running sum. So ties go to the lower latents, the answer ascends, and there are no atomics in memory.

Nothing waits for the device. Offsets are 64 bit: rows and columns are int64 before they meet a stride.
"""

import torch
from torch import Tensor

from mechvis.kernels.language import jit, on_device_of, power_of_two, tl
from mechvis.kernels.topk import naive

# Columns that a program reads at once. Not measured yet.
COLUMNS = 2048
PASSES = {torch.float32: 4, torch.float16: 3, torch.bfloat16: 2}


@jit
def key_of(values, among, row, column, n, row_stride, column_stride, HAS_AMONG: tl.constexpr, DROP: tl.constexpr):
    """Keys of a block of columns, without their lowest `DROP` bits."""
    real = column < n
    value = tl.load(values + row * row_stride + column * column_stride, mask=real, other=0.0).to(tl.float32)
    if HAS_AMONG:
        allowed = tl.load(among + column, mask=real, other=0)
        value = tl.where(allowed != 0, value, float("-inf"))
    value = tl.where(value == 0, 0.0, value)  # -0.0 too
    bits = value.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(value != value, 0x7FFFFFFF, key)
    return key >> DROP


@jit
def _topk(
    values,  # [row latent], any strides
    among,  # bool [latent]
    best,  # [row k], contiguous, the type of the values
    latents,  # int64 [row k], contiguous
    n,
    k,
    row_stride,
    column_stride,
    HAS_AMONG: tl.constexpr,
    PASSES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    DROP: tl.constexpr = 32 - 8 * PASSES
    row = tl.program_id(0).to(tl.int64)
    digits = tl.arange(0, 256)
    prefix = row.to(tl.int32) * 0
    wanted = prefix + k  # how many of the keys that agree with the prefix
    for i in tl.static_range(PASSES):
        counts = tl.zeros([256], dtype=tl.int32)
        for first in range(0, n, COLUMNS):
            column = first + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
            key = key_of(values, among, row, column, n, row_stride, column_stride, HAS_AMONG, DROP)
            if i == 0:
                counts += tl.histogram((key >> (8 * (PASSES - 1 - i))) + 128, 256, mask=column < n)
            else:
                agrees = (column < n) & ((key >> (8 * (PASSES - i))) == prefix)
                counts += tl.histogram((key >> (8 * (PASSES - 1 - i))) & 255, 256, mask=agrees)
        reached = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0) + counts  # keys with this digit or a larger one
        digit = tl.sum((reached >= wanted).to(tl.int32), axis=0) - 1
        wanted -= tl.sum(tl.where(digits > digit, counts, 0), axis=0)
        if i == 0:
            prefix = digit - 128
        else:
            prefix = prefix * 256 + digit
    written = prefix * 0
    equals = prefix * 0
    for first in range(0, n, COLUMNS):
        column = first + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
        key = key_of(values, among, row, column, n, row_stride, column_stride, HAS_AMONG, DROP)
        real = column < n
        equal = (real & (key == prefix)).to(tl.int32)
        rank = equals + tl.cumsum(equal, axis=0)  # counted from 1 at the equal ones
        taken = (real & (key > prefix)) | ((equal != 0) & (rank <= wanted))
        place = written + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        value = tl.load(values + row * row_stride + column * column_stride, mask=taken, other=0.0)
        if HAS_AMONG:
            allowed = tl.load(among + column, mask=taken, other=0)
            value = tl.where(allowed != 0, value, float("-inf")).to(value.dtype)
        tl.store(best + row * k + place, value, mask=taken)
        tl.store(latents + row * k + place, column, mask=taken)
        written += tl.sum(taken.to(tl.int32), axis=0)
        equals += tl.sum(equal, axis=0)


@torch.no_grad()
def topk(values: Tensor, k: int, *, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `mechvis.kernels.topk.topk`."""
    naive.require_shapes(values, k, among)
    n_rows, n = values.shape
    best = torch.empty(n_rows, k, dtype=values.dtype, device=values.device)
    latents = torch.empty(n_rows, k, dtype=torch.long, device=values.device)
    if best.numel():
        with on_device_of(values):
            _topk[(n_rows,)](
                values, values if among is None else among.contiguous(), best, latents, n, k, *values.stride(),
                HAS_AMONG=among is not None, PASSES=PASSES[values.dtype], COLUMNS=power_of_two(n, 16, COLUMNS),
            )  # fmt: skip
    return best, latents
