"""Batched patching: many small edits of one activation in one call."""

from jaxtyping import Float
from torch import Tensor

from mechvis.kernels.dispatch import choose
from mechvis.kernels.patch_rows import naive
from mechvis.kernels.patch_rows.naive import Activation, Factor, Index

__all__ = ["patch_rows", "patch_rows_"]


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
    """The activation with every target edited; `x` itself is not changed.

    `out[row, token, group] = keep * x[row, token, group] + gain * table[source]`, and everything else as it was, bit
    for bit. Where keep is 0 the old value does not matter, not even a NaN. Gradients flow to `x` (times keep) and to
    `table` (times gain). Without targets, the answer is `x` itself.

    Args:
        x: activation of any strides; the stream `[row token d_model]` goes in as `x[:, :, None]`.
        row, token, group: index of each target, counted from 0.
        keep: factor on the old value.
        gain: factor on the table's value.
        table: replacement or additive values; None if no target uses one.
        source: row of the table for each target; -1 for none.
        check: look for targets that are missing or come twice. On a GPU this waits for the device once; a caller that
            made the targets itself can do without.

    Raises:
        ShapeMismatch: arrays that do not fit each other.
        OutOfRange: a target or source that does not exist.
        BadData: a target that comes twice.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 1, 2, 3)
        >>> one = torch.tensor([1]); zero = torch.tensor([0.])
        >>> patch_rows(x, one, one * 0, one, zero, zero)[1, 0].tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return _twin(x, keep, gain, table).patch_rows(x, row, token, group, keep, gain, table, source, check=check)


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
    """`patch_rows` in place: touches the targets only, and returns `x`.

    All values are read before the first is written, so `table` may be a view of `x`.

    Raises:
        BadData: `x` is an expanded tensor, or a target comes twice.
        ShapeMismatch, OutOfRange: as `patch_rows`.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 2, 1, 2)
        >>> at = torch.tensor([0]); half = torch.tensor([0.5])
        >>> patch_rows_(x, at, at, at, half, half).tolist()
        [[[[0.5, 0.5]], [[1.0, 1.0]]]]
    """
    return _twin(x, keep, gain, table).patch_rows_(x, row, token, group, keep, gain, table, source, check=check)


def _twin(x: Tensor, keep: Tensor, gain: Tensor, table: Tensor | None):
    # The kernel takes the factors as constants.
    if keep.requires_grad or gain.requires_grad or choose("patch_rows", x, table) == "naive":
        return naive
    from mechvis.kernels.patch_rows import triton

    return triton
