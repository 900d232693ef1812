"""Boundless DAS: the number of directions is learnt along with the directions (Wu et al.; methods2.md 16.1, C).

One full rotation `Q [width, width]`, and a soft mask over the rotated coordinates whose edge is learnt:

    m_i = sigmoid(i / T) sigmoid((w width - i) / T)        i = 1/2, 3/2, ...;  boundary w in [1e-3, 1], from 0.5
    h*  = ((1 - m) Q h_b + m Q h_s) Q^T
    min over Q, w   mean CE( f(b; h*), y* ) + penalty * w

The temperature `T` falls from 50 to 0.1, so that a mask over everything becomes a choice. What is returned is the hard
choice: the first `round(w width)` rows of `Q`, at least one.

Where we differ (X): positions start at a half, since at 0 the first factor would keep the first coordinate half-mixed
for ever; `T` falls geometrically, since nearly all of a linear descent is spent where the mask is flat.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.subspace.das import DasSettings, Trained, optimise, rows_of, start_at, wrong_answers
from circuits.subspace.draws import Draws
from circuits.subspace.tail import Tail
from circuits.subspace.variable import Variable
from mechvis.errors import OutOfRange

HOT, COLD = 50.0, 0.1
"""First and last temperature."""
SMALLEST, START = 1e-3, 0.5
"""Least value of the boundary, and where it starts."""


@dataclass(frozen=True, kw_only=True)
class BoundlessSettings:
    """How a subspace of unknown size is learnt.

    Raises:
        OutOfRange: a number that cannot be.
    """

    steps: int = 2000
    """Steps of Adam."""
    rate: float = 1e-3
    """Learning rate of the rotation at the first step; it falls linearly to zero."""
    boundary_rate: float = 1e-2
    """Learning rate of the boundary, likewise."""
    batch: int = 64
    """Pairs per step."""
    penalty: float = 1.0
    """Weight of the boundary in the loss, nats for the whole width."""

    def __post_init__(self):
        if min(self.steps, self.batch) < 1 or not min(self.rate, self.boundary_rate) > 0 or not self.penalty >= 0:
            raise OutOfRange(f"steps and batch are 1 or more, rates above 0, penalty 0 or more: {self}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundless(Trained):
    """A learnt subspace of learnt size."""

    boundary: float
    """w: the share of the rotated coordinates that is swapped."""
    boundaries: Float[np.ndarray, " step"] = field(repr=False)
    """w after each step."""


def mask_of(boundary: Tensor, temperature: float, width: int) -> Float[Tensor, " width"]:
    """The soft mask over rotated coordinates.

    Example:
        >>> mask_of(torch.tensor(0.5), 0.01, 4)
        tensor([1., 1., 0., 0.])
    """
    at = torch.arange(width, device=boundary.device, dtype=boundary.dtype) + 0.5
    return torch.sigmoid(at / temperature) * torch.sigmoid((boundary * width - at) / temperature)


def temperature_at(step: int, steps: int) -> float:
    """Temperature of a step, from `HOT` to `COLD` by equal factors."""
    return HOT * (COLD / HOT) ** (step / max(1, steps - 1))


def train_boundless(
    tail: Tail,
    variable: Variable,
    images: Tensor,
    *,
    seed: int = 0,
    settings: BoundlessSettings | None = None,
    within: object = None,
) -> Boundless:
    """Learn a subspace and its size.

    Args:
        tail: activations and the model behind them; the model stays as it is.
        variable: what the interchange should swap.
        images: positions of the training images.
        seed: of the start and of the pairs.
        settings: how; default: `BoundlessSettings()`. A step costs a QR decomposition of `width x width`.
        within: see :class:`circuits.subspace.Drawer`.

    Returns:
        Rows with their number; k is `found.k`.

    Raises:
        NotFinite: the loss is NaN or Inf.
        TrainMode, BadData.

    Example:
        >>> found = train_boundless(tail, variable, splits.train)      # doctest: +SKIP
        >>> found.k                                                    # doctest: +SKIP
        2
    """
    settings = settings or BoundlessSettings()
    width = tail.width
    free = start_at(tail, width, seed)
    boundary = torch.tensor(START, dtype=tail.h.dtype, device=tail.h.device, requires_grad=True)
    path: list[float] = []

    def loss(step: int, pairs: Draws) -> Tensor:
        rotation, base = rows_of(free), tail.h[pairs.base]
        mask = mask_of(boundary, temperature_at(step, settings.steps), width)
        changed = base + (mask * ((tail.h[pairs.source] - base) @ rotation.T)) @ rotation
        return wrong_answers(tail, variable, pairs, changed) + settings.penalty * boundary

    def keep_inside() -> None:
        with torch.no_grad():
            boundary.clamp_(SMALLEST, 1.0)
        path.append(float(boundary.detach()))

    losses = optimise(
        tail,
        images,
        [free, boundary],
        loss,
        seed=seed,
        settings=DasSettings(steps=settings.steps, rate=settings.rate, batch=settings.batch),
        within=within,
        rates=[settings.rate, settings.boundary_rate],
        after=keep_inside,
    )
    with torch.no_grad():
        k = min(width, max(1, round(path[-1] * width)))
        rows = rows_of(free)[:k].contiguous()
    return Boundless(rows=rows, losses=losses, seed=seed, boundary=path[-1], boundaries=np.array(path))
