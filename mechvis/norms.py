"""What a norm does, seen from outside: what it divides, by what, and what it puts on top."""

import torch
from torch import Tensor, nn

from mechvis.axes import Residual


def statistics(norm: nn.Module, x: Residual) -> tuple[Residual, Tensor]:
    """What a norm divides, and what by `[row token 1]`; a stand-in for no norm (nn.Identity) divides by one."""
    if not hasattr(norm, "eps"):
        return x, torch.ones_like(x[..., :1])
    centred = x if is_rms(norm) else x - x.mean(-1, keepdim=True)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    return centred, (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def is_rms(norm: nn.Module) -> bool:
    """Does this norm divide by the root mean square without taking the mean off?"""
    return any("rms" in cls.__name__.lower() for cls in type(norm).__mro__)


def gain(norm: nn.Module, x: Tensor) -> Tensor:
    """The learned factor of a norm on something already divided."""
    return x if getattr(norm, "weight", None) is None else x * norm.weight


def gain_and_bias(norm: nn.Module, x: Tensor) -> Tensor:
    """The learned part of a norm on something already divided."""
    x = gain(norm, x)
    return x if getattr(norm, "bias", None) is None else x + norm.bias
