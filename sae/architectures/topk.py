"""TopK: the k largest pre-activations of every row (Gao et al. 2024, 2406.04093; openai/sparse_autoencoder [code]).

z = W_enc (x - b_dec) + b_enc;  f = ReLU of the k largest z of the row;  x̂ = f W_dec + b_dec.
Loss: ‖x - x̂‖² over the batch's variance, plus `aux` times the error of dead latents on what is left over.
With a free decoder the k largest z_i‖W_dec,i‖ are taken (SAELens [code]).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mechvis.errors import BadData
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.architecture import Architecture, Loss, Step
from sae.losses import kept_loss
from sae.select import row_support

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class TopK(Architecture):
    """The k largest latents of each row.

    Example:
        >>> TopK(n_latents=512, k=8).to_json()["name"]
        'topk'
    """

    NAME: ClassVar[str] = "topk"
    CALIBRATES: ClassVar[bool] = True

    k: int = 32
    """Active latents per row."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written, as in most libraries."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.aux < 0 or self.k_aux < 0:
            raise BadData(f"aux={self.aux}, k_aux={self.k_aux}: neither is negative.")

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """The k largest of each row."""
        pre = d.encoder(x, fast=False).pre
        _, latents = topk(ranked(d, pre.detach()), self.k)
        kept = Support.from_rows(latents, self.n_latents).mask()
        return torch.where(kept, pre.relu(), 0.0)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder = d.encoder(x, fast=step.fast, bf16=step.bf16)
        k = min(self.n_latents, max(self.k, round(self.k * step.k_factor)))
        norms = None if self.decoder == "unit" else d.W_dec.detach().norm(dim=1)
        support, _ = row_support(d, encoder, k, scale=norms)
        codes = encoder.at(support).map(torch.relu)
        return kept_loss(d, encoder, codes, x, y, step)


def ranked(d: "Dictionary", pre: Tensor) -> Tensor:
    """What latents compete with: the pre-activation, times the decoder row's norm where that is free."""
    return pre if d.architecture.decoder == "unit" else pre * d.W_dec.detach().norm(dim=1).to(pre.dtype)
