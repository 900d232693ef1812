"""The k largest latents of each row, and the threshold that keeps a number of values of a whole batch."""

import os

from jaxtyping import Bool
from torch import Tensor

from mechvis.kernels.dispatch import VARIABLE, choose
from mechvis.kernels.topk import chunked, naive
from mechvis.kernels.topk.histogram import Threshold, histogram, threshold_of
from mechvis.kernels.topk.naive import Largest, Latents, Values

__all__ = ["Threshold", "histogram", "threshold_of", "topk"]


def topk(values: Values, k: int, *, among: Bool[Tensor, " latent"] | None = None) -> tuple[Largest, Latents]:
    """The k largest values of each row and where they are, in ascending order of the latent.

    The answer is unique, so that every way of computing it gives the same bits: of equal values those of lower latents
    are taken, 0.0 and -0.0 are equal, NaN is larger than all numbers (it comes out, so that a look at the answer sees
    it), and NaNs are equal to each other. No gradients.

    Args:
        values: one row per token; any strides.
        k: how many; from 0 to the number of latents.
        among: latents that may be taken; None for all. The others count as -inf: where fewer than k may be taken, the
            rest of the row comes back with the value -inf at the lowest latents that are -inf.

    Returns:
        values, in the type they came in, and latents.

    Raises:
        ShapeMismatch: not a matrix, or a mask of another length.
        OutOfRange: k is negative or more than there are latents.

    Example:
        >>> import torch
        >>> topk(torch.tensor([[0.5, 3.0, 1.0, 3.0]]), 2)
        (tensor([[3., 3.]]), tensor([[1, 3]]))
    """
    if choose("topk", values) == "triton":
        from mechvis.kernels.topk import triton

        return triton.topk(values, k, among=among)
    plain = values.device.type != "cpu" or os.environ.get(VARIABLE, "").strip()
    return (naive if plain else chunked).topk(values, k, among=among)
