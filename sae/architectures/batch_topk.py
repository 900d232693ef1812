"""BatchTopK: the k·B largest pre-activations of a batch (Bussmann et al. 2024, 2412.06410; SAELens, DL [code]).

a = ReLU(W_enc (x - b_dec) + b_enc); the k·B largest of a batch of B rows are kept, whatever row they are of. Used
alone, a row keeps what is above `threshold`: an exponential average of the least entry that was kept in training.

A ViT's artefact tokens have ten times the norm of others and would take nearly the whole batch. So rows are scaled to
one norm (`normalise='token_norm'`), a row takes at most `row_limit` times k, and `by_type=True` gives every type of
token a budget of its own. `normalise='mean_square', row_limit=None` is the published form.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mechvis.errors import BadData
from sae.architecture import Architecture, Loss, Step
from sae.architectures.topk import ranked
from sae.losses import kept_loss
from sae.normaliser import Kind
from sae.select import batch_support, rankable

if TYPE_CHECKING:
    from sae.active import Encoder, Values
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class BatchTopK(Architecture):
    """The k·B largest latents of a batch.

    Example:
        >>> BatchTopK(n_latents=512, k=8).row_limit
        8.0
    """

    NAME: ClassVar[str] = "batch_topk"
    CALIBRATES: ClassVar[bool] = True

    normalise: Kind = "token_norm"
    """How activations are scaled; a transcoder needs 'mean_square'."""
    k: int = 32
    """Active latents per row, on average."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""
    row_limit: float | None = 8.0
    """A row has at most this many times k; None: no limit."""
    by_type: bool = False
    """Every type of token has a budget of its own, where types are known."""
    threshold_decay: float = 0.999
    """Of the average that becomes the threshold."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.aux < 0 or self.k_aux < 0 or not 0 <= self.threshold_decay < 1:
            raise BadData(f"aux={self.aux}, k_aux={self.k_aux}, threshold_decay={self.threshold_decay} cannot be.")
        if self.row_limit is not None and self.row_limit < 1:
            raise BadData(f"row_limit={self.row_limit}: a row needs room for at least k latents, so 1 or more.")

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """The threshold, in units of what latents compete with; below zero: not known yet."""
        return {"threshold": torch.tensor(-1.0, dtype=torch.float64)}

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """What is above the threshold.

        Raises:
            BadData: it was never trained, so there is no threshold.
        """
        if d.threshold < 0:
            raise BadData("this dictionary has no threshold yet: it is learned while it is trained.")
        pre = d.encoder(x, fast=False).pre
        return torch.where(ranked(d, pre.detach()) > d.threshold.to(pre.dtype), pre.relu(), 0.0)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder, codes, least = self.chosen(d, x, step)
        return kept_loss(d, encoder, codes, x, y, step, least=least)

    def chosen(self, d: "Dictionary", x: Tensor, step: Step) -> "tuple[Encoder, Values, Tensor]":
        """The batch encoded, its codes, and the least of them."""
        encoder = d.encoder(x, fast=step.fast, bf16=step.bf16)
        k = min(self.n_latents, max(self.k, self.k * step.k_factor))
        types = step.types if self.by_type else None
        scores = encoder if rankable(d, encoder, step, types) else ranked(d, encoder.pre.detach())
        support, least = batch_support(
            scores, k, row_limit=self.row_limit, types=types, team=step.team, shards=d.shards
        )
        return encoder, encoder.at(support).map(torch.relu), least

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:
        """Average the threshold: a plain mean at first, so that no start value has to be forgotten."""
        decay = min(self.threshold_decay, (1 + step.number) / (10 + step.number))
        least = loss.seen["least"].to(d.threshold)
        known = torch.where(d.threshold < 0, least, d.threshold)
        d.threshold.copy_(torch.where(torch.isfinite(least), decay * known + (1 - decay) * least, d.threshold))
