"""Sparsemax: the scores of a row above the threshold that makes what is above it sum to one, without sorting all.

(s - τ)₊ is the point of the simplex nearest to s (Martins and Astudillo 2016). With the scores in descending order and
their running sums c_j: κ = the largest j with 1 + j s_(j) > c_j, τ = (c_κ - 1) / κ, and the κ largest are above τ. So
only the largest scores matter: K' = 64 are looked at first, and four times as many where a row needs all of them.
Exact, and 53 times faster than a full sort at 49,152 scores [run]. Whether they were enough is asked of the device: the
number of entries depends on the numbers anyhow.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk

FIRST = 64
"""Scores of a row that are looked at first."""
GROW = 4
"""How many times as many where those were not enough."""


def sparsemax_support(scores: Float[Tensor, "row latent"], first: int = FIRST) -> tuple[Support, Float[Tensor, " row"]]:
    """Where sparsemax is above zero, and τ; no gradients.

    Args:
        scores: one row each; -inf for what may not be taken.
        first: K' at the start.

    Raises:
        BadData: a row that may take nothing.
    """
    n = scores.shape[1]
    count = min(first, n)
    while True:
        values, latents = topk(scores, count)
        ordered = values.sort(dim=1, descending=True).values
        sums = torch.where(torch.isfinite(ordered), ordered, 0.0).cumsum(1)
        j = torch.arange(1, count + 1, device=scores.device, dtype=scores.dtype)
        inside: Bool[Tensor, "row k"] = 1 + j * ordered > sums
        kappa = (inside * torch.arange(1, count + 1, device=scores.device)).amax(1)
        if count == n or int(kappa.max()) < count:
            break
        count = min(n, GROW * count)
    if int(kappa.min()) < 1:
        raise BadData(
            "no latent may be taken: all fire on more rows than max_frequency allows, or scores are NaN. Raise "
            "max_frequency, or set it to None."
        )
    tau = (sums.gather(1, kappa[:, None] - 1)[:, 0] - 1) / kappa.to(scores.dtype)
    # The κ largest by place and not `values > tau`: rounding of τ must not add or drop an entry.
    order = values.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=scores.device).expand_as(order))
    keep = rank < kappa[:, None]
    rows, place = keep.nonzero(as_tuple=True)
    offsets = torch.cat([kappa.new_zeros(1), kappa.cumsum(0)])
    return Support(offsets=offsets, latents=latents[rows, place], rows=rows, n_latents=n), tau
