"""BatchTopK crosscoder (Minder et al. 2025; science-of-finetuning/crosscoder_learning [code]).

f = ReLU(Σ_l W_enc^l a^l + b_enc); of a batch of B rows the k·B largest f_i c_i are kept. `code_normalization` says what
c_i is (W^l: the latent's decoder row at site l):

=============  ================================================================  ====================================
name           c_i                                                               id in crosscoder_learning's files
=============  ================================================================  ====================================
crosscoder     Σ_l ‖W_i^l‖                                                       1
sae            ‖W_i‖ over all sites side by side                                 2
mixed          ‖W_i‖ + .1 Σ_l ‖W_i^l‖                                            3
none           1                                                                 4
decoupled      ‖W_i^l‖ at site l: each site has its own k·B and threshold        5
=============  ================================================================  ====================================

Loss: mean over rows and sites of ‖a^l - â^l‖ (not squared: a site with long rows does not drown the others), plus `aux`
times the error of dead latents on what is left over, all sites side by side. Used alone, a latent is kept where f_i c_i
is above a threshold: an exponential average of the least that was kept.

With 'decoupled' a latent may be active at one site and silent at another. Codes are those that are active anywhere;
`decode` writes them at the sites where f_i ‖W_i^l‖ is above that site's threshold.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, unknown
from mechvis.kernels.support import Support
from sae.active import Values
from sae.architecture import Architecture, Loss, Step
from sae.architectures.crosscoder import errors_by_site, side_by_side, site_norms
from sae.losses import aux_share, dead_latents_loss
from sae.normaliser import Kind
from sae.select import batch_support

if TYPE_CHECKING:
    from sae.active import Encoder
    from sae.dictionary import Dictionary
    from sae.ends import Ends

CODE_NORMALIZATIONS = ("crosscoder", "sae", "mixed", "none", "decoupled")
MIXED = 0.1
"""Weight of the sum of norms in 'mixed'."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKCrosscoder(Architecture):
    """The k·B largest scaled codes of a batch, for several sites at once.

    Example:
        >>> BatchTopKCrosscoder(n_latents=512, k=8).code_normalization
        'crosscoder'
    """

    NAME: ClassVar[str] = "batch_topk_crosscoder"

    normalise: Kind = "mean_norm"
    """How activations are scaled, each site by itself."""
    decoder: Literal["unit", "free"] = "free"
    """Free as published; 'unit' keeps the norm over all sites at one."""
    data_init: float = 0.4
    """Share of a data point in the initial directions (saev [code] for crosscoders)."""
    k: int = 32
    """Active latents per row, on average; k is annealed by `Training.k_start` and `k_steps`."""
    code_normalization: Literal["crosscoder", "sae", "mixed", "none", "decoupled"] = "crosscoder"
    """What codes are scaled with before they compete."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""
    row_limit: float | None = 8.0
    """A row has at most this many times k (artefact tokens of a ViT would take most of a batch); None: no limit."""
    by_type: bool = False
    """Every type of token has a budget of its own, where types are known."""
    threshold_decay: float = 0.999
    """Of the average that becomes the threshold; a plain mean in the first steps, instead of none before step 1000."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if self.code_normalization not in CODE_NORMALIZATIONS:
            raise unknown("code_normalization", self.code_normalization, CODE_NORMALIZATIONS)
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.aux < 0 or self.k_aux < 0 or not 0 <= self.threshold_decay < 1:
            raise BadData(f"aux={self.aux}, k_aux={self.k_aux}, threshold_decay={self.threshold_decay} cannot be.")
        if self.row_limit is not None and self.row_limit < 1:
            raise BadData(f"row_limit={self.row_limit}: a row needs room for at least k latents, so 1 or more.")

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Directions between data points and random ones; the norm over all sites is one."""
        return side_by_side(self, ends, x, y, generator, norm=len(ends.writes) ** -0.5)

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """A threshold per budget: one, or one per site; below zero: not known yet."""
        budgets = len(ends.writes) if self.code_normalization == "decoupled" else 1
        return {"budget_thresholds": torch.full((budgets,), -1.0, dtype=torch.float64)}

    def subtracts_bias(self, ends: "Ends") -> bool:
        """No: the encoder has a bias of its own."""
        return False

    def scales(self, d: "Dictionary") -> Float[Tensor, "budget latent"]:
        """c_i, one row per budget; no gradient."""
        norms = site_norms(d.W_dec.detach(), d.ends)
        joint = norms.square().sum(1).sqrt()
        return {
            "crosscoder": lambda: norms.sum(1)[None],
            "sae": lambda: joint[None],
            "mixed": lambda: (joint + MIXED * norms.sum(1))[None],
            "none": lambda: torch.ones_like(joint)[None],
            "decoupled": lambda: norms.T,
        }[self.code_normalization]()

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """What is above the threshold of any budget.

        Raises:
            BadData: it was never trained, so there is no threshold.
        """
        if (d.budget_thresholds < 0).any():
            raise BadData("this crosscoder has no threshold yet: it is learned while it is trained.")
        pre = d.encoder(x, fast=False).pre
        kept = torch.stack(self._kept(d, pre.detach())).any(0)
        return torch.where(kept, pre.relu(), 0.0)

    def decode(self, d: "Dictionary", codes: Tensor) -> Tensor:
        """What codes write; with 'decoupled' at the sites where they are above the site's threshold."""
        if self.code_normalization != "decoupled":
            return codes @ d.W_dec + d.b_dec
        parts = d.W_dec.split(list(d.ends.writes.values()), dim=1)
        written = [own @ part for own, part in zip(self.codes_by_site(d, codes), parts, strict=True)]
        return torch.cat(written, dim=1) + d.b_dec

    def codes_by_site(self, d: "Dictionary", codes: Tensor) -> list[Float[Tensor, "row latent"]]:
        """The codes that each site gets: all of them, or with 'decoupled' those above the site's threshold."""
        if self.code_normalization != "decoupled":
            return [codes] * len(d.ends.writes)
        return [torch.where(at, codes, 0.0) for at in self._kept(d, codes.detach())]

    def _kept(self, d: "Dictionary", codes: Tensor) -> list[Tensor]:
        scales, thresholds = self.scales(d).to(codes.dtype), d.budget_thresholds.to(codes.dtype)
        return [codes * scale > threshold for scale, threshold in zip(scales, thresholds, strict=True)]

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder, supports, least = self.chosen(d, x, step)
        if len(supports) == 1:
            codes = encoder.at(supports[0]).map(torch.relu)
            y_hat = d.write(codes, x)
        else:
            codes, y_hat = self._decoupled(d, encoder, supports, x)
        widths = list(d.ends.writes.values())
        error = torch.stack([part.norm(dim=1).mean() for part in (y - y_hat).split(widths, dim=1)]).mean()
        k_aux = aux_share(self, d.ends)
        aux, _ = dead_latents_loss(d, encoder, y, y_hat, k_aux, step)
        return Loss(
            total=error + self.aux * aux,
            parts={"error": error.detach(), "aux": aux.detach(), **errors_by_site(d.ends, y, y_hat)},
            y_hat=y_hat.detach(),
            codes=codes.detach(),
            seen={"least": least},
        )

    def chosen(self, d: "Dictionary", x: Tensor, step: Step) -> "tuple[Encoder, list[Support], Tensor]":
        """The batch encoded, the places that each budget keeps, and the least that it kept."""
        encoder = d.encoder(x, fast=step.fast, bf16=step.bf16)
        k = min(self.n_latents, max(self.k, self.k * step.k_factor))
        types = step.types if self.by_type else None
        pre = encoder.pre.detach()
        found = [
            batch_support(pre * scale, k, row_limit=self.row_limit, types=types, team=step.team, shards=d.shards)
            for scale in self.scales(d).to(pre.dtype)
        ]
        return encoder, [support for support, _ in found], torch.stack([least for _, least in found])

    def _decoupled(
        self, d: "Dictionary", encoder: "Encoder", supports: list[Support], x: Tensor
    ) -> tuple[Values, Tensor]:
        """Codes of all budgets together, and what each site gets of them."""
        masks = [support.mask() for support in supports]
        union = Support.from_mask(torch.stack(masks).any(0))
        codes = encoder.at(union).map(torch.relu)
        parts = d.W_dec.split(list(d.ends.writes.values()), dim=1)
        written = []
        for mask, part in zip(masks, parts, strict=True):
            here = mask.to(codes.numbers.dtype)
            numbers = here[union.rows, union.latents] if codes.mask is None else here
            written.append(codes.times(Values(numbers=numbers, support=union, mask=codes.mask)).decode(part))
        y_hat = d.shards.sum(torch.cat(written, dim=1)) + d.b_dec
        return codes, y_hat + x @ d.W_skip.T if self.skip else y_hat

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:
        """Average the thresholds: a plain mean at first, so that no start value has to be forgotten."""
        decay = min(self.threshold_decay, (1 + step.number) / (10 + step.number))
        least = loss.seen["least"].to(d.budget_thresholds)
        known = torch.where(d.budget_thresholds < 0, least, d.budget_thresholds)
        averaged = decay * known + (1 - decay) * least
        d.budget_thresholds.copy_(torch.where(torch.isfinite(least), averaged, d.budget_thresholds))

    def folded(self, d: "Dictionary") -> dict[str, Tensor]:
        """Rows of norm one over all sites. Not with 'none': there, norms decide what is kept, and stay."""
        return d.state_dict() if self.code_normalization == "none" else super().folded(d)
