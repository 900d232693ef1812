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


def patch_rows(
    x: Float[Tensor, "row token group width"],
    row: Int[Tensor, " target"],
    token: Int[Tensor, " target"],
    group: Int[Tensor, " target"],
    keep: Float[Tensor, " target"],
    gain: Float[Tensor, " target"],
    table: Float[Tensor, "entry width"] | None = None,
    source: Int[Tensor, " target"] | None = None,
) -> Float[Tensor, "row token group width"]:
    """The activation with every target edited; `x` itself is not changed.

    Targets must be distinct (`mechvis.plan` sees to it). Where keep is 0 the old value does not matter, not even a
    NaN. Gradients flow to `x` (times keep) and to `table` (times gain).

    Args:
        x: activation.
        row, token, group: index of each target.
        keep: factor on the old value.
        gain: factor on the table's value.
        table: replacement or additive values; None if no target uses one.
        source: row of the table for each target; -1 for none.

    Example:
        >>> x = torch.ones(2, 1, 2, 3)
        >>> one = torch.tensor([1]); zero = torch.tensor([0.])
        >>> patch_rows(x, one, one * 0, one, zero, zero)[1, 0].tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if row.numel() == 0:
        return x
    old = x[row, token, group]
    new = torch.where(keep[:, None] == 0, torch.zeros_like(old), old * keep[:, None])
    if table is not None and source is not None:
        uses = source >= 0
        values = table[source.clamp(min=0)]
        new = new + torch.where(uses[:, None], values * gain[:, None], torch.zeros_like(values))
    return x.index_put((row, token, group), new.to(x.dtype))
