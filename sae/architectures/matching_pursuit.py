"""Matching pursuit: no encoder; the decoder's own rows are taken one after the other (MP-SAE, 2506.03093).

1. r_0 = x - b_dec; k times: the atom that r points along most, v = ReLU(r·D_j), z_j += v, r <- r - v D_j
   (`sae.pursuit`).
2. Loss: ‖r_k‖² over the variance, plus `aux` times what dead atoms leave of r_k when they pursue it (one step): they
   learn from what nobody explains. (overcomplete adds -1e-2 times the mean of r·D_dead over all rows and dead atoms
   [code], which turns all of them the same way.)

Because each step explains what is left over, atoms may be correlated: hierarchies that one round of TopK cannot tell
apart. k may be changed when it is used; more steps never make a row worse. Cost: k encoder products per batch, or one
and a square of the atoms where there are fewer atoms than rows.

SAELens [code]: residual threshold 1e-2, in the units of the rows; here in normalised rows, whose mean square is 1.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod, unknown
from sae.architecture import Architecture, Loss, Step
from sae.losses import fvu, squared_error
from sae.omp import orthogonal_pursue
from sae.pursuit import pursue

if TYPE_CHECKING:
    from sae.dictionary import Dictionary
    from sae.ends import Ends


@dataclass(frozen=True, kw_only=True)
class MatchingPursuit(Architecture):
    """Atoms taken one at a time.

    Example:
        >>> MatchingPursuit(n_latents=512, k=8).solve
        'pursuit'
    """

    NAME: ClassVar[str] = "matching_pursuit"

    k: int = 32
    """Steps, so at most that many active latents per row."""
    residual_threshold: float = 1e-2
    """A row whose residual is shorter takes no more; in normalised units."""
    solve: Literal["pursuit", "nnls"] = "pursuit"
    """When it is used: coefficients of the pursuit, or solved for again after each step (orthogonal matching pursuit
    with non-negative coefficients, `sae.omp`). Training is by pursuit."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents."""

    def check(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.k <= self.n_latents:
            raise BadData(f"k={self.k} of {self.n_latents} latents: k is between 1 and their number.")
        if self.residual_threshold < 0 or self.aux < 0:
            raise BadData(f"residual_threshold={self.residual_threshold}, aux={self.aux}: neither is negative.")
        if self.solve not in ("pursuit", "nnls"):
            raise unknown("solve", self.solve, ("pursuit", "nnls"))
        if self.decoder != "unit" or self.skip:
            raise RefusedMethod(
                f"decoder={self.decoder!r}, skip={self.skip}: matching pursuit projects on its atoms, which therefore "
                "have norm one, and writes what it reads, so nothing may go past it."
            )

    def parameters(self, ends: "Ends", x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Atoms and a bias.

        Raises:
            RefusedMethod: something else is written than is read.
        """
        if ends.transcodes:
            raise RefusedMethod(
                "matching pursuit finds codes with the directions that it writes, so it cannot read one site and write "
                "another; take TopK or BatchTopK for a transcoder."
            )
        found = super().parameters(ends, x, y, generator)
        return {"W_dec": found["W_dec"], "b_dec": found["b_dec"]}

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """Codes by pursuit, or by its orthogonal form."""
        rest = x - d.b_dec
        if self.solve == "nnls":
            found = orthogonal_pursue(rest, d.W_dec, self.k, threshold=self.residual_threshold)
        else:
            found = pursue(rest, d.W_dec, self.k, threshold=self.residual_threshold)
        return found.codes(self.n_latents)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        k = min(self.n_latents, max(self.k, round(self.k * step.k_factor)))
        found = pursue(x - d.b_dec, d.W_dec, k, threshold=self.residual_threshold, bf16=step.bf16, fast=step.fast)
        y_hat = y - found.residual
        error = fvu(y, y_hat, step)
        aux = self._dead(d, found.residual.detach(), step) if self.aux else y.new_zeros(())
        return Loss(
            total=error + self.aux * aux,
            parts={"error": error.detach(), "aux": aux.detach()},
            y_hat=y_hat.detach(),
            codes=found.entries(self.n_latents),
        )

    def _dead(self, d: "Dictionary", error: Tensor, step: Step) -> Tensor:
        """What dead atoms leave of the residual, as a share of it."""
        if step.dead is None or step.n_dead < 1:
            return error.new_zeros(())
        left = pursue(error, d.W_dec, 1, among=step.dead, gram=False, bf16=step.bf16, fast=step.fast).residual
        mean = step.team.mean(error.mean(0))
        scale = step.team.mean((error - mean).square().sum(1).mean()).clamp_min(torch.finfo(error.dtype).tiny)
        loss = squared_error(left, torch.zeros_like(left)) / scale
        # The host may know of dead latents that are alive by now: then nobody was among those that may be taken.
        return torch.where(step.dead.any() & torch.isfinite(loss), loss, 0.0)
