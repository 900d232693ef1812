"""The kernel of `sparse_decode`: a program owns a row and a block of columns and walks over the row's entries.

A few entries are read at once, each with its lane of the sum; the lanes are added at the end. So the order of the sum
is fixed by the size of the tile alone, there are no atomics, and nothing but the output is written.

Offsets are 64 bit: rows and latents are int64 before they meet a stride.
"""

import torch
from torch import Tensor

from mechvis.kernels.language import cdiv, jit, on_device_of, power_of_two, tl
from mechvis.kernels.sparse_decode import naive
from mechvis.kernels.support import Support

# Entries and columns that a program reads at once. Not measured yet: 2048 are 16 per thread at four warps.
ENTRIES, COLUMNS = 8, 256


@jit
def _decode(
    values,  # [entry]
    latents,  # int64 [entry]
    offsets,  # int64 [row + 1]
    weight,  # [latent d], any strides
    out,  # float32 [row d], contiguous
    width,
    weight_latent,
    weight_column,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    first, stop = tl.load(offsets + row), tl.load(offsets + row + 1)
    total = tl.zeros([ENTRIES, COLUMNS], dtype=tl.float32)
    for start in range(first, stop, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)  # [ENTRIES]
        inside = entry < stop
        latent = tl.load(latents + entry, mask=inside, other=0)
        value = tl.load(values + entry, mask=inside, other=0.0).to(tl.float32)
        at = (latent * weight_latent)[:, None] + (column * weight_column)[None, :]
        mask = inside[:, None] & (column < width)[None, :]
        total += tl.load(weight + at, mask=mask, other=0.0).to(tl.float32) * value[:, None]
    tl.store(out + row * width + column, tl.sum(total, axis=0), mask=column < width)


@torch.no_grad()
def sparse_decode(values: Tensor, support: Support, weight: Tensor) -> Tensor:
    """See `mechvis.kernels.sparse_decode.sparse_decode`."""
    naive.require_shapes(values, support, weight)
    width = weight.shape[1]
    out = torch.empty(support.n_rows, width, dtype=torch.float32, device=weight.device)
    if not out.numel():
        return out
    columns = power_of_two(width, most=COLUMNS)
    with on_device_of(weight):
        _decode[(support.n_rows, cdiv(width, columns))](
            values.contiguous(), support.latents.long().contiguous(), support.offsets.long().contiguous(), weight, out,
            width, *weight.stride(), ENTRIES=ENTRIES, COLUMNS=columns,
        )  # fmt: skip
    return out
