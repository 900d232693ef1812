"""Matryoshka: BatchTopK whose first latents have to do without the later ones (Bussmann et al. 2025, 2503.17547).

Wide dictionaries split and absorb: a general latent stops firing where a special one does. Here every prefix of the
latents has to explain the rows on its own, so the first ones stay general.

1. Codes f as in `batch_topk`: the k·B largest of the batch over all latents.
2. Prefixes m_1 < ... < m_G = n. ŷ_g = f[:m_g] W_dec[:m_g] + b_dec, built up: ŷ_g = ŷ_{g-1} + what group g adds. Every
   entry is read once whatever G is: the entries of a row ascend by latent, so groups are runs of them
   (`prefix_writes`).
3. Loss: Σ_g ‖y - ŷ_g‖² over the variance, plus `aux` times AuxK. The sum, or with `reduce='mean'` the mean; never both.
   (dictionary_learning weighs groups with 1/G and then takes a mean over them, so the error counts 1/G² [code].)

`prefixes > 0` draws that many prefixes anew each step, from the Pareto distribution of saev [code]: many short ones.
They are a function of (`prefix_seed`, step), so a resumed run draws the same.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, unknown
from mechvis.kernels.support import Support
from sae.active import Values
from sae.architecture import Loss, Step
from sae.architectures.batch_topk import BatchTopK
from sae.losses import aux_share, dead_latents_loss, fvu

if TYPE_CHECKING:
    from sae.active import Encoder
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class Matryoshka(BatchTopK):
    """BatchTopK with nested prefixes. It is a BatchTopK when it is used, so it inherits from it.

    Example:
        >>> Matryoshka(n_latents=512, k=8).bounds()
        (16, 48, 112, 240, 512)
        >>> Matryoshka(n_latents=512, k=8, prefixes=4).bounds(step=7)[-1]
        512
    """

    NAME: ClassVar[str] = "matryoshka"

    groups: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
    """Share of the latents in each group, together 1; prefixes end where groups do (the paper's)."""
    prefixes: int = 0
    """Above 0: that many random prefixes per step in place of the groups; the last one is all latents."""
    pareto: float = 0.5
    """Power of the distribution of random prefixes: a prefix is longer than m with probability m^-pareto."""
    prefix_seed: int = 0
    """Of the random prefixes."""
    reduce: Literal["sum", "mean"] = "sum"
    """How the errors of the prefixes are put together."""
    aux_per_group: bool = False
    """Dead latents of each group learn from what the prefix that ends with the group leaves over (SAELens option
    [code]); else all from what is left over in the end."""

    def check(self) -> None:
        """Refuse what cannot be."""
        super().check()
        if self.reduce not in ("sum", "mean"):
            raise unknown("reduction", self.reduce, ("sum", "mean"))
        if self.prefixes < 0 or self.prefixes > self.n_latents or self.pareto <= 0:
            raise BadData(
                f"prefixes={self.prefixes} of {self.n_latents} latents, pareto={self.pareto}: prefixes are between 0 "
                "(the fixed groups) and the number of latents, the power is above 0."
            )
        if not self.groups or min(self.groups) <= 0 or abs(sum(self.groups) - 1) > 1e-6:
            raise BadData(f"groups={self.groups}: shares of the latents, each above 0 and together 1.")
        if not self.prefixes and len(set((0, *self.bounds()))) <= len(self.groups):
            raise BadData(f"{self.n_latents} latents are too few for groups={self.groups}: one of them would be empty.")

    def bounds(self, step: int = 0) -> tuple[int, ...]:
        """Where prefixes end, ascending; the last one is all latents.

        Args:
            step: number of the step; matters to random prefixes only.
        """
        n = self.n_latents
        if not self.prefixes:
            ends = np.cumsum(self.groups) * n
            return (*(round(float(end)) for end in ends[:-1]), n)
        if self.prefixes == 1 or n == 1:
            return (n,)
        longer = np.arange(1, n, dtype=np.float64) ** -self.pareto
        # P(length = m), of a Pareto distribution cut off at n: what the chance of being longer loses from m to m + 1.
        chance = longer - np.arange(2, n + 1, dtype=np.float64) ** -self.pareto
        generator = np.random.default_rng((self.prefix_seed, step))
        drawn = generator.choice(np.arange(1, n), self.prefixes - 1, replace=False, p=chance / chance.sum())
        return (*(int(m) for m in np.sort(drawn)), n)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder, codes, least = self.chosen(d, x, step)
        bounds = self.bounds(step.number)
        written = prefix_writes(codes, d.W_dec, bounds) + d.b_dec
        if self.skip:
            written = written + x @ d.W_skip.T
        errors = torch.stack([fvu(y, y_hat, step) for y_hat in written])
        error = errors.sum() if self.reduce == "sum" else errors.mean()
        k_aux = aux_share(self, d.ends)
        if self.aux_per_group:
            aux = _aux_per_group(d, encoder, y, written, bounds, k_aux, step)
        else:
            aux, _ = dead_latents_loss(d, encoder, y, written[-1], k_aux, step)
        return Loss(
            total=error + self.aux * aux,
            parts={
                "error": errors[-1].detach(),
                **({} if self.prefixes else {f"error_{g}": e.detach() for g, e in enumerate(errors[:-1])}),
                "aux": aux.detach(),
            },
            y_hat=written[-1].detach(),
            codes=codes.detach(),
            seen={"least": least},
        )


def prefix_writes(
    codes: Values, weight: Float[Tensor, "latent d"], bounds: tuple[int, ...]
) -> Float[Tensor, "group row d"]:
    """What each prefix of the latents writes, without a bias; every entry is read once.

    Args:
        codes: codes whose entries ascend by latent within a row, as `batch_support` and `topk` give them.
        weight: decoder.
        bounds: where prefixes end, ascending, the last at the number of latents.

    Returns:
        one matrix per prefix.
    """
    n_groups = len(bounds)
    if codes.mask is not None:
        starts = (0, *bounds[:-1])
        parts = [codes.numbers[:, a:b] @ weight[a:b] for a, b in zip(starts, bounds, strict=True)]
        return torch.stack(parts).cumsum(0)
    # A matrix with a row for each (row, group): the entries stay in their order, so only the row numbers are new.
    s = codes.support
    group = torch.bucketize(s.latents, torch.tensor(bounds, device=s.latents.device), right=True)
    return written_by_group(codes.numbers, s.latents, s.rows * n_groups + group, s.n_rows, n_groups, weight)


def written_by_group(
    numbers: Float[Tensor, " entry"],
    latents: Tensor,
    places: Tensor,
    n_rows: int,
    n_groups: int,
    weight: Float[Tensor, "latent d"],
) -> Float[Tensor, "group row d"]:
    """Running sums over groups of what entries write.

    Args:
        numbers: the entries.
        latents: of each entry.
        places: row times number of groups, plus group, of each entry; ascends.
        n_rows: rows.
        n_groups: groups.
        weight: decoder.
    """
    counts = torch.zeros(n_rows * n_groups, dtype=torch.long, device=places.device)
    counts.scatter_add_(0, places, torch.ones_like(places))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    support = Support(offsets=offsets, latents=latents, rows=places, n_latents=len(weight))
    parts = Values(numbers=numbers, support=support, mask=None).decode(weight)
    return parts.reshape(n_rows, n_groups, -1).cumsum(1).transpose(0, 1)


def _aux_per_group(
    d: "Dictionary", encoder: "Encoder", y: Tensor, written: Tensor, bounds: tuple[int, ...], k: int, step: Step
) -> Tensor:
    """Sum over groups of AuxK of the group's dead latents, on what the prefix that ends with it leaves over."""
    total = y.new_zeros(())
    if step.dead is None:
        return total
    latents = torch.arange(d.n_latents, device=step.dead.device)
    for start, end, y_hat in zip((0, *bounds[:-1]), bounds, written, strict=True):
        here = step.dead & (latents >= start) & (latents < end)
        aux, _ = dead_latents_loss(d, encoder, y, y_hat, min(k, end - start), replace(step, dead=here))
        # Without a dead latent in the group the term would be a constant that says nothing.
        total = total + torch.where(here.any(), aux, 0.0)
    return total
