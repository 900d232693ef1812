"""Apply a list of small edits to one activation: the plain twin of the kernel, and what runs on a CPU.

Every kind of patching is one affine rule per target `(row, token, group)`:

    out[row, token, group] = keep * x[row, token, group] + gain * table[source]

==============  ====  ====================  =================================
edit            keep  gain                  table
==============  ====  ====================  =================================
zero            0     0                     unused (source -1)
mean, patch     0     1                     means, or another run's values
add (steer)     1     strength              the vector
scale           g     0                     unused
==============  ====  ====================  =================================

`group` is a head, the whole stream (one group), or a single unit, depending on how the caller views the last axes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.kernels.patch_rows.targets import require_distinct, require_own_memory, require_shapes

Activation = Float[Tensor, "row token group width"]
Index = Int[Tensor, " target"]
Factor = Float[Tensor, " target"]


def patch_rows(
    x: Activation,
    row: Index,
    token: Index,
    group: Index,
    keep: Factor,
    gain: Factor,
    table: Float[Tensor, "entry width"] | None = None,
    source: Index | None = None,
    *,
    check: bool = True,
) -> Activation:
    """See `mechvis.kernels.patch_rows.patch_rows`."""
    if row.numel() == 0:
        return x
    if check:
        _require(x, row, token, group, keep, gain, table, source)
    return x.index_put((row, token, group), _edited(x[row, token, group], keep, gain, table, source))


def patch_rows_(
    x: Activation,
    row: Index,
    token: Index,
    group: Index,
    keep: Factor,
    gain: Factor,
    table: Float[Tensor, "entry width"] | None = None,
    source: Index | None = None,
    *,
    check: bool = True,
) -> Activation:
    """See `mechvis.kernels.patch_rows.patch_rows_`."""
    require_own_memory(x)
    if row.numel() == 0:
        return x
    if check:
        _require(x, row, token, group, keep, gain, table, source)
    return x.index_put_((row, token, group), _edited(x[row, token, group], keep, gain, table, source))


def _require(x, row, token, group, keep, gain, table, source) -> None:
    targets = {"row": row, "token": token, "group": group, "keep": keep, "gain": gain}
    require_shapes(x, targets, table, source)
    require_distinct(x.shape, row, token, group, source, None if table is None else len(table))


def _edited(old: Tensor, keep: Factor, gain: Factor, table: Tensor | None, source: Index | None) -> Tensor:
    """New values of the targets, `[target width]`."""
    new = torch.where(keep[:, None] == 0, torch.zeros_like(old), old * keep[:, None])
    if table is not None and source is not None:
        uses = source >= 0
        values = table[source.clamp(min=0)]
        new = new + torch.where(uses[:, None], values * gain[:, None], torch.zeros_like(values))
    return new.to(old.dtype)
