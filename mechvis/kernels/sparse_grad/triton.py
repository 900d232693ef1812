"""The kernels of the sparse gradients. No atomics: sums have an order that the sizes of the tiles fix.

1. `entry_products`: a program owns a few entries of the flat list, whatever rows they are of, and walks over columns.
   Entries of one row lie side by side, so that the row comes from the cache.
2. `segment_sum`: a program owns a latent and a block of columns, and walks over the latent's entries in the order of
   `Support.by_latent`. While it holds the sum it also writes its squared norm and its product with a row of another
   matrix, one number per block of columns; the blocks are added afterwards.
3. `column_sums` is a `segment_sum` of rows that hold a single one.

Offsets are 64 bit: rows and latents are int64 before they meet a stride.
"""

import torch
from torch import Tensor

from mechvis.kernels.language import cdiv, jit, on_device_of, power_of_two, tl
from mechvis.kernels.sparse_grad import naive
from mechvis.kernels.support import Support

# Not measured yet. Entries of a product, and columns that it reads at once.
PAIRS, PAIR_COLUMNS = 8, 128
# Numbers that a segment reads at once, and columns of them; many latents have fewer entries than rows fit the tile.
TILE, COLUMNS = 2048, 256


@jit
def _pairs(
    a,  # [row d], any strides
    weight,  # [latent d], any strides
    rows,  # int64 [entry]
    latents,  # int64 [entry]
    out,  # float32 [entry]
    n_entries,
    width,
    a_row,
    a_column,
    weight_latent,
    weight_column,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)  # [ENTRIES]
    inside = entry < n_entries
    row = tl.load(rows + entry, mask=inside, other=0)
    latent = tl.load(latents + entry, mask=inside, other=0)
    total = tl.zeros([ENTRIES, COLUMNS], dtype=tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
        mask = inside[:, None] & (column < width)[None, :]
        at = (row * a_row)[:, None] + (column * a_column)[None, :]
        left = tl.load(a + at, mask=mask, other=0.0).to(tl.float32)
        at = (latent * weight_latent)[:, None] + (column * weight_column)[None, :]
        total += left * tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + entry, tl.sum(total, axis=1), mask=inside)


@jit
def _segments(
    values,  # [entry]
    rows,  # int64 [entry]
    order,  # int64 [entry]: the entries in the order of their latents
    starts,  # int64 [latent + 1]: where each latent's entries start in it
    x,  # [row d], any strides
    against,  # [latent d], any strides
    out,  # float32 [latent d], contiguous
    squares,  # float32 [block latent]
    inner,  # float32 [block latent]
    n_latents,
    width,
    x_row,
    x_column,
    against_latent,
    against_column,
    WITH_NORMS: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    column = block * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    real = column < width
    first, stop = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros([ENTRIES, COLUMNS], dtype=tl.float32)
    for start in range(first, stop, ENTRIES):
        place = start + tl.arange(0, ENTRIES)  # [ENTRIES]
        inside = place < stop
        entry = tl.load(order + place, mask=inside, other=0)
        row = tl.load(rows + entry, mask=inside, other=0)
        value = tl.load(values + entry, mask=inside, other=0.0).to(tl.float32)
        at = (row * x_row)[:, None] + (column * x_column)[None, :]
        total += tl.load(x + at, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32) * value[:, None]
    found = tl.sum(total, axis=0)  # [COLUMNS]
    tl.store(out + latent * width + column, found, mask=real)
    if WITH_NORMS:
        other = tl.load(against + latent * against_latent + column * against_column, mask=real, other=0.0)
        tl.store(squares + block * n_latents + latent, tl.sum(found * found, axis=0))
        tl.store(inner + block * n_latents + latent, tl.sum(found * other.to(tl.float32), axis=0))


@torch.no_grad()
def entry_products(a: Tensor, weight: Tensor, support: Support) -> Tensor:
    """See `mechvis.kernels.sparse_grad.entry_products`."""
    naive.require_products(a, weight, support)
    out = torch.empty(len(support), dtype=torch.float32, device=a.device)
    if not len(support):
        return out
    with on_device_of(a):
        _pairs[(cdiv(len(support), PAIRS),)](
            a, weight, support.rows.long().contiguous(), support.latents.long().contiguous(), out, len(support),
            a.shape[1], *a.stride(), *weight.stride(), ENTRIES=PAIRS,
            COLUMNS=power_of_two(a.shape[1], most=PAIR_COLUMNS),
        )  # fmt: skip
    return out


@torch.no_grad()
def segment_sum(
    values: Tensor, x: Tensor, support: Support, *, against: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """See `mechvis.kernels.sparse_grad.segment_sum`."""
    naive.require_segments(values, x, support, against)
    n, width = support.n_latents, x.shape[1]
    columns = power_of_two(width, most=COLUMNS)
    blocks = cdiv(width, columns)
    out = torch.empty(n, width, dtype=torch.float32, device=x.device)
    norms = torch.empty(2, blocks, n if against is not None else 0, dtype=torch.float32, device=x.device)
    if out.numel():
        order, starts = support.by_latent
        with on_device_of(x):
            _segments[(n, blocks)](
                values.contiguous(), support.rows.long().contiguous(), order, starts, x,
                x if against is None else against, out, norms[0], norms[1], n, width, *x.stride(),
                *((0, 0) if against is None else against.stride()), WITH_NORMS=against is not None,
                ENTRIES=power_of_two(TILE // columns, most=64), COLUMNS=columns,
            )  # fmt: skip
    if against is None:
        return out
    squares, inner = norms.sum(1)
    return out, squares, inner


@torch.no_grad()
def column_sums(values: Tensor, support: Support) -> Tensor:
    """See `mechvis.kernels.sparse_grad.column_sums`."""
    naive.require_values("column_sums", values, support)
    one = torch.ones(1, 1, dtype=torch.float32, device=values.device)
    return segment_sum(values, one.expand(support.n_rows, 1), support)[:, 0]
