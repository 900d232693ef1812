"""The end questions, asked directly: what happens if this changes, is this used, what would flip the answer?

For rich models, attributions that are complete and linear (integrated gradients, Shapley values) can be no better than
guessing about these: two functions can have the same attribution and opposite slopes (methods2.md 20.4). So the
questions are asked of the model itself, with as many forward passes as the wanted accuracy takes.

* :func:`local_effect`: mean of `f(x + d) - f(x)` over given changes d of one unit, with its interval;
* :func:`uses_feature`: mean `|change|` when a region is replaced, against regions of equal size (permutation p-value);
* :func:`recourse`: the smallest of the given changes that flips the decision, if any does;
* :func:`samples_needed`: `(z / error)^2 variance`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from mechvis.keyed import numpy_of
from mechvis.stats import bootstrap

Function = Callable[[Float[Tensor, "row ..."]], Float[Tensor, " row"]]


@dataclass(frozen=True, kw_only=True)
class LocalEffect:
    """Mean change of a score."""

    effect: float
    """Mean of `f(x + d) - f(x)`."""
    low: float
    """Lower end of its 95 % interval over the changes."""
    high: float
    """Upper end."""
    n: int
    """Changes."""


def local_effect(
    f: Function,
    x: Float[Tensor, "..."],
    where: Bool[Tensor, "..."],
    changes: Float[Tensor, " change"],
    *,
    seed: int = 0,
) -> LocalEffect:
    """What happens if this goes up or down?

    Args:
        f: a batch of inputs to scores.
        x: one input, without batch axis.
        where: which of its entries change, same shape.
        changes: what is added to them, one number per trial.
        seed: of the interval.

    Raises:
        ShapeMismatch, BadData, NotFinite.

    Example:
        >>> local_effect(lambda x: x[:, 0] ** 2, torch.tensor([3.0]), torch.tensor([True]), torch.tensor([1.0])).effect
        7.0
    """
    base, found = _changed(f, x, where, changes)
    values = (found - base).numpy()
    interval = bootstrap(values, seed=seed)
    return LocalEffect(
        effect=float(values.mean()), low=float(interval.low[0]), high=float(interval.high[0]), n=len(values)
    )


@dataclass(frozen=True, kw_only=True)
class FeatureUse:
    """How much a region matters beside others of its size."""

    change: float
    """Mean `|change|` of the score when the region is replaced."""
    p: float
    """Share of regions of equal size (itself included) that change it at least as much."""
    others: np.ndarray
    """Mean `|change|` of each other region."""


def uses_feature(
    f: Function,
    x: Float[Tensor, "..."],
    region: Bool[Tensor, "..."],
    replacements: Float[Tensor, "replacement ..."],
    *,
    regions: Bool[Tensor, "region ..."] | None = None,
    n_regions: int = 99,
    seed: int = 0,
    example: int = 0,
) -> FeatureUse:
    """Does the score use this region? Replaced by parts of other inputs, and compared with regions of equal size.

    Args:
        f: a batch of inputs to scores.
        x: one input.
        region: its entries in question.
        replacements: inputs that the region is filled from, one trial each.
        regions: regions to compare with, of the same size; None: `n_regions` random sets of entries of `x` outside of
            the shape of the region (give translated copies where shape matters, as it does in images).
        n_regions: how many are drawn.
        seed: of the draw.
        example: which example `x` is: the draw belongs to it.

    Raises:
        ShapeMismatch, BadData.
    """
    if replacements.shape[1:] != x.shape or region.shape != x.shape or not len(replacements):
        raise ShapeMismatch(
            f"replacements {list(replacements.shape)} and region {list(region.shape)} have to fit x {list(x.shape)}."
        )
    size = int(region.sum())
    if not size:
        raise BadData("the region is empty.")
    if regions is None:
        generator = numpy_of(seed, example, "regions")
        drawn = np.stack([generator.permutation(x.numel()) < size for _ in range(n_regions)])
        regions = torch.from_numpy(drawn).view(n_regions, *x.shape)
    if regions.shape[1:] != x.shape or not bool((regions.flatten(1).sum(1) == size).all()):
        raise ShapeMismatch(f"regions to compare with need the shape of x and {size} entries each.")
    base = float(f(x[None])[0])

    def change(one: Tensor) -> float:
        return float((f(torch.where(one, replacements, x)) - base).abs().mean())

    own, others = change(region), np.array([change(one) for one in regions])
    p = (1 + int((others >= own * (1 - 1e-9)).sum())) / (1 + len(others))
    return FeatureUse(change=own, p=p, others=others)


def recourse(
    decide: Callable[[Float[Tensor, "row ..."]], Tensor],
    x: Float[Tensor, "..."],
    where: Bool[Tensor, "..."],
    changes: Float[Tensor, " change"],
) -> float | None:
    """The smallest (in size) of the given changes of these entries that flips the decision; None: none of them does.

    Args:
        decide: a batch of inputs to decisions (classes).
        x: one input.
        where: which entries may change.
        changes: what may be added to them.

    Example:
        >>> recourse(lambda x: x[:, 0] > 2, torch.tensor([1.0]), torch.tensor([True]), torch.tensor([0.5, 3.0, 1.5]))
        1.5
    """
    base, found = _changed(decide, x, where, changes)
    flips = changes[(found != base)]
    return float(flips[flips.abs().argmin()]) if len(flips) else None


def samples_needed(variance: float, error: float, *, z: float = 1.96) -> int:
    """Trials that bring the half-width of a 95 % interval down to `error`.

    Example:
        >>> samples_needed(1.0, 0.1)
        385
    """
    if variance < 0 or not error > 0:
        raise OutOfRange(f"variance={variance}, error={error}: give no negative variance and a positive error.")
    return math.ceil((z / error) ** 2 * variance)


def _changed(f: Callable, x: Tensor, where: Tensor, changes: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
    changes = torch.as_tensor(changes, dtype=x.dtype)
    if where.shape != x.shape or where.dtype != torch.bool:
        raise ShapeMismatch(f"`where` is boolean with the shape of x {list(x.shape)}, got {list(where.shape)}.")
    if changes.ndim != 1 or not len(changes) or not bool(where.any()):
        raise BadData("nothing changes: give at least one change and one entry that it is added to.")
    rows = x + changes.view(-1, *[1] * x.ndim) * where
    found = f(torch.cat([x[None], rows])).detach().cpu().double()
    if not bool(torch.isfinite(found).all()):
        raise NotFinite("the function gives NaN or Inf for a changed input.")
    return found[0], found[1:]
