"""Monosemanticity: are the images that a latent is active on alike? (MS, Pach et al. 2025, 2504.02821)

With a_b ≥ 0 the activation of a latent on image b and ê_b a unit embedding of the image by another model (DINOv2 in the
paper), MS is the mean cosine of all pairs of different images, weighted by the product of their activations:

    MS = Σ_{b≠c} a_b a_c ê_b·ê_c / Σ_{b≠c} a_b a_c

The released code loops over N² pairs. It is exact in one matrix product (sae.md 2.16), for S = A'Ê, of all latents:

    MS_i = (‖S_i‖² - Σ a²) / ((Σ a)² - Σ a²)

Activations are scaled to [0, 1] per latent in the paper. The ratio does not depend on the scale, and a shift changes
the three sums in a known way, so batches stream by once and nothing has to be known of the range before. A sparse
matrix of activations costs what its entries cost.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Monosemanticity:
    """Scores of latents."""

    score: Float[np.ndarray, " latent"]
    """Weighted mean cosine of pairs of images, -1 to 1; NaN for latents that are active on fewer than two images."""
    images: Float[np.ndarray, " latent"]
    """Images that each latent is above its least value on."""
    all_pairs: float
    """Mean cosine of all pairs of images: the score of a latent that does not care."""


class Sums:
    """What the score needs, while batches stream by.

    Example:
        >>> sums = Sums()
        >>> sums.add(torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> float(sums.found().score[0])
        1.0
    """

    def __init__(self):
        self._weighted: Tensor | None = None

    def add(self, activations: Float[Tensor, "image latent"], embeddings: Float[Tensor, "image d_embed"]) -> None:
        """Count a batch.

        Args:
            activations: one number per image and latent; dense or sparse (COO or CSR).
            embeddings: of the same images, by another model; any length but zero.

        Raises:
            ShapeMismatch: another number of images.
            NotFinite: NaN or Inf.
            BadData: an embedding of length zero.
        """
        if activations.ndim != 2 or embeddings.ndim != 2 or len(activations) != len(embeddings):
            told = f"{list(activations.shape)} and {list(embeddings.shape)}"
            raise ShapeMismatch(
                f"activations [image latent] and embeddings [image d_embed] of the same images; {told}."
            )
        sparse = activations.layout != torch.strided
        a = activations.detach().to_sparse_coo().coalesce() if sparse else activations.detach()
        numbers = a.values() if sparse else a
        if not torch.isfinite(numbers).all() or not torch.isfinite(embeddings).all():
            raise NotFinite("activations or embeddings hold NaN or Inf.")
        e = embeddings.detach().double()
        length = e.norm(dim=1, keepdim=True)
        if not (length > 0).all():
            raise BadData(f"the embedding of image {int((length[:, 0] == 0).nonzero()[0, 0])} of a batch is zero.")
        e = e / length
        if self._weighted is None:
            n, width = a.shape[1], e.shape[1]
            zeros = e.new_zeros
            self._weighted, self._sum, self._squares, self._least = zeros(n, width), zeros(n), zeros(n), zeros(n)
            self._least += torch.inf
            self._above, self._embedding, self._images = zeros(n), zeros(width), 0
        if sparse:
            rows, latents = a.indices()
            n_latents = a.shape[1]
            values = numbers.double()
            self._weighted += (
                torch.sparse_coo_tensor(
                    torch.stack([latents, rows]), values, (n_latents, len(e)), check_invariants=False
                )
                @ e
            )
            self._sum.index_add_(0, latents, values)
            self._squares.index_add_(0, latents, values.square())
            least = values.new_full((a.shape[1],), torch.inf).scatter_reduce(0, latents, values, "amin")
            stored = torch.zeros_like(least).index_add_(0, latents, torch.ones_like(values))
            least = torch.where(stored < len(e), least.clamp_max(0.0), least)
            self._above.index_add_(0, latents, (values > 0).double())
        else:
            values = numbers.double()
            self._weighted += values.T @ e
            self._sum += values.sum(0)
            self._squares += values.square().sum(0)
            least = values.amin(0)
            self._above += (values > 0).sum(0)
        self._least = torch.minimum(self._least, least)
        self._embedding += e.sum(0)
        self._images += len(e)

    def found(self) -> Monosemanticity:
        """The scores.

        Raises:
            BadData: fewer than two images.
        """
        if self._weighted is None or self._images < 2:
            raise BadData("monosemanticity compares pairs of images: at least two are needed.")
        n, low = self._images, self._least
        S = self._weighted - low[:, None] * self._embedding
        total = self._sum - n * low
        squares = self._squares - 2 * low * self._sum + n * low.square()
        pairs = total.square() - squares
        # With one active image the difference is rounding; a latent needs two.
        enough = pairs > 1e-9 * total.square()
        score = torch.where(enough, (S.square().sum(1) - squares) / torch.where(enough, pairs, 1.0), torch.nan)
        active = torch.where(low == 0, self._above, torch.where(total > 0, float(n), 0.0))
        return Monosemanticity(
            score=score.cpu().numpy(),
            images=active.cpu().numpy(),
            all_pairs=float((self._embedding.square().sum() - n) / (n * (n - 1))),
        )


def monosemanticity(
    activations: Float[Tensor, "image latent"], embeddings: Float[Tensor, "image d_embed"]
) -> Monosemanticity:
    """Scores of all latents, from activations in memory (dense or sparse).

    Args:
        activations: one number per image and latent, e.g. the largest code over the image's tokens.
        embeddings: of the same images, by another model.

    Raises:
        ShapeMismatch, NotFinite, BadData: see :class:`Sums`.
    """
    sums = Sums()
    sums.add(activations, embeddings)
    return sums.found()


def by_pairs(activations: Float[Tensor, "image latent"], embeddings: Float[Tensor, "image d_embed"]) -> np.ndarray:
    """The plain twin: min-max scaled activations, and a loop over pairs of images."""
    a, e = activations.double().cpu().numpy(), embeddings.double().cpu().numpy()
    low, high = a.min(0), a.max(0)
    a = np.divide(a - low, high - low, out=np.zeros_like(a), where=high > low)
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    above, below = np.zeros(a.shape[1]), np.zeros(a.shape[1])
    for b in range(len(a)):
        for c in range(b + 1, len(a)):
            weight = a[b] * a[c]
            above += weight * (e[b] @ e[c])
            below += weight
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
