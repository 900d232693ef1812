"""Backward through the plain twin: what a kernel without a backward of its own does with gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Vector-Jacobian product of `function(*inputs)`, which is computed once more for it.

    Args:
        function: the plain twin.
        inputs: its tensors; None where the call had none.
        needs: which gradients are wanted.
        grad: gradient of the output.

    Returns:
        a gradient for each input, None where none is wanted.
    """
    leaves = [t if t is None else t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
    wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(function(*leaves), wanted, grad, allow_unused=True))
    return [next(found) if need else None for need in needs]
