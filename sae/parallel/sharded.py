"""One dictionary in several processes, each with some of its latents: for dictionaries that no device holds.

Every process sees the same rows and multiplies them with its own rows of W_enc. The k largest latents of a row are
chosen over all: everybody proposes its own k largest, the k-th largest of the proposals is the threshold, and who is
above it takes part. Only proposals `[row k]` and what is written `[row d]` travel.

The gradient of what is written is the same for all, so each process goes on alone from there; `b_dec`, which all have,
gets the sum of what the processes would do to it as the encoder's shift.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.dictionary import Dictionary
from sae.parallel.team import Ranks
from sae.shards import Shards

WHICH = ("topk", "batch_topk")
"""Architectures whose choice can be made in parts."""


class Sharded(Shards):
    """The processes that have the latents of one dictionary."""

    def __init__(self, group=None):
        self.ranks = Ranks(group)
        self.size, self.rank = self.ranks.size, self.ranks.rank

    def shared(self, parameter: Tensor) -> Tensor:
        """The parameter; its gradients are added up."""
        return _Shared.apply(parameter, self.ranks)

    def sum(self, written: Tensor) -> Tensor:
        """What all write."""
        return _Sum.apply(written, self.ranks)

    def row_support(self, scores: Tensor, k: int, among: Tensor | None = None) -> tuple[Support, Tensor]:
        """My part of the k largest of each row."""
        mine = min(k, scores.shape[1])
        values, latents = topk(scores, mine, among=among)
        proposals = torch.full((len(scores), k), -torch.inf, dtype=values.dtype, device=values.device)
        proposals[:, :mine] = values
        everybody = self.ranks.gather(proposals).view(self.size, len(scores), k)
        threshold = everybody.permute(1, 0, 2).reshape(len(scores), -1).topk(k, dim=1).values[:, -1:]
        kept = (values >= threshold) & torch.isfinite(values)
        rows, places = kept.nonzero(as_tuple=True)
        counts = kept.sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        support = Support(offsets=offsets, latents=latents[rows, places], rows=rows, n_latents=scores.shape[1])
        return support, values[rows, places]

    def part(self, d: Dictionary) -> Dictionary:
        """My latents."""
        return part_of(d, self)

    def whole(self, d: Dictionary) -> Dictionary:
        """All latents."""
        return whole_of(d)

    def total(self, value: Tensor) -> Tensor:
        """The sum over parts."""
        return self.ranks.sum(value)

    def norm(self, gradients: Mapping[str, Tensor], mine: set[str]) -> Tensor:
        """Parts differ in `mine`; the rest is the same everywhere, and counts once."""
        squares = {name: gradient.square().sum() for name, gradient in gradients.items()}
        own = [square for name, square in squares.items() if name in mine]
        rest = [square for name, square in squares.items() if name not in mine]
        return (self.total(torch.stack(own).sum()) + torch.stack(rest).sum()).sqrt()


def part_of(d: Dictionary, shards: Shards) -> Dictionary:
    """The part of a dictionary that a process trains.

    Raises:
        RefusedMethod: an architecture that cannot be trained in parts.
        BadData: the latents cannot be shared out evenly.
    """
    if d.architecture.NAME not in WHICH:
        raise RefusedMethod(f"{d.architecture.NAME} is not trained in parts; {', '.join(WHICH)} can be.")
    if d.n_latents % shards.size:
        raise BadData(f"{d.n_latents} latents in {shards.size} parts: make the number of latents a multiple of that.")
    each = d.n_latents // shards.size
    own = slice(shards.rank * each, (shards.rank + 1) * each)
    names = {name for name, _ in d.named_parameters()}
    tensors = {name: t[own] if name in d.mine else t for name, t in d.state_dict().items()}
    found = Dictionary(
        d.architecture,
        d.ends,
        {name: t for name, t in tensors.items() if name in names},
        {name: t for name, t in tensors.items() if name not in names},
        provenance=d.provenance,
    )
    found.shards = shards
    return found


def whole_of(part: Dictionary) -> Dictionary:
    """The dictionary of which every process has a part; all get it."""
    ranks = part.shards.ranks
    names = {name for name, _ in part.named_parameters()}
    tensors = {name: ranks.gather(t) if name in part.mine else t for name, t in part.state_dict().items()}
    return Dictionary(
        part.architecture,
        part.ends,
        {name: t for name, t in tensors.items() if name in names},
        {name: t for name, t in tensors.items() if name not in names},
        provenance=part.provenance,
    )


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, written, ranks):
        return ranks.sum(written)

    @staticmethod
    def backward(ctx, grad):
        # The loss is the same everywhere, so is this gradient; everybody follows it alone.
        return grad, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter, ranks):
        ctx.ranks = ranks
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx, grad):
        return ctx.ranks.sum(grad), None
