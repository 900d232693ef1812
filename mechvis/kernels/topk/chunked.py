"""The k largest of each row on a CPU, without sorting through most of the row.

1. Maxima of groups of 64 neighbours (32 where k is large): one pass at the speed of memory.
2. The k-th largest of these maxima is a bound: at least k values reach it, so the k largest do, whatever is tied. And
   not many more do: with G groups about `-G log(1 - k/G)` values (k = 32 of G = 128: 37), since a group rarely holds
   two of the largest.
3. The groups that reach the bound are gathered, and the values in them that reach it are listed, in ascending order.
4. Rows with more than k candidates are cut to k: by the k-th key among them, and of equal keys the lowest latents. A
   key is the value's bits as an integer that sorts as the value does, with NaN as the largest.

Exact for any input, equal to the plain twin bit for bit. A row of nothing but equal values makes every value a
candidate: slower, not wrong. Blocks of `ROWS` rows keep groups in the cache and candidates few; narrow types are
widened a block at a time. numpy does the small steps: its `partition` and `flatnonzero` take a quarter of the time of
torch's on one thread.

Measured on one thread (AVX-512, medians) against `torch.topk`, which breaks ties as it likes: [512, 8192] with k = 32
2.8 ms against 10.2 in float32 and 3.5 against 10.0 in bfloat16; [2048, 12288] 14 against 63, and 19 against 50 [run].
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.kernels.topk import naive
from mechvis.kernels.topk.naive import Largest, Latents, Values

ROWS = 128
"""Rows of a block; 64 to 256 took the same time, fewer cost calls and more the cache."""
THREADS = 4
"""More than so many threads, and `torch.topk` is expected to be faster, since it uses them all and step 4 one.
Measured with one (3 to 4 times faster) and two (twice); the crossing is an estimate."""


@torch.no_grad()
def topk(values: Values, k: int, *, among: Bool[Tensor, " latent"] | None = None) -> tuple[Largest, Latents]:
    """See `mechvis.kernels.topk.topk`. Goes over to the plain twin by itself where that is faster."""
    naive.require_shapes(values, k, among)
    if among is None:
        return _all_columns(values, k)
    columns = among.nonzero()[:, 0]
    if k <= len(columns) <= len(among) // 2:
        best, found = _all_columns(values.index_select(1, columns), k)
        # Of -inf the plain twin takes the lowest latents, allowed or not.
        if not (best == -torch.inf).any():
            return best, columns[found]
    return _all_columns(values.masked_fill(~among, -torch.inf), k)


def group_size(n: int, k: int) -> int | None:
    """Width of the groups for n latents; None where the plain twin is not slower. By measurement."""
    return 64 if n // 64 >= 4 * k else 32 if n // 32 >= 2 * k else None


def _all_columns(values: Values, k: int) -> tuple[Largest, Latents]:
    n_rows, n = values.shape
    group = group_size(n, k)
    narrow = values.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not narrow or not k or group is None or n_rows < 16 or torch.get_num_threads() > THREADS:
        return naive.topk(values, k)
    width = n + -n % group
    ready = values.dtype == torch.float32 and width == n and values.is_contiguous()
    buffer = None if ready else torch.full((min(ROWS, n_rows), width), -torch.inf, dtype=torch.float32)
    latents = np.empty((n_rows, k), dtype=np.int64)
    for first in range(0, n_rows, ROWS):
        block = values[first : first + ROWS]
        if buffer is not None:
            buffer[: len(block), :n] = block
            block = buffer[: len(block)]
        latents[first : first + ROWS] = _block(block, k, group)
    found = torch.from_numpy(latents)
    return values.gather(1, found), found


def _block(values: Float[Tensor, "row latent"], k: int, size: int) -> Int[np.ndarray, "row k"]:
    n_rows, n = values.shape
    groups = n // size
    grouped = values.view(n_rows * groups, size)
    maxima = grouped.amax(1).numpy().reshape(n_rows, groups)
    bound = np.partition(maxima, groups - k, axis=1)[:, groups - k, None]
    # "Not below" and not "at or above": NaN is below nothing, and a bound of NaN has nothing below it.
    group = np.flatnonzero(~(maxima < bound))
    inside = grouped.index_select(0, torch.from_numpy(group)).numpy()
    place = np.flatnonzero(~(inside < bound[group // groups]))
    rows, latents = np.divmod(group[place // size] * size + place % size, n)
    if len(rows) > n_rows * k:
        latents = latents[_largest(rows, sortable(inside.reshape(-1)[place]), n_rows, k)]
    return latents.reshape(n_rows, k)


def _largest(
    rows: Int[np.ndarray, " candidate"], keys: Int[np.ndarray, " candidate"], n_rows: int, k: int
) -> Bool[np.ndarray, " candidate"]:
    """Which candidates are the k largest of their row, of equal keys the first; every row has k or more."""
    counts = np.bincount(rows, minlength=n_rows)
    starts = np.cumsum(counts) - counts
    padded = np.full((n_rows, counts.max()), np.iinfo(np.int32).min, dtype=np.int32)
    padded[rows, np.arange(len(rows)) - starts[rows]] = keys
    last = np.partition(padded, padded.shape[1] - k, axis=1)[:, -k][rows]
    above, equal = keys > last, keys == last
    wanted = k - np.bincount(rows[above], minlength=n_rows)
    so_far = np.concatenate([[0], np.cumsum(equal)])
    rank = so_far[1:] - so_far[starts][rows]  # counted from 1 at the equal ones
    return above | (equal & (rank <= wanted[rows]))


def sortable(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Integers that compare as the float32 values do, with -0.0 equal to 0.0 and NaN as the largest."""
    bits = (values + np.float32(0)).view(np.int32)
    keys = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys[np.isnan(values)] = np.iinfo(np.int32).max
    return keys
