"""The k largest pre-activations of each row in float32, found through a product in bfloat16 (on a CPU that has it).

Encoding looks at all latents to keep a few, and is most of what a training step costs. A CPU with bfloat16 instructions
multiplies in bfloat16 two to three times as fast as in float32, but rounds by up to 2⁻⁹ of every factor, which changes
who is among the k largest. How much a product can be off is known, though:

    |x·w - x₁₆·w₁₆| <= ‖x - x₁₆‖ ‖w‖ + ‖x₁₆‖ 2⁻⁹ ‖w‖ + rounding of the sum

so whoever may be among the k largest is found without doubt, and only those are multiplied in float32:

1. Rows times encoder in bfloat16, a block of rows at a time: it stays in the cache, there is no matrix of all rows.
2. A bound for the k-th largest of a row: the k-th largest of the maxima of groups of 64 latents (at least k reach it).
   Bits of positive bfloat16 numbers, read as whole numbers, are ordered as the numbers are, and whole numbers of 16
   bits are compared 64 at a time.
3. Candidates: everything above the bound less twice the largest error. On normally distributed numbers with n = 12,288
   latents and k = 32 there are about 50 for each row.
4. Their pre-activations in float32, and the k largest of those: the ones that the product in float32 would have found.

With `exact=False` the error is taken for zero: a few of the last ones may be others, values are still in float32.

Rows for which this does not work (fewer than k positive groups, numbers that are not finite, hundreds of candidates)
are multiplied in float32. The bound is checked on every candidate: if it does not hold (weights that were changed
behind autograd's back), everything is.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mechvis.kernels.sparse_grad import entry_products
from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk

ROWS = 256
"""Rows of a block: enough for the product to be as fast as in one piece, and few enough for the cache."""
GROUPS = (64, 32, 16)
"""Latents of a group: the most that leave four times as many groups as are wanted of a row. (Bounds are tighter with
more groups, and take longer to find.)"""
MOST = 8
"""Candidates per row, as a multiple of k, from which float32 is as fast."""
UNIT = 2.0**-9
"""Largest relative error of rounding to bfloat16."""
THREADS = 8
"""More than so many threads, and steps 2 to 4, of which numpy does a part on one, are expected to take longer than the
product. Measured with one; the crossing is an estimate."""


@dataclass(kw_only=True, eq=False)
class Shadow:
    """A weight in bfloat16, and what the bound needs to know about it."""

    weight: Float[Tensor, "latent d+2"]
    """Rounded; two columns more for a bias, which is added in the product (as two numbers: one would be too coarse)."""
    norm: float = 0.0
    """Largest norm of a row."""
    version: int = -1
    """Which changes of the weight it has seen."""
    scratch: Tensor | None = None
    """Room for a block of the product."""

    def begin(self) -> None:
        """Forget the norm: all rows will come."""
        self.norm = 0.0

    def follow(self, rows: Float[Tensor, "some d"], first: int) -> None:
        """Take over some rows of the weight, from row `first` on."""
        self.weight[first : first + len(rows), :-2].copy_(rows)
        norm = float(torch.linalg.vector_norm(rows, dim=1).max())
        # A comparison with NaN is false: what is not finite stays.
        self.norm = norm if self.norm <= norm or norm != norm else self.norm

    def shift(self, bias: Float[Tensor, " latent"] | None) -> float:
        """Take a bias into the product.

        Returns:
            Largest part of it that two numbers do not hold.
        """
        if bias is None:
            self.weight[:, -2:] = 0.0
            return 0.0
        high = bias.bfloat16()
        low = (bias - high).bfloat16()
        self.weight[:, -2], self.weight[:, -1] = high, low
        return float((bias - high - low).abs().max())


_shadows = WeakTensorKeyDictionary()


def possible(weight: Float[Tensor, "latent d"], k: int) -> bool:
    """Can pre-activations be screened here, and is it worth it?

    Args:
        weight: of the encoder.
        k: how many of each row are wanted.
    """
    worth = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()
    worth = worth and weight.shape[1] >= 64 and group_size(len(weight), k) is not None
    return worth and native() and torch.get_num_threads() <= THREADS


def group_size(n: int, k: int) -> int | None:
    """Latents of a group, where k of n are wanted; None where groups would be too few."""
    return next((size for size in GROUPS if n % size == 0 and n // size >= 4 * k), None)


@functools.cache
def native() -> bool:
    """Has this CPU instructions for products in bfloat16?"""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)


def known(weight: Float[Tensor, "latent d"]) -> Shadow | None:
    """The weight in bfloat16, as it was when somebody last asked for it; None if nobody did."""
    return _shadows.get(weight)


def shadow_of(weight: Float[Tensor, "latent d"]) -> Shadow:
    """The weight in bfloat16; made anew when the weight has changed."""
    found = known(weight)
    if found is None:
        found = _shadows[weight] = Shadow(
            weight=weight.new_empty(len(weight), weight.shape[1] + 2, dtype=torch.bfloat16)
        )
    if found.version != weight._version:
        found.begin()
        for first in range(0, len(weight), ROWS):
            found.follow(weight.detach()[first : first + ROWS], first)
        found.version = weight._version
    return found


@torch.no_grad()
def largest(
    x: Float[Tensor, "row d"],
    weight: Float[Tensor, "latent d"],
    bias: Float[Tensor, " latent"] | None,
    k: int,
    *,
    exact: bool = True,
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
    """The k largest of `x @ weight.T + bias` in each row. Ask :func:`possible` before.

    Args:
        x: rows, centred.
        weight: of the encoder.
        bias: per latent; None for nothing.
        k: how many of each row.
        exact: allow for the error of bfloat16; False: do not.

    Returns:
        Latents in ascending order, and their pre-activations in float32.
    """
    n_rows, n = len(x), len(weight)
    shadow = shadow_of(weight)
    margin = torch.zeros(n_rows)
    rest = shadow.shift(bias)
    block = torch.ones(min(ROWS, n_rows), x.shape[1] + 2, dtype=torch.bfloat16)
    if shadow.scratch is None:
        shadow.scratch = torch.empty(ROWS, n, dtype=torch.bfloat16)
    places, told, fits = [], [], np.empty(n_rows, dtype=bool)
    for first in range(0, n_rows, ROWS):
        part = x[first : first + ROWS]
        block, some = block[: len(part)], slice(first, first + len(part))
        block[:, :-2] = part
        if exact:
            margin[some] = _margins(part, shadow, block[:, :-2], rest)
        bits = torch.mm(block, shadow.weight.T, out=shadow.scratch[: len(part)]).view(torch.int16)
        limit, fits[some] = _limits(bits, k, margin[some].numpy(), exact)
        flat = np.flatnonzero(np.greater_equal(bits.numpy(), limit[:, None]))
        if len(flat) > MOST * k * len(block):
            flat = flat[(np.bincount(flat // n, minlength=len(block)) <= MOST * k)[flat // n]]
        places.append(flat + first * n)
        told.append(bits.numpy().reshape(-1)[flat])
    flat = np.concatenate(places)
    rows, latents = np.divmod(flat, n)
    counts = np.bincount(rows, minlength=n_rows)
    fits &= (counts >= k) & (counts <= MOST * k)
    values = _products(x, weight, bias, rows, latents, counts)
    about = (np.concatenate(told).astype(np.int32) << 16).view(np.float32)
    if exact and (np.abs(values - about) > margin.numpy()[rows] + 1.1 * UNIT * np.abs(about))[fits[rows]].any():
        fits[:] = False
    fits[rows[~np.isfinite(values)]] = False
    return _kept(x, weight, bias, k, rows, latents, values, fits)


def _margins(x: Tensor, shadow: Shadow, rounded: Tensor, rest_of_bias: float) -> Tensor:
    """How far a product may be off in each row, before the sum is rounded."""
    rest, size = torch.linalg.vector_norm(x - rounded, dim=1), torch.linalg.vector_norm(x, dim=1)
    # Sums of d terms in float32, here and where values are computed again.
    sums = 2 * x.shape[1] * 2.0**-24
    return (rest + (size + rest) * (UNIT + sums)) * shadow.norm + rest_of_bias


def _limits(
    bits: Int[Tensor, "row latent"], k: int, margin: Float[np.ndarray, " row"], exact: bool
) -> tuple[Int[np.ndarray, " row"], np.ndarray]:
    """The bits from which a number is a candidate, and in which rows that can be trusted."""
    maxima = bits.view(len(bits), group_size(bits.shape[1], k), -1).amax(1).numpy()
    groups = maxima.shape[1]
    bound = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    if not exact:
        return np.maximum(bound, 1), bound > 0
    value = (bound.astype(np.int32) << 16).view(np.float32)
    # Both the number at the bound and a candidate may be off by the margin and by the rounding of their sums.
    least = value - 2.0 * margin - 2.2 * UNIT * np.abs(value)
    sound = (bound > 0) & (least > 0) & np.isfinite(value)
    # Cutting the lower bits off rounds a positive number down.
    limit = np.where(sound, np.where(sound, least, 1.0).astype(np.float32).view(np.int32) >> 16, 2**15 - 1)
    return limit.astype(np.int16), sound


def _products(x, weight, bias, rows, latents, counts) -> Float[np.ndarray, " entry"]:
    offsets = torch.zeros(len(x) + 1, dtype=torch.long)
    offsets[1:] = torch.from_numpy(counts).cumsum(0)
    support = Support(
        offsets=offsets, rows=torch.from_numpy(rows), latents=torch.from_numpy(latents), n_latents=len(weight)
    )
    values = entry_products(x, weight, support)
    return (values if bias is None else values + bias[support.latents]).numpy()


def _kept(x, weight, bias, k, rows, latents, values, fits) -> tuple[Tensor, Tensor]:
    """The k largest candidates of each row; where rows do not fit, those of the product in float32."""
    best, where = torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.long)
    good = fits[rows]
    if not good.all():
        rows, latents, values = rows[good], latents[good], values[good]
    if len(rows):
        kept = _cut(rows, values, len(x), k)
        place = torch.from_numpy(np.flatnonzero(fits))
        where[place] = torch.from_numpy(latents[kept].reshape(-1, k))
        best[place] = torch.from_numpy(values[kept].reshape(-1, k))
    if not fits.all():
        place = torch.from_numpy(np.flatnonzero(~fits))
        full = x[place] @ weight.T if bias is None else torch.addmm(bias, x[place], weight.T)
        best[place], where[place] = topk(full, k)
    return where, best


def _cut(rows, values, n_rows: int, k: int) -> np.ndarray:
    """Which candidates are the k largest of their row, of equal ones those with the lowest latents."""
    counts = np.bincount(rows, minlength=n_rows)
    starts = np.cumsum(counts) - counts
    table = np.full((n_rows, counts.max()), -np.inf, dtype=np.float32)
    table[rows, np.arange(len(rows)) - starts[rows]] = values
    last = np.partition(table, table.shape[1] - k, axis=1)[:, -k][rows]
    above, equal = values > last, values == last
    if (above.sum() + equal.sum()) == k * np.count_nonzero(counts):
        return above | equal
    wanted = k - np.bincount(rows[above], minlength=n_rows)
    so_far = np.concatenate([[0], np.cumsum(equal)])
    return above | (equal & (so_far[1:] - so_far[starts][rows] <= wanted[rows]))
