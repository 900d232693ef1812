"""The k·B largest entries of a whole batch: where a row may take more than another (BatchTopK, 2412.06410).

1. The k·B largest of B rows of n are found without sorting B·n numbers: the m·k largest of each row first, then the k·B
   largest of those. That is exact unless some row's m·k-th entry is itself kept; then m is doubled. (Sampling rows once
   at m = 4 without looking is what clt-training does; on log-normal row norms 17 % of rows are cut off there [run].)
2. `row_limit`: a row gets at most that many times k. Without it, 1 % of tokens with ten times the norm (artefact and
   register tokens of ViTs) take 92 % of the batch's entries, and the others 2.6 of 32 [run].
3. `by_type`: rows of a type of token (CLS, registers, patches) share a budget of their own, k per row.

Only positive entries count: a batch may have fewer than k·B.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.shards import WHOLE, Shards
from sae.team import ALONE, Team

if TYPE_CHECKING:
    from sae.active import Encoder
    from sae.architecture import Step
    from sae.dictionary import Dictionary

FIRST = 2
"""Entries per row that are looked at first, as a multiple of k."""


def batch_support(
    scores: "Float[Tensor, 'row latent'] | Encoder",
    k: float | int,
    *,
    row_limit: float | None = None,
    types: Int[Tensor, " row"] | None = None,
    team: Team = ALONE,
    shards: Shards = WHOLE,
) -> tuple[Support, Float[Tensor, ""]]:
    """The places of the k·B largest positive entries of the batch.

    Args:
        scores: what entries compete with; or a batch, encoded, whose pre-activations do (`rankable`).
        k: entries per row, on average.
        row_limit: a row's entries are at most this many times k; None: no limit.
        types: rows of a type compete among themselves only.
        team: the processes whose rows compete together.
        shards: the processes that have the other latents.

    Returns:
        The places, and the least score that was kept (infinity if none is above zero).
    """
    n_rows, n = _shape(scores)
    if types is None:
        places, least = _places(scores, k, row_limit, team, shards)
    else:
        found = []
        kinds = types.unique() if team.size == 1 else range(int(team.largest(types.max())) + 1)
        for kind in kinds:
            rows = (types == kind).nonzero()[:, 0]
            at, least = _places(scores[rows], k, row_limit, team, shards)
            found.append((rows[at // n] * n + at % n, least))
        places, least = torch.cat([at for at, _ in found]), torch.stack([value for _, value in found]).min()
    return Support.from_flat(places, n_rows, n), least


def row_support(
    d: "Dictionary",
    encoder: "Encoder",
    k: int,
    *,
    scale: Float[Tensor, " latent"] | None = None,
    among: Bool[Tensor, " latent"] | None = None,
) -> tuple[Support, Float[Tensor, " entry"]]:
    """The places of the k largest entries of each row, in the cheapest way there is, and what they competed with.

    Args:
        d: the dictionary, which knows who has the other latents.
        encoder: a batch, encoded.
        k: entries per row.
        scale: factor of each latent; None: pre-activations compete themselves.
        among: latents that may be taken; None for all.
    """
    if d.shards.size == 1 and scale is None and encoder.fast:
        return encoder.largest(k, among)
    pre = encoder.pre.detach()
    return d.shards.row_support(pre if scale is None else pre * scale.to(pre.dtype), k, among)


def rankable(d: "Dictionary", encoder: "Encoder", step: "Step", types: Tensor | None) -> bool:
    """Can a batch be handed to :func:`batch_support` as it is, without a matrix of all scores?"""
    alone = step.team.size == 1 and d.shards.size == 1
    return alone and encoder.fast and types is None and d.architecture.decoder == "unit"


def _shape(scores: "Tensor | Encoder") -> tuple[int, int]:
    return tuple(scores.shape) if isinstance(scores, Tensor) else (len(scores.x), len(scores.weight))


def _best(scores: "Tensor | Encoder", each: int) -> tuple[Tensor, Tensor]:
    if isinstance(scores, Tensor):
        return topk(scores, each)
    support, values = scores.largest(each)
    return values.view(-1, each), support.latents.view(-1, each)


def _places(
    scores: "Tensor | Encoder", k: float, row_limit: float | None, team: Team, shards: Shards
) -> tuple[Tensor, Tensor]:
    """Flat positions of what is kept, and the least of it."""
    n_rows, n = _shape(scores)
    limit = n * shards.size if row_limit is None else min(n * shards.size, max(1, round(row_limit * k)))
    if team.size > 1 or shards.size > 1:
        from sae.parallel.select import shared_places

        return shared_places(scores, k, limit, team, shards)
    count = round(k * n_rows)
    # A device that works behind the host is not asked whether it was enough.
    on_gpu = (scores if isinstance(scores, Tensor) else scores.x).is_cuda
    each = limit if on_gpu else min(limit, max(1, round(FIRST * k)))
    while True:
        values, latents = _best(scores, each)
        kept, place = values.reshape(-1).topk(min(count, values.numel()), sorted=False)
        least = kept.min()
        if each == limit or not (values.min(1).values > least).any():
            break
        each = min(limit, 2 * each)
    rows = place // each
    at = rows * n + latents.reshape(-1)[place]
    positive = kept > 0
    infinity = torch.full_like(least, torch.inf)
    return at[positive], torch.where(positive, kept, infinity).min()
