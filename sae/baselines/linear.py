"""Codes by one matrix, which may have signs: PCA, ICA, the identity.

z = W_enc (x - b_dec) + b_enc;  negative ones are set to zero where `rectify`;  the k largest |z| are kept where k is
given;  x̂ = z W_dec + b_dec. For orthonormal directions keeping the k largest is the best that k of them can do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData
from mechvis.kernels.topk import topk
from sae.baselines.fitted import Fitted

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class Linear(Fitted):
    """One matrix in, one matrix out.

    Example:
        >>> Linear(n_latents=16, k=4).rectify
        False
    """

    NAME: ClassVar[str] = "linear"

    k: int | None = None
    """Codes that are kept per row, the largest by size; None: all."""
    rectify: bool = False
    """Set negative codes to zero."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.k is not None and not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """See the module."""
        codes = (x - d.b_dec) @ d.W_enc.T + d.b_enc
        codes = codes.relu() if self.rectify else codes
        return codes if self.k is None else largest(codes, self.k)


def largest(codes: Float[Tensor, "row latent"], k: int) -> Float[Tensor, "row latent"]:
    """The k codes of each row that are largest by size; the others are zero."""
    _, latents = topk(codes.detach().abs(), k)
    return torch.zeros_like(codes).scatter(1, latents, codes.gather(1, latents))


def parameters(encoder: np.ndarray, decoder: np.ndarray, centre: np.ndarray, *, signed: bool) -> dict[str, np.ndarray]:
    """Parameters with decoder rows of norm one; without signs, every direction becomes two latents.

    Args:
        encoder: `[latent d]`.
        decoder: `[latent d]`, rows of any length but zero.
        centre: `[d]`, taken off before and added after.
        signed: codes may be negative; else the second half of the latents are the opposite directions.
    """
    length = np.linalg.norm(decoder, axis=1, keepdims=True)
    encoder, decoder = encoder * length, decoder / length
    if not signed:
        encoder, decoder = np.concatenate([encoder, -encoder]), np.concatenate([decoder, -decoder])
    return {"W_enc": encoder, "W_dec": decoder, "b_enc": np.zeros(len(encoder)), "b_dec": centre}
