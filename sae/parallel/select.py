"""The k·B largest entries of a batch whose rows lie in several processes: exact, in two small messages.

Positive float32 numbers are ordered as their bit patterns are. So: count patterns by their upper 16 bits, add the
counts up over processes, and find the bin in which the k·B-th largest lies; count that bin's numbers by their lower 16
bits, add up, and the pattern of the k·B-th largest is known. Two messages of 32,768 and
65,536 counts, whatever the batch. Where the last number comes more than once, all of them are kept.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.shards import Shards
from sae.team import Team

HIGH, LOW = 1 << 15, 1 << 16


def shared_places(
    scores: Float[Tensor, "row latent"], k: float, limit: int, team: Team, shards: Shards
) -> tuple[Int[Tensor, " entry"], Float[Tensor, ""]]:
    """Flat places of what this process keeps of the k·B largest positive entries of all, and the least of them.

    Args:
        scores: of this process's rows and latents.
        k: entries per row, on average over all rows.
        limit: most entries of a row.
        team: the processes that have the other rows.
        shards: the processes that have the other latents.
    """
    n_rows, n = scores.shape
    device = scores.device

    def total(value: Tensor) -> Tensor:
        return shards.total(team.sum(value))

    if limit >= n * shards.size:
        values, at = scores.reshape(-1), torch.arange(n_rows * n, device=device)
    else:
        support, values = shards.row_support(scores, limit)
        at = support.rows * n + support.latents
    count = round(k * int(team.sum(torch.tensor(n_rows, device=device))))
    least = kth_largest(values, count, total)
    kept = values.float() >= least
    return at[kept], least.to(scores.dtype)


def kth_largest(
    values: Float[Tensor, " entry"], count: int, total: Callable[[Tensor], Tensor] = lambda value: value
) -> Float[Tensor, ""]:
    """The `count`-th largest positive number of all processes; the least if there are fewer, infinity if none.

    Args:
        values: of this process.
        count: which.
        total: adds counts up over processes.
    """
    patterns = values.float().contiguous().view(torch.int32)
    patterns = patterns[values > 0].long()
    high = total(torch.bincount(patterns >> 16, minlength=HIGH))
    above = high.flip(0).cumsum(0).flip(0)
    count = min(count, int(above[0]))
    if count == 0:
        return torch.tensor(torch.inf, device=values.device)
    place = int((above >= count).nonzero()[-1, 0])
    missing = count - int(above[place] - high[place])
    inside = patterns[patterns >> 16 == place] & (LOW - 1)
    low = total(torch.bincount(inside, minlength=LOW)).flip(0).cumsum(0).flip(0)
    found = (place << 16) + int((low >= missing).nonzero()[-1, 0])
    return torch.tensor([found], dtype=torch.int32, device=values.device).view(torch.float32)[0]
