"""DAS: learn the subspace whose interchange gives the right answers (Geiger et al.; methods2.md 16.1-16.2, K).

    min over R   mean CE( f(b; h*), y* ) + penalty * mean (h* - mu)^T C^-1 (h* - mu) / width

1. `R` comes from a free matrix by a QR decomposition, so its rows are orthonormal at every step.
2. Each step draws fresh pairs of training images, changes the cached activations and runs the model from the hook on.
3. Gradients are asked for with respect to the free matrix alone: no weight of the model gets one, no flag changes.
4. Adam, with a rate that falls linearly to zero (X), so that where it ends depends little on the last batches.

The second term is off by default. It keeps `h*` where natural activations are (X, shown on F9: a small weight finds the
one direction that lives on the data; a large one may stop the training before it starts). Interchange accuracy never
says that a subspace is the only one, or the model's own: train several seeds, use the smallest k that saturates, and
look at the diagnostics.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuits.subspace.draws import Drawer, Draws
from circuits.subspace.interchange import Rows, interchange
from circuits.subspace.manifold import Manifold
from circuits.subspace.tail import Tail
from circuits.subspace.variable import Variable
from mechvis.errors import BadData, NotFinite, OutOfRange


@dataclass(frozen=True, kw_only=True)
class DasSettings:
    """How a subspace is learnt.

    Raises:
        OutOfRange: a number that cannot be.
    """

    steps: int = 1000
    """Steps of Adam."""
    rate: float = 3e-3
    """Learning rate at the first step; it falls linearly to zero. Full rotations want 1e-3."""
    batch: int = 64
    """Pairs per step."""
    penalty: float = 0.0
    """Weight of the on-manifold term; 0 for none."""

    def __post_init__(self):
        if self.steps < 1 or self.batch < 1 or not self.rate > 0 or not 0 <= self.penalty < math.inf:
            raise OutOfRange(f"steps and batch are 1 or more, rate above 0, penalty 0 or more: {self}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A learnt subspace."""

    rows: Rows = field(repr=False)
    """Orthonormal."""
    losses: Float[np.ndarray, " step"] = field(repr=False)
    """Cross-entropy plus penalty at each step, nats."""
    seed: int
    """Of the start and of the pairs."""

    @property
    def k(self) -> int:
        """Number of rows."""
        return len(self.rows)


def train_das(
    tail: Tail,
    variable: Variable,
    images: Tensor,
    *,
    k: int,
    seed: int = 0,
    settings: DasSettings | None = None,
    within: object = None,
    manifold: Manifold | None = None,
) -> Trained:
    """Learn one subspace.

    Args:
        tail: activations and the model behind them; the model stays as it is.
        variable: what the interchange should swap.
        images: positions of the training images.
        k: number of rows.
        seed: of the start and of the pairs.
        settings: how; default: `DasSettings()`.
        within: see :class:`circuits.subspace.Drawer`.
        manifold: natural activations, where the settings ask for the penalty; default: those of the training images.

    Raises:
        OutOfRange: k is not between 1 and the width.
        NotFinite: the loss is NaN or Inf.
        TrainMode, BadData.

    Example:
        >>> found = train_das(tail, variable, splits.train, k=1, seed=0)       # doctest: +SKIP
        >>> accuracy_of(tail, variable, test_pairs, found.rows).iia            # doctest: +SKIP
    """
    settings = settings or DasSettings()
    if not 1 <= k <= tail.width:
        raise OutOfRange(f"k={k}: a subspace of {tail.name} has between 1 and {tail.width} rows.")
    if settings.penalty and manifold is None:
        manifold = Manifold.of(tail.h[images])
    free = start_at(tail, k, seed)

    def loss(step: int, pairs: Draws) -> Tensor:
        changed = interchange(tail.h[pairs.base], tail.h[pairs.source], rows_of(free))
        return wrong_answers(tail, variable, pairs, changed) + off_manifold(manifold, changed, settings.penalty)

    losses = optimise(tail, images, [free], loss, seed=seed, settings=settings, within=within)
    with torch.no_grad():
        return Trained(rows=rows_of(free), losses=losses, seed=seed)


def wrong_answers(tail: Tail, variable: Variable, pairs: Draws, changed: Float[Tensor, "pair width"]) -> Tensor:
    """Mean cross-entropy of the answers to changed activations, nats."""
    right = variable.answer(pairs.base, pairs.source).to(tail.h.device)
    return F.cross_entropy(tail.logits_of(changed, pairs.base), right)


def off_manifold(manifold: Manifold | None, changed: Float[Tensor, "pair width"], weight: float) -> Tensor | float:
    """Penalty on the mean squared distance, per dimension, so that one weight means the same at every hook."""
    return weight * manifold.squared_distance(changed).mean() / changed.shape[1] if weight else 0.0


def start_at(tail: Tail, k: int, seed: int) -> Float[Tensor, "width k"]:
    """A random free matrix whose columns are orthonormal at the start."""
    # Through a seed sequence: neighbouring seeds of a generator alone start alike.
    generator = np.random.default_rng([seed, k, tail.width])
    drawn = torch.from_numpy(generator.standard_normal((tail.width, k)))
    return torch.linalg.qr(drawn).Q.to(tail.h.device, tail.h.dtype).contiguous().requires_grad_(True)


def rows_of(free: Float[Tensor, "width k"]) -> Rows:
    """Orthonormal rows that span the free matrix's columns."""
    return torch.linalg.qr(free).Q.T


def optimise(
    tail: Tail,
    images: Tensor,
    free: list[Tensor],
    loss_of: Callable[[int, Draws], Tensor],
    *,
    seed: int,
    settings: DasSettings,
    within: object = None,
    rates: list[float] | None = None,
    after: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, " step"]:
    """The loop that DAS and its relatives share.

    Args:
        tail, images, seed, settings, within: as in :func:`train_das`.
        free: what is learnt; changed in place.
        loss_of: (step, pairs) -> what is to become small.
        rates: learning rate of each of `free`; default: that of the settings.
        after: called after each step, e.g. to keep a number in its range.

    Returns:
        Loss per step.
    """
    tail.check()
    drawer = Drawer(images, within=within, seed=int(np.random.default_rng([seed, 1]).integers(2**31)))
    rates = rates or [settings.rate] * len(free)
    adam = torch.optim.Adam([{"params": [part], "lr": rate} for part, rate in zip(free, rates, strict=True)])
    losses = np.empty(settings.steps)
    for step in range(settings.steps):
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / settings.steps)
        with torch.enable_grad():
            loss = loss_of(step, drawer.draw(settings.batch))
        losses[step] = float(loss.detach())
        if not np.isfinite(losses[step]):
            raise NotFinite(
                f"the loss of the subspace at {tail.name} is {losses[step]} at step {step}. Lower the rate "
                "or the penalty."
            )
        if not loss.requires_grad:
            raise BadData(
                f"the logits of {tail.name} carry no gradient to the activation: does the tail detach it, or ignore it?"
            )
        # Never .backward(): that would leave gradients in the user's weights.
        gradients = torch.autograd.grad(loss, free)
        for part, gradient in zip(free, gradients, strict=True):
            part.grad = gradient
        adam.step()
        after()
    return losses
