"""Means and covariances of what many heads write, in one pass over the images.

TextSpan depends on a head's vectors only through their mean and covariance (methods.md 2.2, **P**, **X**), so nothing
per image has to be kept: `heads x D x D` numbers instead of `images x heads x D`.

Batches are merged by the pairwise update of Chan, Golub and LeVeque, in float64, which stays exact where a head's mean
is large beside its spread (adding up squares would not).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Moments:
    """Mean and covariance of each head's vectors over `n` images."""

    n: int
    """Images."""
    mean: Float[np.ndarray, "head d_embed"]
    """Mean over images."""
    scatter: Float[np.ndarray, "head d_embed d_embed"]
    """Sum over images of the outer product of deviations from the mean."""

    def __post_init__(self):
        if self.n < 1 or self.mean.ndim != 2 or self.scatter.shape != (*self.mean.shape, self.mean.shape[1]):
            raise ShapeMismatch(
                f"moments of {self.n} images with means {list(self.mean.shape)} and scatter {list(self.scatter.shape)}."
            )

    @property
    def covariance(self) -> Float[np.ndarray, "head d_embed d_embed"]:
        """Scatter divided by the number of images."""
        return self.scatter / self.n

    @property
    def second(self) -> Float[np.ndarray, "head d_embed d_embed"]:
        """Mean outer product, not centred: what a singular value decomposition without centring sees."""
        return self.covariance + np.einsum("hd,he->hde", self.mean, self.mean)

    @property
    def total(self) -> Float[np.ndarray, " head"]:
        """Variance of each head: the trace of its covariance."""
        return np.einsum("hdd->h", self.covariance)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of images together."""
        if self.mean.shape != other.mean.shape:
            raise ShapeMismatch(f"moments of {list(self.mean.shape)} and of {list(other.mean.shape)} do not add up.")
        n = self.n + other.n
        step = other.mean - self.mean
        between = np.einsum("hd,he->hde", step, step) * (self.n * other.n / n)
        return Moments(n=n, mean=self.mean + step * (other.n / n), scatter=self.scatter + other.scatter + between)


def moments_of(values: Float[np.ndarray, "image head d_embed"] | Float[Tensor, "image head d_embed"]) -> Moments:
    """Moments of one batch.

    Raises:
        ShapeMismatch: other axes.
        BadData: no image.
        NotFinite: NaN or Inf; names the head.

    Example:
        >>> moments_of(np.array([[[1.0]], [[3.0]]])).covariance
        array([[[1.]]])
    """
    values = torch.as_tensor(values).detach().cpu().double()
    if values.ndim != 3:
        raise ShapeMismatch(f"moments need the axes [image head d_embed], got the shape {list(values.shape)}.")
    if not len(values):
        raise BadData("moments need at least one image.")
    finite = torch.isfinite(values).all(dim=2).all(dim=0)
    if not finite.all():
        raise NotFinite(f"NaN or Inf in the vectors of head number {int((~finite).nonzero()[0])}.")
    mean = values.mean(0)
    centred = (values - mean).transpose(0, 1)
    return Moments(n=len(values), mean=mean.numpy(), scatter=(centred.transpose(1, 2) @ centred).numpy())


def gather(batches: Iterable[Float[np.ndarray, "_ head d_embed"]]) -> Moments:
    """Moments over all batches.

    Raises:
        BadData: no batch.

    Example:
        >>> gather(iter([np.ones((2, 1, 3)), np.zeros((2, 1, 3))])).n
        4
    """
    found: Moments | None = None
    for batch in batches:
        part = moments_of(batch)
        found = part if found is None else found + part
    if found is None:
        raise BadData("there was no batch of images to take moments of.")
    return found
