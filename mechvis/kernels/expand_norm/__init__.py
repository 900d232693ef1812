"""From the clean stream and what each head changes to the rows of a head sweep, with their LayerNorm."""

from mechvis.kernels.dispatch import choose
from mechvis.kernels.expand_norm import naive
from mechvis.kernels.expand_norm.naive import Change, Rows, Stream, Vector, Weight

__all__ = ["expand_norm"]


def expand_norm(
    mid: Stream,
    change: Change,
    weight: Weight,
    scale: Vector | None = None,
    norm_weight: Vector | None = None,
    norm_bias: Vector | None = None,
    *,
    eps: float,
    out: Rows | None = None,
) -> tuple[Rows, Rows]:
    """One row of the stream per image and unit, and the same rows after LayerNorm.

    A head whose z changes by `change` changes the stream after attention by `change @ W_O[head]` (times LayerScale);
    the MLP half of the block then reads the normed rows, and adds to the rows. The kernel writes each of the two once
    and never holds the change in `d_model`. Gradients flow to all tensors, from either output.

    Args:
        mid: the clean stream after attention.
        change: new minus old z of each unit's head.
        weight: W_O of each unit's head.
        scale: LayerScale of the attention half.
        norm_weight, norm_bias: LayerNorm of the MLP half.
        eps: of that LayerNorm.
        out: where to put the rows (contiguous; without gradients only).

    Returns:
        rows and normed rows, in the type of `mid`; contiguous.

    Raises:
        ShapeMismatch: arrays that do not fit each other, or an `out` that is not contiguous or wants gradients.

    Example:
        >>> import torch
        >>> rows, normed = expand_norm(torch.zeros(2, 5, 8), torch.ones(2, 5, 3, 4), torch.ones(3, 4, 8), eps=1e-6)
        >>> rows.shape, rows.unique().tolist(), normed.unique().tolist()
        (torch.Size([3, 2, 5, 8]), [4.0], [0.0])
    """
    tensors = (mid, change, weight, scale, norm_weight, norm_bias)
    if choose("expand_norm", *tensors) == "naive":
        return naive.expand_norm(*tensors, eps=eps, out=out)
    from mechvis.kernels.expand_norm import triton

    return triton.expand_norm(*tensors, eps=eps, out=out)
