"""The kernels of `patch_rows`.

1. Out of place: one launch reads every entry of the activation once and writes it once. A program owns a block of
   slots `(row, token, group)` and looks each of them up in the ascending list of targets by bisection, so there is no
   copy before and no map from slots to targets.
2. In place: one launch over the targets alone.
3. Backward to the activation is the same edit of the gradient, without a table. Backward to the table sums over the
   targets that share an entry: targets are sorted by source, a program owns a stretch of one entry's targets and adds
   them up in their order. No atomics, so the same call gives the same bits.

Offsets: an activation of 2^31 entries or more is ordinary here (144 rows per image, 197 tokens, 3072 neurons: 25
images). Strides reach a kernel as int32 where they fit; every index that they are multiplied with is int64 first, so
each product and sum is 64 bit. Slots are counted in int64 as well.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels.language import cdiv, jit, on_device_of, power_of_two, tl
from mechvis.kernels.patch_rows.targets import flat, require_distinct, require_own_memory, require_shapes

# Entries per program. Not measured yet: 4096 are 32 per thread at four warps, which hides latency without spilling.
TILE = 4096


@jit
def _every_slot(
    x,  # [row token group width], any strides
    out,  # the same shape, strides of its own
    keys,  # int64 [target], ascending
    keep,  # [target]
    gain,  # [target]
    source,  # int64 [target]
    table,  # [entry width]
    n_slots,
    n_tokens,
    n_groups,
    width,
    n_targets,
    n_halvings,
    x_row,
    x_token,
    x_group,
    x_unit,
    out_row,
    out_token,
    out_group,
    out_unit,
    table_entry,
    table_unit,
    HAS_TABLE: tl.constexpr,
    SLOTS: tl.constexpr,
    UNITS: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64) * SLOTS + tl.arange(0, SLOTS)  # [SLOTS]
    unit = tl.program_id(1).to(tl.int64) * UNITS + tl.arange(0, UNITS)  # [UNITS]
    inside = slot < n_slots
    # First target that is not before the slot.
    low = slot * 0
    high = low + n_targets
    for _ in range(n_halvings):
        middle = (low + high) // 2
        open_ = low < high
        before = tl.load(keys + middle, mask=open_, other=0) < slot
        low = tl.where(open_ & before, middle + 1, low)
        high = tl.where(open_ & (before == 0), middle, high)
    hit = inside & (low < n_targets)
    hit = hit & (tl.load(keys + low, mask=hit, other=-1) == slot)
    kept = tl.load(keep + low, mask=hit, other=1.0).to(tl.float32)

    row, token, group = slot // n_groups // n_tokens, slot // n_groups % n_tokens, slot % n_groups
    mask = inside[:, None] & (unit < width)[None, :]  # [SLOTS, UNITS]
    # A value that is not kept is not even read.
    at = (row * x_row + token * x_token + group * x_group)[:, None] + (unit * x_unit)[None, :]
    old = tl.load(x + at, mask=mask & (kept != 0)[:, None], other=0.0)
    new = old.to(tl.float32) * kept[:, None]
    if HAS_TABLE:
        entry = tl.load(source + low, mask=hit, other=-1)
        uses = entry >= 0
        factor = tl.load(gain + low, mask=hit & uses, other=0.0).to(tl.float32)
        at = (entry * table_entry)[:, None] + (unit * table_unit)[None, :]
        new += tl.load(table + at, mask=mask & uses[:, None], other=0.0).to(tl.float32) * factor[:, None]
    new = tl.where(hit[:, None], new.to(old.dtype), old)
    at = (row * out_row + token * out_token + group * out_group)[:, None] + (unit * out_unit)[None, :]
    tl.store(out + at, new, mask=mask)


@jit
def _targets_only(
    x,  # [row token group width], any strides; read and written
    keys,  # int64 [target]
    keep,  # [target]
    gain,  # [target]
    source,  # int64 [target]
    table,  # [entry width], other memory than x
    n_targets,
    n_tokens,
    n_groups,
    width,
    x_row,
    x_token,
    x_group,
    x_unit,
    table_entry,
    table_unit,
    HAS_TABLE: tl.constexpr,
    TARGETS: tl.constexpr,
    UNITS: tl.constexpr,
):
    target = tl.program_id(0).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)  # [TARGETS]
    unit = tl.program_id(1).to(tl.int64) * UNITS + tl.arange(0, UNITS)  # [UNITS]
    inside = target < n_targets
    slot = tl.load(keys + target, mask=inside, other=0)
    kept = tl.load(keep + target, mask=inside, other=0.0).to(tl.float32)
    row, token, group = slot // n_groups // n_tokens, slot // n_groups % n_tokens, slot % n_groups
    mask = inside[:, None] & (unit < width)[None, :]  # [TARGETS, UNITS]
    at = (row * x_row + token * x_token + group * x_group)[:, None] + (unit * x_unit)[None, :]
    old = tl.load(x + at, mask=mask & (kept != 0)[:, None], other=0.0)
    new = old.to(tl.float32) * kept[:, None]
    if HAS_TABLE:
        entry = tl.load(source + target, mask=inside, other=-1)
        uses = entry >= 0
        factor = tl.load(gain + target, mask=inside & uses, other=0.0).to(tl.float32)
        from_ = (entry * table_entry)[:, None] + (unit * table_unit)[None, :]
        new += tl.load(table + from_, mask=mask & uses[:, None], other=0.0).to(tl.float32) * factor[:, None]
    tl.store(x + at, new.to(old.dtype), mask=mask)


@jit
def _sum_per_entry(
    grad,  # [row token group width], any strides
    keys,  # int64 [target], sorted by source
    gain,  # [target], in the same order
    starts,  # int64 [entry + 1]: first target of each entry
    out,  # float32 [share entry width], contiguous
    n_entries,
    n_tokens,
    n_groups,
    width,
    grad_row,
    grad_token,
    grad_group,
    grad_unit,
    SHARES: tl.constexpr,
    TARGETS: tl.constexpr,
    UNITS: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1).to(tl.int64) * UNITS + tl.arange(0, UNITS)  # [UNITS]
    share = tl.program_id(2).to(tl.int64)
    first, stop = tl.load(starts + entry), tl.load(starts + entry + 1)
    length = (stop - first + SHARES - 1) // SHARES
    first += share * length
    stop = tl.minimum(first + length, stop)
    total = tl.zeros([TARGETS, UNITS], dtype=tl.float32)
    for start in range(first, stop, TARGETS):
        target = start + tl.arange(0, TARGETS)  # [TARGETS]
        inside = target < stop
        slot = tl.load(keys + target, mask=inside, other=0)
        factor = tl.load(gain + target, mask=inside, other=0.0).to(tl.float32)
        row, token, group = slot // n_groups // n_tokens, slot // n_groups % n_tokens, slot % n_groups
        at = (row * grad_row + token * grad_token + group * grad_group)[:, None] + (unit * grad_unit)[None, :]
        mask = inside[:, None] & (unit < width)[None, :]
        total += tl.load(grad + at, mask=mask, other=0.0).to(tl.float32) * factor[:, None]
    at = (share * n_entries + entry) * width + unit
    tl.store(out + at, tl.sum(total, axis=0), mask=unit < width)


def patch_rows(x, row, token, group, keep, gain, table=None, source=None, *, check=True) -> Tensor:
    """See `mechvis.kernels.patch_rows.patch_rows`."""
    if row.numel() == 0 or x.numel() == 0:
        return x
    targets = _prepare(x, row, token, group, keep, gain, table, source, check, sort=True)
    return _PatchRows.apply(x, *targets, False)


def patch_rows_(x, row, token, group, keep, gain, table=None, source=None, *, check=True) -> Tensor:
    """See `mechvis.kernels.patch_rows.patch_rows_`."""
    require_own_memory(x)
    if row.numel() == 0 or x.numel() == 0:
        return x
    table, *targets = _prepare(x, row, token, group, keep, gain, table, source, check, sort=x.requires_grad)
    if table is not None and table.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        # Otherwise one program might read what another one has already replaced.
        table = table.clone()
    return _PatchRows.apply(x, table, *targets, True)


def _prepare(x, row, token, group, keep, gain, table, source, check: bool, *, sort: bool) -> tuple:
    """table, keys, keep, gain, source; sorted by key where the kernel bisects."""
    require_shapes(x, {"row": row, "token": token, "group": group, "keep": keep, "gain": gain}, table, source)
    if table is None or source is None or table.shape[0] == 0:
        table = source = None
    # Without a check nobody knows the order, and asking would wait for the device just the same: sort at once.
    ascends = check and require_distinct(x.shape, row, token, group, source, None if table is None else len(table))
    keys = flat(x.shape, row, token, group)
    if sort and not ascends:
        keys, order = keys.sort()
        keep, gain, source = keep[order], gain[order], None if source is None else source[order]
    source = None if source is None else source.long().contiguous()
    return table, keys.contiguous(), keep.contiguous(), gain.contiguous(), source


class _PatchRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, keys, keep, gain, source, in_place):
        ctx.save_for_backward(keys, keep, gain, source)
        ctx.table = None if table is None else (len(table), table.dtype)
        if not in_place:
            return _launch(x, table, keys, keep, gain, source)
        ctx.mark_dirty(x)
        _launch_in_place(x, table, keys, keep, gain, source)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        keys, keep, gain, source = ctx.saved_tensors
        to_x = _launch(grad, None, keys, keep, gain, None) if ctx.needs_input_grad[0] else None
        to_table = _to_table(grad, *ctx.table, keys, gain, source) if ctx.needs_input_grad[1] else None
        return to_x, to_table, None, None, None, None, None


def _launch(x: Tensor, table: Tensor | None, keys: Tensor, keep: Tensor, gain: Tensor, source: Tensor | None) -> Tensor:
    rows, tokens, groups, width = x.shape
    # Expanded dimensions become real ones here; other layouts stay, so that reads and writes are coalesced alike.
    out = torch.empty_like(x)
    units = power_of_two(width, most=256)
    slots = TILE // units
    grid = (cdiv(rows * tokens * groups, slots), cdiv(width, units))
    with on_device_of(x):
        _every_slot[grid](
            x, out, keys, keep, gain, keys if source is None else source, x if table is None else table,
            rows * tokens * groups, tokens, groups, width, len(keys), len(keys).bit_length(),
            *x.stride(), *out.stride(), *((0, 0) if table is None else table.stride()),
            HAS_TABLE=table is not None, SLOTS=slots, UNITS=units,
        )  # fmt: skip
    return out


def _launch_in_place(
    x: Tensor, table: Tensor | None, keys: Tensor, keep: Tensor, gain: Tensor, source: Tensor | None
) -> None:
    _, tokens, groups, width = x.shape
    units = power_of_two(width, most=256)
    targets = TILE // units
    with on_device_of(x):
        _targets_only[(cdiv(len(keys), targets), cdiv(width, units))](
            x, keys, keep, gain, keys if source is None else source, x if table is None else table,
            len(keys), tokens, groups, width, *x.stride(), *((0, 0) if table is None else table.stride()),
            HAS_TABLE=table is not None, TARGETS=targets, UNITS=units,
        )  # fmt: skip


def _to_table(grad: Tensor, n_entries: int, dtype: torch.dtype, keys: Tensor, gain: Tensor, source: Tensor) -> Tensor:
    _, tokens, groups, width = grad.shape
    # Stable, so that the order of summation is the order of the targets.
    source, order = source.sort(stable=True)
    starts = torch.searchsorted(source, torch.arange(n_entries + 1, device=grad.device))
    each = cdiv(len(keys), n_entries)
    # One vector added everywhere is one entry with all targets: shared among programs, their sums added in order.
    shares = power_of_two(each // 512, most=64)
    units, targets = power_of_two(width, most=128), power_of_two(each, most=32)
    out = torch.empty(shares, n_entries, width, dtype=torch.float32, device=grad.device)
    with on_device_of(grad):
        _sum_per_entry[(n_entries, cdiv(width, units), shares)](
            grad, keys[order], gain[order], starts, out, n_entries, tokens, groups, width, *grad.stride(),
            SHARES=shares, TARGETS=targets, UNITS=units,
        )  # fmt: skip
    return out.sum(0).to(dtype)
