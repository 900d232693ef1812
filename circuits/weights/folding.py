"""What a norm's learned gain does to the weights that read behind it.

A LayerNorm gives `(x - mean(x)) / s * gain + bias`. Once the scale `s` is taken as it comes, that is linear in x, so
the weights behind it read the stream itself through

    W' = C diag(gain) W,        C = I - 1 1^T / d_model   (an RMSNorm takes no mean off: C = I)

and `x W' / s + bias W` is what `norm(x) W` is. Folding is a change of what one multiplies, never of the model. It
matters wherever a direction *of the stream* is meant: unfolded weights read the stream after its gain, in which a
channel of gain 3 counts three times (methods.md 2.7, choice **X**).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.weights.exact import allowed
from mechvis.errors import RefusedMethod
from mechvis.norms import gain, gain_and_bias, is_rms, statistics


def fold(norm: nn.Module, weight: Float[Tensor, "*head d_model out"]) -> Float[Tensor, "*head d_model out"]:
    """Weights that read behind a norm, as they read the centred and divided stream before its gain.

    Args:
        norm: a LayerNorm, an RMSNorm, or nn.Identity for none.
        weight: what multiplies the norm's output, its rows along d_model.

    Returns:
        The same shape; the type is at least float32.

    Raises:
        RefusedMethod: the norm does something else than divide, multiply and add.

    Example:
        >>> norm = torch.nn.LayerNorm(3)
        >>> torch.nn.init.constant_(norm.weight, 2.0)[:1].tolist()
        [2.0]
        >>> fold(norm, torch.eye(3)).sum().abs().item() < 1e-6
        True
    """
    weight = at_least_single(weight)
    _check(norm, weight)
    if not hasattr(norm, "eps"):  # no norm at all
        return weight
    folded = gain(norm, weight.transpose(-2, -1)).transpose(-2, -1).detach().to(weight)
    return folded if is_rms(norm) else folded - folded.mean(-2, keepdim=True)


def bias_behind(norm: nn.Module, weight: Float[Tensor, "*head d_model out"]) -> Float[Tensor, "*head out"] | None:
    """What the norm's own bias adds behind the weights; None where it has none."""
    bias = getattr(norm, "bias", None)
    return None if bias is None else bias.detach().to(at_least_single(weight)) @ at_least_single(weight)


def at_least_single(weight: Tensor) -> Tensor:
    """A weight without its graph, in float32 where it is stored in a lower precision."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _check(norm: nn.Module, weight: Tensor) -> None:
    """Does the norm do what `mechvis.norms` says of it? A gain of another kind (1 + weight) would fold wrongly."""
    own = next(iter(norm.parameters()), weight)
    x = torch.randn(4, weight.shape[-2], generator=torch.Generator().manual_seed(0)).to(own)
    with torch.no_grad():
        centred, scale = statistics(norm, x)
        expected, seen = gain_and_bias(norm, centred / scale), norm(x)
    if not bool((seen - expected).abs().max() <= allowed(own) * expected.abs().max()):
        raise RefusedMethod(
            f"{type(norm).__name__} does not divide, multiply by its weight and add its bias, so its gain cannot be "
            "folded into the weights behind it. Leave folded=True out."
        )
