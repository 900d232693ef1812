"""Shape of a dictionary: how alike its directions are, how many dimensions they use, how sparse codes are.

* coherence: the largest |cosine| of two directions. 1: a latent was found twice.
* effective rank: exp of the entropy of the shares of singular values (Roy and Vetterli 2007); of the directions.
* Hoyer sparsity of a row of codes: (√n - ‖f‖₁/‖f‖₂) / (√n - 1): 1 one latent, 0 all alike (Hoyer 2004).
* κ₄ of a row of codes: Σ f⁴ / (Σ f²)²: 1 for one latent, 1/m for m equal ones: one over the number of latents that
  matter (Hurley and Rickard 2009, who list it as kurtosis).
* energy of a latent: mean over rows of f², times ‖direction‖²: how much of what is written comes from it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import NotFinite, ShapeMismatch

_PIECE = 2**24
"""Entries of a piece of the matrix of cosines."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Coherence:
    """Shape of directions."""

    coherence: float
    """Largest |cosine| of two different directions; NaN with fewer than two."""
    mean_nearest: float
    """Mean over latents of the largest |cosine| with another."""
    effective_rank: float
    """Dimensions that the directions use, between 1 and their width."""
    directions: int
    """How many are not zero."""


def coherence(dictionary: Any) -> Coherence:
    """Shape of a dictionary's directions.

    Args:
        dictionary: a `sae.Dictionary`, or directions `[latent d]`.

    Raises:
        ShapeMismatch: not `[latent d]`.
        NotFinite: NaN or Inf.

    Example:
        >>> found = coherence(torch.eye(4))
        >>> found.coherence, round(found.effective_rank, 6)
        (0.0, 4.0)
    """
    d = dictionary if isinstance(dictionary, Tensor) else dictionary.directions
    d = d.detach().double().cpu()
    if d.ndim != 2:
        raise ShapeMismatch(f"directions are [latent d]; got {list(d.shape)}.")
    if not torch.isfinite(d).all():
        raise NotFinite("directions hold NaN or Inf.")
    length = d.norm(dim=1)
    unit = d[length > 0] / length[length > 0, None]
    if len(unit) < 2:
        return Coherence(coherence=np.nan, mean_nearest=np.nan, effective_rank=float(len(unit)), directions=len(unit))
    size, nearest = max(1, _PIECE // len(unit)), []
    for start in range(0, len(unit), size):
        cosine = (unit[start : start + size] @ unit.T).abs()
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = 0
        nearest.append(cosine.amax(1))
    largest = torch.cat(nearest)
    shares = torch.linalg.svdvals(unit)
    shares = shares[shares > 0] / shares.sum()
    return Coherence(
        coherence=float(largest.max()),
        mean_nearest=float(largest.mean()),
        effective_rank=float((-(shares * shares.log()).sum()).exp()),
        directions=len(unit),
    )


def hoyer(codes: Float[Tensor, "*row latent"]) -> Float[Tensor, "*row"]:
    """Hoyer sparsity of each row, float64; NaN for rows without an active latent.

    Example:
        >>> hoyer(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).tolist()
        [1.0, 0.0]
    """
    f = codes.detach().double()
    root = f.shape[-1] ** 0.5
    if f.shape[-1] < 2:
        raise ShapeMismatch("sparsity of a row needs at least two latents.")
    return (root - f.abs().sum(-1) / f.norm(dim=-1)) / (root - 1)


def kappa_4(codes: Float[Tensor, "*row latent"]) -> Float[Tensor, "*row"]:
    """κ₄ of each row, float64; NaN for rows without an active latent.

    Example:
        >>> kappa_4(torch.tensor([[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).tolist()
        [1.0, 0.25]
    """
    squares = codes.detach().double().square()
    return squares.square().sum(-1) / squares.sum(-1).square()


def energy(codes: Float[Tensor, "*row latent"], directions: Float[Tensor, "latent d"]) -> Float[Tensor, " latent"]:
    """Energy of each latent, in squared units of the activations, float64.

    Raises:
        ShapeMismatch: codes of other latents.
    """
    if codes.shape[-1] != len(directions):
        raise ShapeMismatch(f"codes of {codes.shape[-1]} latents, {len(directions)} directions.")
    flat = codes.detach().double().reshape(-1, codes.shape[-1])
    return flat.square().mean(0) * directions.detach().double().square().sum(1)
