"""The k largest of each row on a CPU, without looking at most of the row twice.

1. Maxima of groups of `GROUP` neighbours: one pass at the speed of memory.
2. The k-th largest of these maxima is a bound: at least k values reach it, so the k largest do, whatever is tied. And
   not many more do: with G groups about `-G log(1 - k/G)` values (k = 32 of G = 256: 34), since a group rarely holds
   two of them.
3. The groups that reach the bound are gathered, and the values in them that reach it are listed, in ascending order.
4. Rows with more than k candidates are cut to k: by the k-th key among them, of equal keys the lowest latents. A key is
   the value's bits as an integer that sorts as the value does, with NaN as the largest.

Exact for any input, equal to the plain twin bit for bit. Rows of nothing but equal values make every value a candidate;
that is slower, not wrong. Measured on one thread against `torch.topk` [run]: see `fits`.
"""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mechvis.kernels.topk import naive
from mechvis.kernels.topk.naive import Latents, Largest, Values, require_shapes

GROUP = 64
ROWS = 128


def fits(values: Tensor, k: int) -> bool:
    return True


@torch.no_grad()
def topk(values: Values, k: int, *, among: Bool[Tensor, " latent"] | None = None) -> tuple[Largest, Latents]:
    """See `mechvis.kernels.topk.topk`."""
    require_shapes(values, k, among)
    if among is not None:
        return _among(values, k, among)
    n_rows, n = values.shape
    width = n + -n % GROUP
    latents = np.empty((n_rows, k), dtype=np.int64)
    direct = values.dtype == torch.float32 and width == n and values.stride(1) == 1 and values.is_contiguous()
    buffer = None if direct else torch.full((min(ROWS, n_rows), width), -torch.inf)
    for first in range(0, n_rows, ROWS):
        block = values[first : first + ROWS]
        if not direct:
            wide = buffer[: len(block)]
            wide[:, :n] = block
            block = wide
        _block(block, k, latents[first : first + ROWS])
    found = torch.from_numpy(latents)
    return values.gather(1, found), found


def _block(values: Values, k: int, out: np.ndarray) -> None:
    n_rows, n = values.shape
    groups = n // GROUP
    grouped = values.view(-1, GROUP)
    maxima = grouped.amax(1).numpy().reshape(n_rows, groups)
    bound = np.partition(maxima, groups - k, axis=1)[:, groups - k, None]
    group = np.flatnonzero(~(maxima < bound))
    inside = grouped.index_select(0, torch.from_numpy(group)).numpy()
    places = np.flatnonzero(~(inside < bound[group // groups]))
    key = _sortable(inside.reshape(-1)[places])
    group = group[places // GROUP]
    row, latent = np.divmod(group * GROUP + places % GROUP, n)
    counts = np.bincount(row, minlength=n_rows)
    if len(row) > n_rows * k:
        starts = np.cumsum(counts) - counts
        padded = np.full((n_rows, counts.max()), np.iinfo(np.int32).min, dtype=np.int32)
        padded[row, np.arange(len(row)) - starts[row]] = key
        last = np.partition(padded, padded.shape[1] - k, axis=1)[:, -k][row]
        above, equal = key > last, key == last
        wanted = (k - np.bincount(row[above], minlength=n_rows))[row]
        rank = np.cumsum(equal)
        before = np.concatenate([[0], rank])[starts][row]
        taken = above | (equal & (rank - before <= wanted))
        latent = latent[taken]
    out[:] = latent.reshape(n_rows, k)


def _sortable(values: np.ndarray) -> np.ndarray:
    values = values + np.float32(0)
    bits = values.view(np.int32)
    key = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    key[np.isnan(values)] = np.iinfo(np.int32).max
    return key


def _among(values, k, among):
    columns = among.nonzero()[:, 0]
    m = len(columns)
    if m < k or 2 * m > len(among):
        return _any(values.masked_fill(~among, -torch.inf), k)
    found, latents = _any(values[:, columns], k)
    if (found == -torch.inf).any():
        return _any(values.masked_fill(~among, -torch.inf), k)
    return found, columns[latents]


def _any(values, k):
    return topk(values, k) if fits(values, k) else naive.topk(values, k)
