"""The k·B largest entries of a whole batch: where a row may take more than another (BatchTopK, 2412.06410).

1. The k·B largest of B rows of n are found without sorting B·n numbers: the m·k largest of each row first, then the k·B
   largest of those. That is exact unless some row's m·k-th entry is itself kept; then m is doubled. (Sampling rows once
   at m = 4 without looking is what clt-training does; on log-normal row norms 17 % of rows are cut off there [run].)
2. `row_limit`: a row gets at most that many times k. Without it, 1 % of tokens with ten times the norm (artefact and
   register tokens of ViTs) take 92 % of the batch's entries, and the others 2.6 of 32 [run].
3. `by_type`: rows of a type of token (CLS, registers, patches) share a budget of their own, k per row.

Only positive entries count: a batch may have fewer than k·B.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk
from sae.team import ALONE, Team

FIRST = 2
"""Entries per row that are looked at first, as a multiple of k."""


def batch_support(
    scores: Float[Tensor, "row latent"],
    k: float,
    *,
    row_limit: float | None = None,
    types: Int[Tensor, " row"] | None = None,
    team: Team = ALONE,
) -> tuple[Support, Float[Tensor, ""]]:
    """The places of the k·B largest positive entries of the batch.

    Args:
        scores: what entries compete with.
        k: entries per row, on average.
        row_limit: a row's entries are at most this many times k; None: no limit.
        types: rows of a type compete among themselves only.
        team: the processes whose rows compete together.

    Returns:
        The places, and the least score that was kept (infinity if none is above zero).
    """
    n_rows, n = scores.shape
    if types is None:
        places, least = _places(scores, k, row_limit, team)
    else:
        found = []
        for kind in types.unique():
            rows = (types == kind).nonzero()[:, 0]
            at, least = _places(scores[rows], k, row_limit, team)
            found.append((rows[at // n] * n + at % n, least))
        places, least = torch.cat([at for at, _ in found]), torch.stack([value for _, value in found]).min()
    return Support.from_flat(places, n_rows, n), least


def _places(scores: Tensor, k: float, row_limit: float | None, team: Team) -> tuple[Tensor, Tensor]:
    """Flat positions of what is kept, and the least of it."""
    n_rows, n = scores.shape
    limit = n if row_limit is None else min(n, max(1, round(row_limit * k)))
    if team.size > 1:
        from sae.parallel.select import shared_places

        return shared_places(scores, k, limit, team)
    count = round(k * n_rows)
    # A device that works behind the host is not asked whether it was enough.
    each = limit if scores.is_cuda else min(limit, max(1, round(FIRST * k)))
    while True:
        values, latents = topk(scores, each)
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
