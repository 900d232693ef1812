"""How concentrated is a map? Descriptions, not judgements: a wrong map can be as sparse as a right one.

All of `|map|`: Gini coefficient (0: all patches alike, near 1: one patch), entropy of `|map| / sum |map|` in nats, and
the number of patches above a share of the largest. The caller's maps are never changed (published tools normalise them
in place). Source: faithfulness.md 2.3 [K].
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.faithfulness.metric import Measured, Metric, checked_maps, in_range, measured

ZERO = "the map is zero"


def gini(maps: Float[Tensor, "image patch"]) -> Float[Tensor, " image"]:
    """`sum_i (2i - n - 1) a_i / (n sum a)` with a = |map| in ascending order; NaN for a map of zeros.

    Example:
        >>> gini(torch.tensor([[1.0, 1.0], [0.0, 4.0]])).tolist()
        [0.0, 0.5]
    """
    ordered = maps.double().abs().sort(1).values
    n = maps.shape[1]
    weights = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return (ordered * weights).sum(1) / (n * ordered.sum(1))


def entropy(maps: Float[Tensor, "image patch"]) -> Float[Tensor, " image"]:
    """`-sum p log p` of `p = |map| / sum |map|`, in nats; NaN for a map of zeros."""
    share = maps.double().abs()
    share = share / share.sum(1, keepdim=True)
    return -torch.special.xlogy(share, share).sum(1)


@dataclass(frozen=True, kw_only=True)
class _OfMaps(Metric):
    SOURCE = "faithfulness.md 2.3"
    NEEDS = "maps"
    DIRECTION = "none"
    SCALE_FREE = True

    def measure(self, maps: Float[Tensor, "image patch"]) -> Measured:
        """One number per image."""
        maps = checked_maps(maps)
        return measured(self.NAME, self._value(maps), {ZERO: maps.abs().max(1).values == 0})

    @abstractmethod
    def _value(self, maps: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Sparseness(_OfMaps):
    """Gini coefficient of the absolute values."""

    NAME = "sparseness"
    UNIT = "Gini"
    FORMULA = "sum_i (2i - n - 1) |map|_(i) / (n sum |map|), ascending order"

    def _value(self, maps: Tensor) -> Tensor:
        return gini(maps)


@dataclass(frozen=True, kw_only=True)
class Entropy(_OfMaps):
    """Entropy of the absolute values as shares."""

    NAME = "entropy"
    UNIT = "nats"
    FORMULA = "-sum p log p, p = |map| / sum |map|"

    def _value(self, maps: Tensor) -> Tensor:
        return entropy(maps)


@dataclass(frozen=True, kw_only=True)
class EffectiveComplexity(_OfMaps):
    """Patches whose absolute value is more than a share of the largest."""

    NAME = "effective_complexity"
    UNIT = "patches"
    FORMULA = "number of patches with |map_i| > epsilon max |map|"
    epsilon: float = 0.1
    """The share."""

    def _value(self, maps: Tensor) -> Tensor:
        in_range("epsilon", self.epsilon, 0, 1)
        size = maps.abs()
        return (size > self.epsilon * size.max(1, keepdim=True).values).sum(1).double()
