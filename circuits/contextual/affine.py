"""Is a part of the user's model a linear map plus a bias? Asked by trying, since parts are functions.

Sharing a bias, and sending beta alone through a map, are right for affine maps only. A projection with a norm behind it
(q/k norm) or an adapter that is more than a product looks the same from outside. So a map is tried on activations of
the run: `f(a + b) + f(0) = f(a) + f(b)` holds for affine maps and for nothing else that occurs here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest deviation from additivity, relative to the largest value that takes part."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a map is, per output."""

    affine: tuple[bool, ...]
    """Is it a linear map plus a bias?"""
    zero: tuple[Tensor, ...]
    """The bias: what comes out of zeros, for one row."""


def together(value: Any) -> tuple[Tensor, ...]:
    """One tensor or several as several."""
    return value if isinstance(value, tuple) else tuple(value) if isinstance(value, list) else (value,)


@torch.no_grad()
def shape_of(f: Callable[[Tensor], Any], x: Tensor) -> Shape:
    """Try a map.

    Args:
        f: a map of rows; its output is one tensor or several.
        x: what it is applied to in this run, `[row ...]`.

    Example:
        >>> shape_of(torch.nn.Linear(3, 2), torch.randn(4, 3)).affine
        (True,)
    """
    a = x[:1]
    # A second, different input of the same kind: another image, or the same one with its tokens turned round.
    b = x[-1:] if len(x) > 1 else a.flip(1)
    both, zero, first, second = (together(f(v)) for v in (a + b, torch.zeros_like(a), a, b))
    found = []
    for parts in zip(both, zero, first, second, strict=True):
        largest = max(float(part.abs().max()) for part in parts)
        gap = float((parts[0] + parts[1] - parts[2] - parts[3]).abs().max())
        found.append(gap <= TOLERANCE.get(x.dtype, 1e-4) * max(largest, torch.finfo(x.dtype).tiny))
    return Shape(affine=tuple(found), zero=zero)
