"""Hard-concrete gates: random gates in [0, 1] that are often exactly 0 or 1 and yet have a gradient (Louizos et al.
2018; methods.md 5.6 **C**).

    u ~ U(0, 1);  s = sigmoid((log u - log(1 - u) + log_alpha) / T);  gate = clamp(low + (high - low) s, 0, 1)

with T = 2/3 and the stretch (low, high) = (-0.1, 1.1). Without noise the gate is `clamp(low + (high - low)
sigmoid(log_alpha), 0, 1)`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Alphas = Float[Tensor, " gate"]

TEMPERATURE = 2 / 3
STRETCH = (-0.1, 1.1)
_SMALLEST = 1e-6
"""Noise is drawn from (this, 1 - this): its logit must be finite."""


def sampled(
    log_alpha: Alphas,
    noise: Float[Tensor, "draw gate"],
    *,
    temperature: float = TEMPERATURE,
    stretch: tuple[float, float] = STRETCH,
) -> Float[Tensor, "draw gate"]:
    """Random gates.

    Args:
        log_alpha: how open each gate is, as log-odds.
        noise: uniform in (0, 1), from :func:`noise`.
        temperature: small: gates are nearly binary, and gradients rare.
        stretch: the interval that is clamped to [0, 1]: what lies outside gives exact zeros and ones.

    Example:
        >>> sampled(torch.tensor([0.0]), torch.tensor([[0.5]]))
        tensor([[0.5000]])
    """
    return _clamped(torch.sigmoid((noise.log() - (-noise).log1p() + log_alpha) / temperature), stretch)


def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform noise, the same on every device.

    Args:
        shape: of the noise.
        generator: on the CPU.
        like: gives device and dtype.
    """
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (_SMALLEST + (1 - 2 * _SMALLEST) * drawn).to(like.device, like.dtype)


def settled(log_alpha: Alphas, *, stretch: tuple[float, float] = STRETCH) -> Alphas:
    """The gates without noise.

    Example:
        >>> settled(torch.tensor([-5.0, 0.0, 5.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return _clamped(torch.sigmoid(log_alpha), stretch)


def discrete(log_alpha: Alphas, gates: Alphas) -> Bool[Tensor, " gate"]:
    """The gates that stay open: as many as the mean of the soft ones says, by a threshold found by bisection (**C**).

    Gates of equal openness stay or go together; so that number is met as closely as they allow.

    Args:
        log_alpha: what gates are compared by.
        gates: the soft gates, whose mean is the share to keep.

    Example:
        >>> discrete(torch.tensor([3.0, -3.0, 0.1]), torch.tensor([1.0, 0.0, 0.5]))
        tensor([ True, False,  True])
    """
    wanted = float(gates.double().sum())
    values = log_alpha.double()
    low, high = float(values.min()) - 1, float(values.max()) + 1
    for _ in range(100):
        middle = (low + high) / 2
        if float((values > middle).sum()) > wanted:
            low = middle
        else:
            high = middle
    more, fewer = values > low, values > high
    return more if abs(float(more.sum()) - wanted) <= abs(float(fewer.sum()) - wanted) else fewer


def _clamped(s: Tensor, stretch: tuple[float, float]) -> Tensor:
    low, high = stretch
    return (low + (high - low) * s).clamp(0, 1)
