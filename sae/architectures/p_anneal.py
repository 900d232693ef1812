"""p-anneal: a penalty Σ f^p whose p falls from 1 (L1) towards 0 (L0) while it is trained (2408.00113; DL [code]).

f and x̂ as for ReLU. Loss: ‖x - x̂‖² + λ_t Σ_i (f_i + ε)^p_t over f_i > 0, with f_i‖W_dec,i‖ for f_i where the decoder is
free.

1. p takes `updates` values from `p_start` to `p_end`, at equal distances, from `anneal_start` to `anneal_end` of the
   run. With `anneal_end=1` the last value is not reached, as in DL: at p = 0 the penalty would have no gradient.
2. When p changes, λ is multiplied with mean(Σ f^p_old) / mean(Σ f^p_new) over the last `window` batches, so that the
   penalty stays as large as it was. The batches of the step before count; DL changes p one step later.
3. f^p has an infinite slope at 0: entries at zero do not count, and ε bounds the slope of the others by p ε^(p-1).

p, the factor on λ and the recent penalties are state of the dictionary, so checkpoints have them and a resumed run goes
on as it would have. DL counts `anneal_start` in steps (15 000); a share of the run holds for runs of any length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData
from sae.architecture import Architecture, Loss, Step
from sae.architectures.relu import BiasInit, beginning, require_beginning, require_penalty, revived, weighted
from sae.density import settled
from sae.losses import squared_error

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class PAnneal(Architecture):
    """ReLU codes with a penalty that turns from L1 towards L0.

    Example:
        >>> [round(PAnneal(n_latents=512).p_of(level), 2) for level in (0, 1, 9)]
        [1.0, 0.89, 0.0]
    """

    NAME: ClassVar[str] = "p_anneal"

    sparsity: float = 0.1
    """λ in the beginning; it rises during `Training.sparsity_warm_up`."""
    p_start: float = 1.0
    """p in the beginning."""
    p_end: float = 0.0
    """Where p goes."""
    updates: int = 10
    """Values that p takes."""
    anneal_start: float = 0.2
    """Share of the run after which p begins to fall."""
    anneal_end: float = 1.0
    """Share of the run at which it has its last value."""
    window: int = 10
    """Batches over which penalties are compared when p changes."""
    epsilon: float = 1e-4
    """Added to codes before the power."""
    norm_init: float = 0.1
    """Norm of encoder rows in the beginning, and of decoder rows where they are free (DL [code])."""
    b_dec_init: BiasInit = "median"
    """`b_dec` starts at the geometric median of the data, or at zero."""
    aux: float = 0.0
    """Coefficient of the loss of dead latents; no published recipe has it."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""

    @classmethod
    def dictionary_learning(cls, n_latents: int, **changes: Any) -> Self:
        """`PAnnealTrainer` of dictionary_learning [code] with `sparsity_function='Lp^p'`.

        Its optimiser: `Training(lr=1e-3, lr_warm_up=1000, clip=None, decay=0)`, λ rising over 2000 steps.
        """
        return cls(**{"n_latents": n_latents, "data_init": 0.0, "b_dec_init": "zero", **changes})

    def check(self) -> None:
        """Refuse what cannot be."""
        require_penalty("sparsity", self.sparsity)
        require_beginning(self)
        if not 0 <= self.p_end <= self.p_start or self.p_start == 0:
            raise BadData(f"p_start={self.p_start}, p_end={self.p_end}: p falls from above 0 to 0 at least.")
        if not 0 <= self.anneal_start < self.anneal_end <= 1:
            raise BadData(
                f"anneal_start={self.anneal_start}, anneal_end={self.anneal_end} are shares of the run, the first "
                "before the second."
            )
        if self.updates < 2 or self.window < 1 or not self.epsilon > 0:
            raise BadData(
                f"updates={self.updates}, window={self.window}, epsilon={self.epsilon}: at least 2 values of p, 1 "
                "batch to compare them on, and an ε above 0."
            )

    def p_of(self, level: int | Tensor) -> float | Tensor:
        """The value of p at a level, from 0 to `updates` - 1."""
        return self.p_start + (self.p_end - self.p_start) * level / (self.updates - 1)

    def level_at(self, progress: float) -> int:
        """How often p should have changed by now."""
        done = (progress - self.anneal_start) / (self.anneal_end - self.anneal_start)
        return min(max(math.floor(done * (self.updates - 1) + 1e-9), 0), self.updates - 1)

    def state(self, ends: "Ends") -> dict[str, Tensor]:
        """How often p has changed, the factor on λ, and the penalties of recent batches with this p and the next."""
        return {
            "level": torch.tensor(0),
            "factor": torch.tensor(1.0, dtype=torch.float64),
            "recent": torch.zeros(self.window, 2, dtype=torch.float64),
        }

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """As ReLU."""
        return beginning(self, ends, x, y, generator)

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """ReLU."""
        return d.encoder(x, fast=False).pre.relu()

    def before(self, d: "Dictionary", step: Step) -> None:
        """Change p where it is time, by one value per step, and λ with it. Nothing waits for the device."""
        now = d.level < self.level_at(step.progress)
        old, new = d.recent.sum(0)
        d.factor.mul_(torch.where(now & (new > 0), old / new, 1.0))
        d.level.add_(now.long())
        d.recent.mul_(~now)  # what was measured with another p does not count any more

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder, support = settled(d.encoder(x, fast=step.fast, bf16=step.bf16), lambda pre: pre > 0)
        codes = encoder.at(support).map(torch.relu)
        y_hat = d.write(codes, x)
        error = squared_error(y, y_hat)
        costs = weighted(d, codes)
        power = self.p_of(d.level.double())
        following = self.p_of((d.level + 1).clamp(max=self.updates - 1).double())
        sparsity = costs.map(self.powers(power.to(x))).sum() / len(x)
        with torch.no_grad():
            now = d.shards.total(sparsity.detach())
            then = d.shards.total(costs.detach().map(self.powers(following.to(x))).sum() / len(x))
        aux = revived(d, encoder, y, y_hat, step)
        return Loss(
            total=error + self.sparsity * step.sparsity * d.factor.to(x) * sparsity + self.aux * aux,
            parts={"error": error.detach(), "sparsity": now, "aux": aux.detach()},
            y_hat=y_hat.detach(),
            codes=codes.detach(),
            seen={"penalties": torch.stack([now, then])},
        )

    def powers(self, p: Float[Tensor, ""]) -> Callable[[Tensor], Tensor]:
        """(f + ε)^p of an entry."""
        return lambda codes: (codes + self.epsilon) ** p

    def after(self, d: "Dictionary", loss: Loss, step: Step) -> None:
        """Remember the penalties of this batch."""
        found = step.team.mean(loss.seen["penalties"].to(d.recent))
        d.recent.copy_(torch.cat([d.recent[1:], found[None]]))
