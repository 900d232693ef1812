"""A step at a learned place, and gradients for it: straight-through estimators (2407.14435, Anthropic January 2025).

A step has no slope where it is flat and an infinite one where it is not. In training a finite one is put in its place,
K = 1 where |z - θ| < ε/2 and 0 elsewhere, over the width ε of that window:

    jump(z, θ) = z H(z - θ)    ∂/∂z = H(z - θ)    ∂/∂θ = -(θ/ε) K
    above(z, θ) = H(z - θ)     ∂/∂z = 0           ∂/∂θ = -(1/ε) K

With `to_input`, z gets what θ gets with the other sign on top, since the step depends on z - θ alone.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def jump(z: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
    """z H(z - θ), with the estimator's gradients.

    Args:
        z: pre-activations, any shape.
        theta: thresholds, of a shape that fits.
        bandwidth: ε.
        to_input: does the estimator reach z?
    """
    return _Jump.apply(z, theta.expand_as(z), bandwidth, to_input)


def above(z: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
    """H(z - θ), with the estimator's gradients; arguments as for `jump`."""
    return _Above.apply(z, theta.expand_as(z), bandwidth, to_input)


def window(z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """K((z - θ)/ε)."""
    return (((z - theta) / bandwidth).abs() < 0.5).to(z.dtype)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, bandwidth, to_input):
        ctx.save_for_backward(z, theta)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return torch.where(z > theta, z, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        estimate = grad * theta / ctx.bandwidth * window(z, theta, ctx.bandwidth)
        to_z = torch.where(z > theta, grad, 0.0)
        return to_z + estimate if ctx.to_input else to_z, -estimate, None, None


class _Above(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, bandwidth, to_input):
        ctx.save_for_backward(z, theta)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return (z > theta).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        estimate = grad / ctx.bandwidth * window(z, theta, ctx.bandwidth)
        return estimate if ctx.to_input else None, -estimate, None, None
