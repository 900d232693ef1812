"""Reconstruction from a few latents per row: the decoder of a dictionary without its zeros."""

from mechvis.kernels.dispatch import choose
from mechvis.kernels.sparse_decode import naive
from mechvis.kernels.sparse_decode.naive import Decoded, Values, Weight
from mechvis.kernels.support import Support

__all__ = ["sparse_decode"]


def sparse_decode(values: Values, support: Support, weight: Weight) -> Decoded:
    """Weighted sum of a few rows of a matrix, per row: `out[row] = sum over its entries of value * weight[latent]`.

    The same as `support.dense(values) @ weight`, from `len(support) * d` products in place of `row * latent * d`. Rows
    without entries are zero; an entry that comes twice counts twice. No gradients: `entry_products` and `segment_sum`
    of `mechvis.kernels.sparse_grad` compute them.

    Args:
        values: value of each entry.
        support: where the entries are.
        weight: one row per latent; any strides.

    Returns:
        the sums, float32 (float64 if either input is float64): sums of narrower types are taken in float32.

    Raises:
        ShapeMismatch: sizes that do not fit each other.

    Example:
        >>> import torch
        >>> support = Support.from_mask(torch.tensor([[True, False, True], [False, False, False]]))
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> sparse_decode(torch.tensor([1.0, 10.0]), support, weight).tolist()
        [[51.0, 62.0], [0.0, 0.0]]
    """
    if choose("sparse_decode", values, weight) == "naive":
        return naive.sparse_decode(values, support, weight)
    from mechvis.kernels.sparse_decode import triton

    return triton.sparse_decode(values, support, weight)
