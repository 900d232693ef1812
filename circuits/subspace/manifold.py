"""Where natural activations lie, and how far from them a changed one is (methods2.md 16.3 and 16.4, K and X).

    squared distance   (h - mu)^T C^-1 (h - mu)      mu, C: mean and covariance of natural activations,
                                                     C plus 1 % of its mean eigenvalue on the diagonal
    percentile         share of natural activations (others than those of mu and C) that lie nearer

The distance of Mahalanobis knows the shape of one cloud only; `neighbours` measures the distance to the natural
activations themselves instead, in the same units.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData

SHRINK = 0.01
"""Part of the mean eigenvalue that is added to every eigenvalue: a direction without any variance would otherwise make
every distance infinite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifold:
    """Mean and covariance of natural activations."""

    mean: Float[Tensor, " width"] = field(repr=False)
    """Centre."""
    covariance: Float[Tensor, "width width"] = field(repr=False)
    """As it is, not shrunk."""
    whiten: Float[Tensor, "width width"] = field(repr=False)
    """Symmetric root of the inverse of the shrunk covariance."""
    natural: Float[Tensor, "image width"] = field(repr=False)
    """The activations."""

    @classmethod
    def of(cls, h: Float[Tensor, "image width"]) -> "Manifold":
        """From natural activations.

        Raises:
            BadData: fewer than two, or all the same.
        """
        wide = h.double()
        if len(h) < 2 or not bool((wide != wide[0]).any()):
            raise BadData(f"{len(h)} natural activations without any variance have no shape to measure distances in.")
        mean = wide.mean(0)
        covariance = torch.cov(wide.T).reshape(h.shape[1], h.shape[1])
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=0) + SHRINK * values.clamp(min=0).mean()
        whiten = (vectors / values.sqrt()) @ vectors.T
        parts = [x.to(h.dtype) for x in (mean, covariance, whiten)]
        return cls(mean=parts[0], covariance=parts[1], whiten=parts[2], natural=h)

    def squared_distance(self, h: Float[Tensor, "row width"]) -> Float[Tensor, " row"]:
        """Squared distance of Mahalanobis; differentiable."""
        return ((h - self.mean) @ self.whiten).square().sum(1)

    def neighbours(self, h: Float[Tensor, "row width"], count: int = 5) -> Float[Tensor, " row"]:
        """Squared distance to the `count`-th nearest natural activation, in units of the shrunk covariance."""
        natural, rows = (self.natural - self.mean) @ self.whiten, (h - self.mean) @ self.whiten
        return torch.cdist(rows, natural).topk(min(count, len(natural)), largest=False).values[:, -1].square()

    def variance(self, rows: Float[Tensor, "k width"]) -> float:
        """Variance of the data along orthonormal rows, averaged over them.

        Raises:
            BadData: no rows.
        """
        if not len(rows):
            raise BadData("variance along no direction.")
        return max(0.0, float(((rows @ self.covariance) * rows).sum(1).mean()))

    @property
    def mean_variance(self) -> float:
        """What :meth:`variance` is on average over random directions: the mean of the covariance's diagonal."""
        return float(self.covariance.diagonal().mean())


def percentiles(values: Float[Tensor, " row"], natural: Float[Tensor, " image"]) -> Float[Tensor, " row"]:
    """Share of natural values below each value; ties count half.

    Example:
        >>> percentiles(torch.tensor([2.5, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([0.5000, 1.0000])
    """
    ordered = natural.sort().values
    below = torch.searchsorted(ordered, values.contiguous())
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + upto).to(values.dtype) / (2 * len(ordered))
