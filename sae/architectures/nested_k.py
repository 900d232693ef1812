"""Nested k: one dictionary that can be read with few or with many latents (MSAE 2502.20578; HierarchicalTopK).

1. z = W_enc (x - b_dec) + b_enc; the entries of a row are sorted. k_1 < ... < k_G.
2. ŷ_g = ReLU(TopK_{k_g}(z)) W_dec + b_dec, built up over the sorted entries: each is read once whatever G is.
3. Loss: Σ_g w_g ‖y - ŷ_g‖² over the variance, the weights together 1: all equal (`uniform`, MSAE's UW) or falling
   linearly from few latents to many (`reverse`, its RW); plus `aux` times AuxK on what the largest k leaves over (MSAE
   has no such term: `aux=0`).

With `ks=range(1, K + 1)` it is HierarchicalTopK. Memory: rows times G times width.
The levels stay as they are where k is annealed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from einops import repeat
from torch import Tensor

from mechvis.errors import BadData, unknown
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.architecture import Architecture, Loss, Step
from sae.architectures.matryoshka import written_by_group
from sae.architectures.topk import ranked
from sae.losses import aux_share, dead_latents_loss, fvu

if TYPE_CHECKING:
    from sae.active import Values
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class NestedK(Architecture):
    """TopK for several k at once.

    Example:
        >>> NestedK(n_latents=512, ks=(4, 8, 16), weights="reverse").shares()
        (0.5, 0.3333333333333333, 0.16666666666666666)
    """

    NAME: ClassVar[str] = "nested_k"

    ks: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Active latents per row, one per level, ascending."""
    weights: Literal["uniform", "reverse"] = "uniform"
    """What levels count: the same, or fewer latents more."""
    k: int = 0
    """Active latents per row when it is used; 0: the largest of `ks`."""
    aux: float = 1 / 32
    """Coefficient of the loss of dead latents."""
    k_aux: int = 0
    """Dead latents that take part per row; 0: half of the width that is written."""

    def __post_init__(self):
        object.__setattr__(self, "ks", tuple(int(k) for k in self.ks))
        super().__post_init__()

    def check(self) -> None:
        """Refuse what cannot be."""
        ascending = all(a < b for a, b in zip(self.ks, self.ks[1:], strict=False))
        if not self.ks or self.ks[0] < 1 or not ascending or self.ks[-1] > self.n_latents:
            raise BadData(f"ks={self.ks} of {self.n_latents} latents: ascending, from 1 to the number of latents.")
        if self.weights not in ("uniform", "reverse"):
            raise unknown("weights", self.weights, ("uniform", "reverse"))
        if not 0 <= self.k <= self.n_latents or self.aux < 0 or self.k_aux < 0:
            raise BadData(f"k={self.k}, aux={self.aux}, k_aux={self.k_aux} of {self.n_latents} latents cannot be.")

    def shares(self) -> tuple[float, ...]:
        """What each level counts, together 1."""
        n = len(self.ks)
        if self.weights == "uniform":
            return (1 / n,) * n
        return tuple((n - g) / (n * (n + 1) / 2) for g in range(n))

    def encode(self, d: "Dictionary", x: Tensor) -> Tensor:
        """The k largest of each row."""
        pre = d.encoder(x, fast=False).pre
        _, latents = topk(ranked(d, pre.detach()), self.k or self.ks[-1])
        kept = Support.from_rows(latents, self.n_latents).mask()
        return torch.where(kept, pre.relu(), 0.0)

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """See the module."""
        encoder = d.encoder(x, fast=step.fast, bf16=step.bf16)
        values, latents = topk(ranked(d, encoder.pre.detach()), self.ks[-1])
        order = values.argsort(dim=1, descending=True, stable=True)
        support = Support.from_rows(latents.gather(1, order), self.n_latents)
        codes = encoder.at(support).map(torch.relu)
        written = level_writes(codes, d.W_dec, self.ks) + d.b_dec
        if self.skip:
            written = written + x @ d.W_skip.T
        errors = torch.stack([fvu(y, y_hat, step) for y_hat in written])
        error = (errors * errors.new_tensor(self.shares())).sum()
        aux, _ = dead_latents_loss(d, encoder, y, written[-1], aux_share(self, d.ends), step)
        return Loss(
            total=error + self.aux * aux,
            parts={
                "error": error.detach(),
                **{f"error_{k}": e.detach() for k, e in zip(self.ks, errors, strict=True)},
                "aux": aux.detach(),
            },
            y_hat=written[-1].detach(),
            codes=codes.detach(),
        )


def level_writes(codes: "Values", weight: Tensor, ks: tuple[int, ...]) -> Tensor:
    """What the first k entries of each row write, for several k, without a bias.

    Args:
        codes: as many entries on every row as the largest k, in the order in which they are taken.
        weight: decoder.
        ks: ascending.

    Returns:
        one matrix per k `[level row d]`.
    """
    n_rows, width, n_levels = codes.n_rows, ks[-1], len(ks)
    rank = torch.arange(width, device=weight.device)
    level = torch.bucketize(rank, torch.tensor(ks, device=weight.device), right=True)
    if codes.mask is None:
        places = (torch.arange(n_rows, device=weight.device)[:, None] * n_levels + level).reshape(-1)
        return written_by_group(codes.numbers, codes.support.latents, places, n_rows, n_levels, weight)
    of_entry = repeat(level, "k -> (row k)", row=n_rows)
    of_place = torch.full_like(codes.mask, n_levels, dtype=torch.long)
    of_place[codes.support.rows, codes.support.latents] = of_entry
    return torch.stack([torch.where(of_place <= g, codes.numbers, 0.0) @ weight for g in range(n_levels)])
