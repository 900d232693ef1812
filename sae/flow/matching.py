"""Which latents of two dictionaries are one feature, by their decoder rows (methods2.md 21.2 [A], rule [K]).

With unit rows d of an earlier and a later dictionary, S_ij = cos(d_i, d_j):

* i *persists* if some j matches: S_ij is largest both ways, and above what chance reaches; or S_ij >= tau_hi;
* i *dies* if no j comes above chance, and j is *born* if no i does;
* in between, the latent is *processed*.

Chance (tau_lo): the 99 % quantile of the largest cosine that random directions reach *with the dictionary's own
covariance*. Rows of a dictionary crowd in a few directions, so isotropic directions would make everything persist.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch

TAU_HI = 0.7
QUANTILE = 0.99
DRAWS = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """Two dictionaries compared."""

    cosine: Float[np.ndarray, "latent next"]
    """Of all pairs."""
    forward: np.ndarray
    """Best match of each earlier latent."""
    backward: np.ndarray
    """Best match of each later latent."""
    fate: list[str]
    """Of each earlier latent: persists, processed, dies."""
    origin: list[str]
    """Of each later latent: persists, processed, born."""
    tau_lo: float
    """What chance reaches."""


def null_cosine(
    first: Float[Tensor, "latent d"],
    second: Float[Tensor, "next d"],
    *,
    draws: int = DRAWS,
    quantile: float = QUANTILE,
    isotropic: bool = False,
    seed: int = 0,
) -> float:
    """Quantile of the largest cosine with `first` that random directions of `second`'s covariance reach.

    Args:
        first: directions that are matched.
        second: directions whose second moment the random ones have.
        draws: random directions.
        quantile: of their largest cosines.
        isotropic: directions uniform on the sphere instead, for comparison.
        seed: of the draws.

    Raises:
        ShapeMismatch, OutOfRange, NotFinite.
    """
    first, second = unit_rows(first), unit_rows(second)
    if first.shape[1] != second.shape[1]:
        raise ShapeMismatch(f"directions of width {first.shape[1]} and {second.shape[1]} cannot be compared.")
    if draws < 100 or not 0 < quantile < 1:
        raise OutOfRange(f"draws={draws}, quantile={quantile}: at least 100 draws, a quantile between 0 and 1.")
    # A stream of its own: directions that the caller drew with the same seed must not come again.
    rng = np.random.default_rng([seed, 21, 2])
    # z @ rows / sqrt(n) has the second moment of the rows, without a root of it.
    width = first.shape[1] if isotropic else len(second)
    drawn = rng.standard_normal((draws, width))
    drawn = drawn if isotropic else drawn @ second
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return float(np.quantile((drawn @ first.T).max(1), quantile))


def match(
    first: Float[Tensor, "latent d"],
    second: Float[Tensor, "next d"],
    *,
    tau_hi: float = TAU_HI,
    tau_lo: float | None = None,
    seed: int = 0,
) -> Match:
    """Fates of latents between two dictionaries, by their decoder rows.

    Args:
        first: decoder rows of the earlier dictionary; any length.
        second: of the later one.
        tau_hi: cosine from which a latent persists, mutual or not.
        tau_lo: cosine below which there is no match; None: the null of :func:`null_cosine`.
        seed: of the null.

    Raises:
        ShapeMismatch, OutOfRange, NotFinite.

    Example:
        >>> found = match(torch.eye(8), torch.eye(8).flip(0), tau_lo=0.5)
        >>> found.forward.tolist(), set(found.fate)
        ([7, 6, 5, 4, 3, 2, 1, 0], {'persists'})
    """
    a, b = unit_rows(first), unit_rows(second)
    tau_lo = null_cosine(first, second, seed=seed) if tau_lo is None else tau_lo
    if not -1 <= tau_lo <= 1 or not -1 <= tau_hi <= 1:
        raise OutOfRange(f"tau_lo={tau_lo}, tau_hi={tau_hi}: cosines.")
    if a.shape[1] != b.shape[1]:
        raise ShapeMismatch(f"directions of width {a.shape[1]} and {b.shape[1]} cannot be compared.")
    cosine = a @ b.T
    forward, backward = cosine.argmax(1), cosine.argmax(0)

    def fates(best: np.ndarray, back: np.ndarray, largest: np.ndarray, none: str) -> list[str]:
        mutual = back[best] == np.arange(len(best))
        return [
            none if c < tau_lo else "persists" if m or c >= tau_hi else "processed"
            for c, m in zip(largest, mutual, strict=True)
        ]

    return Match(
        cosine=cosine,
        forward=forward,
        backward=backward,
        fate=fates(forward, backward, cosine.max(1), "dies"),
        origin=fates(backward, forward, cosine.max(0), "born"),
        tau_lo=tau_lo,
    )


def unit_rows(rows: Tensor) -> np.ndarray:
    """Directions of length one in float64; a row of zeros stays one.

    Raises:
        ShapeMismatch, NotFinite.
    """
    rows = np.asarray(rows.detach().double().cpu() if isinstance(rows, Tensor) else rows, np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ShapeMismatch(f"directions are [latent d], at least one; got {list(rows.shape)}.")
    if not np.isfinite(rows).all():
        raise NotFinite("a direction holds NaN or Inf.")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
