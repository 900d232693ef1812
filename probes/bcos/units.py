"""The pieces of a B-cos network: everything is a factor that depends on x, times x.

    B-cos unit    y = s |cos(x, w)|^(B-1) (w / |w|) . x        B = 2; no bias    (methods.md 11, **N**)
    norm          y = g x / sqrt(mean x^2 + eps)               no mean taken off, no bias
    activation    y = Phi(x) x                                 GELU as a gate times its input
    attention     y = P(x) v(x)

With the factors held constant each piece is linear in its input, so the whole network is `W(x) x` and its gradient
times its input is the output *exactly*: the factors are held constant (detached) inside :func:`explaining`. Outside it
the same pieces have their true gradients, and train.

`s` is a positive factor per output that is learned (**X**): unit rows have lost the lengths of the teacher's, and the
residual stream depends on how large each write is. :mod:`probes.bcos.convert` sets it so that a converted unit answers
as strongly as the teacher's on some images. With s = 1 it is the unit of the papers.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mechvis.errors import OutOfRange

_EXPLAINING: ContextVar[bool] = ContextVar("explaining", default=False)


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Forward passes of B-cos students inside have constant factors: gradient times input is the exact decomposition.

    It is a state of this thread's context, not of the model: nothing is left behind.

    Example:
        >>> with explaining():
        ...     is_explaining()
        True
    """
    token = _EXPLAINING.set(True)
    try:
        yield
    finally:
        _EXPLAINING.reset(token)


def is_explaining() -> bool:
    """Are factors constants right now?"""
    return _EXPLAINING.get()


def constant(factor: Tensor) -> Tensor:
    """A factor, without its gradient inside :func:`explaining`."""
    return factor.detach() if is_explaining() else factor


class BcosLinear(nn.Module):
    """A linear layer without bias whose outputs are small where the input does not point along their weights.

    Example:
        >>> unit = BcosLinear(3, 2)
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(unit(2 * x), 2 * unit(x), atol=1e-5))
        True
    """

    def __init__(self, d_in: int, d_out: int, *, b: float = 2.0):
        super().__init__()
        if b < 1:
            raise OutOfRange(f"b={b}: the exponent of a B-cos unit is 1 (plain linear) or more.")
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.log_scale = nn.Parameter(torch.zeros(d_out))
        self.b = b
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @property
    def scale(self) -> Tensor:
        """s `[out]`, positive."""
        return self.log_scale.exp()

    @property
    def rows(self) -> Tensor:
        """Unit rows `[out in]`."""
        return self.weight / self.weight.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """`[... in]` to `[... out]`."""
        y = F.linear(x, self.rows)
        return self.scale * y * self.factor(x, y)

    def factor(self, x: Tensor, y: Tensor) -> Tensor:
        """|cos|^(B-1), from an input and its product with the unit rows."""
        if self.b == 1:
            return torch.ones_like(y)
        cosine = y.abs() / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return constant(cosine if self.b == 2 else cosine.clamp(min=1e-12) ** (self.b - 1))

    # The same in two steps around a product that is linear: how the family map shows heads and neurons.

    def before(self, x: Tensor) -> Tensor:
        """x / |x|^((B-1)/B): what the linear product then reads."""
        if self.b == 1:
            return x
        return x / constant(x.norm(dim=-1, keepdim=True).clamp(min=1e-12) ** ((self.b - 1) / self.b))

    def product(self, x: Tensor) -> Tensor:
        """The linear product, rows scaled by s^(1/B)."""
        return F.linear(x, self.matrix)

    @property
    def matrix(self) -> Tensor:
        """Weights of :meth:`product` `[out in]`."""
        return self.rows * self.scale[:, None] ** (1 / self.b)

    def after(self, y: Tensor) -> Tensor:
        """y |y|^(B-1): with it, `after(product(before(x)))` is :meth:`forward`."""
        return y if self.b == 1 else y * constant(y.abs() if self.b == 2 else y.abs().clamp(min=1e-12) ** (self.b - 1))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, b={self.b:g}"


class RMSNorm(nn.Module):
    """Norm without a mean and without a bias: `g x / sqrt(mean x^2 + eps)`; the divisor is a constant factor."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[... width]` to the same."""
        return x * self.weight / constant((x.square().mean(-1, keepdim=True) + self.eps).sqrt())


class GatedGELU(nn.Module):
    """GELU as a gate that is a constant factor, times its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * constant(torch.special.ndtr(x))
