"""Do two ways of computing one thing differ by more than rounding?"""

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Largest deviation that rounding explains, as a share of the largest value."""
TF32 = 3e-3
"""The same for float32 whose products were allowed to round their factors."""


def deviation(own: Tensor, expected: Tensor) -> float:
    """Largest deviation, as a share of the largest value; NaN where either has one."""
    return float((own - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))


def same(own: Tensor, expected: Tensor) -> bool:
    """Is the deviation rounding? Never where there is a NaN, or another shape."""
    return own.shape == expected.shape and deviation(own, expected) <= tolerance(expected)


def tolerance(like: Tensor) -> float:
    """What rounding explains for tensors of a type, where they are."""
    rounded = like.is_cuda and like.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return TF32 if rounded else TOLERANCE[like.dtype]
