"""The k largest of each row: the plain twin.

`torch.topk` does not say which of equal values it takes, and takes others on other devices. So:

1. take k + 1: where the last two differ, the first k are the only answer;
2. in the other rows all that is larger than the k-th value is taken, and of what is equal to it the lowest latents;
3. put each row in ascending order of the latents.

Looking for the rows of step 2 makes a GPU wait once; the Triton twin does not.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch

Values = Float[Tensor, "row latent"]
Largest = Float[Tensor, "row k"]
Latents = Int[Tensor, "row k"]


@torch.no_grad()
def topk(values: Values, k: int, *, among: Bool[Tensor, " latent"] | None = None) -> tuple[Largest, Latents]:
    """See `mechvis.kernels.topk.topk`."""
    require_shapes(values, k, among)
    if among is not None:
        values = values.masked_fill(~among, -torch.inf)
    n = values.shape[1]
    if k in (0, n):
        latents = torch.arange(k, device=values.device).expand(len(values), k).contiguous()
    else:
        best, found = values.topk(k + 1, dim=1)
        latents = found[:, :k]
        # Also true where either is NaN.
        tied = (~(best[:, k - 1] > best[:, k])).nonzero()[:, 0]
        if len(tied):
            latents[tied] = _lowest_of_equal(values[tied], best[tied, :k], latents[tied])
        latents = latents.sort(dim=1).values
    return values.gather(1, latents), latents


def _lowest_of_equal(values: Values, best: Largest, found: Latents) -> Latents:
    """Which latents to take where the k-th value comes more than once: those above it, and the lowest equal to it.

    Args:
        values: the rows.
        best: their k largest, descending.
        found: some latents that have these values.
    """
    last, none = best[:, -1:], best[:, -1:].isnan()
    # Descending order: those above the last one are the first of each row.
    n_above = ((best > last) | (best.isnan() & ~none)).sum(1)
    equal = torch.where(none, values.isnan(), values == last)
    rows, latents = equal.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(values))
    place = n_above[rows] + torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    taken = place < found.shape[1]
    return found.index_put((rows[taken], place[taken]), latents[taken])


def require_shapes(values: Tensor, k: int, among: Tensor | None) -> None:
    """Sizes fit each other.

    Raises:
        ShapeMismatch: not a matrix, or a mask of another length.
        OutOfRange: k is negative or more than there are latents.
    """
    if values.ndim != 2:
        raise ShapeMismatch(f"topk takes values [row latent]; got {list(values.shape)}.")
    if not 0 <= k <= values.shape[1]:
        raise OutOfRange(f"topk was asked for the {k} largest of {values.shape[1]} latents; take 0 to all of them.")
    if among is not None and (among.shape != values.shape[1:] or among.dtype != torch.bool):
        raise ShapeMismatch(
            f"topk takes among as a mask of {values.shape[1]} latents (bool); got {list(among.shape)} of {among.dtype}."
        )
