"""Sparse gradients: the plain twins of the kernels, and what runs on a CPU.

1. `entry_products`. On a CPU `torch.sparse.sampled_addmm` takes one inner product per entry and holds nothing beside
   the answer: five to ten times faster than gathering rows first. Row by row, or latent by latent where the weight is
   too large to stay in the cache while rows ask for it here and there: then it is read once, in its order (twice as
   fast, with the sort). Elsewhere, in stretches of entries whose gathered rows fit `GATHERED_BYTES`. Every product is
   summed by itself, so neither order nor stretches change a bit.
2. `segment_sum`. With the entries in the order of their latents it is the sum of a decoder whose "latents" are rows:
   `embedding_bag` again, two to three times faster on a CPU than the product with a sparse matrix.
3. `column_sums`. The same with vectors of one number.

Types below float32 are widened first.
"""

import functools
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.kernels.sparse_decode.naive import weighted_rows
from mechvis.kernels.support import Support

Values = Float[Tensor, " entry"]
Rows = Float[Tensor, "row d"]
Weight = Float[Tensor, "latent d"]
PerLatent = Float[Tensor, " latent"]

GATHERED_BYTES = 4 * 2**20
"""What the gathered rows of one stretch of entries may take, for each of the two matrices."""
CACHED_BYTES = 16 * 2**20
"""A weight of more is gone through latent by latent. Measured on a core with 32 MiB of third cache: 8 MiB are faster
row by row (1.8 ms against 3.0), 36 MiB latent by latent (11 against 21)."""
BLOCK = 256
"""Latents whose products with `against` are held at once: all of them at once took five times as long on a CPU."""


@torch.no_grad()
def entry_products(a: Rows, weight: Weight, support: Support) -> Values:
    """See `mechvis.kernels.sparse_grad.entry_products`."""
    require_products(a, weight, support)
    work = torch.promote_types(torch.promote_types(a.dtype, weight.dtype), torch.float32)
    if a.device.type != "cpu":
        return in_stretches(a, weight, support)
    if len(support) and not 0 <= int(support.latents.min()) <= int(support.latents.max()) < support.n_latents:
        raise OutOfRange(
            f"entry_products: the support names latents {int(support.latents.min())} to {int(support.latents.max())}, "
            f"but there are {support.n_latents}, counted from 0."
        )
    if not len(support) or not a.shape[1]:
        return torch.zeros(len(support), dtype=work)
    a, weight = a.to(work), weight.to(work)
    if weight.numel() * weight.element_size() <= CACHED_BYTES:
        return _products_at(support.offsets, support.latents, a, weight)
    order, starts = support.by_latent
    found = torch.empty(len(support), dtype=work)
    found[order] = _products_at(starts, support.rows[order], weight, a)
    return found


def _products_at(offsets, columns, a: Float[Tensor, "row d"], b: Float[Tensor, "column d"]) -> Values:
    """Inner products of a row of `a` and one of `b`, at the places of a sparse matrix."""
    _say_nothing_of_beta()
    places = torch.sparse_csr_tensor(
        offsets, columns, torch.zeros(len(columns), dtype=a.dtype), (len(a), len(b)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(places, a, b.T, beta=0.0).values()


@torch.no_grad()
def in_stretches(a: Rows, weight: Weight, support: Support, *, entries: int | None = None) -> Values:
    """`entry_products` by gathering, a stretch of entries at a time.

    Args:
        a, weight, support: as there.
        entries: length of a stretch; None for what fits `GATHERED_BYTES`.
    """
    work = torch.promote_types(torch.promote_types(a.dtype, weight.dtype), torch.float32)
    size = entries or max(1, GATHERED_BYTES // max(1, a.shape[1] * torch.empty(0, dtype=work).element_size()))
    pairs = zip(support.rows.split(size), support.latents.split(size), strict=True)
    found = [(a[rows].to(work) * weight[latents].to(work)).sum(1) for rows, latents in pairs]
    return torch.cat(found) if found else a.new_zeros(0, dtype=work)


@torch.no_grad()
def segment_sum(
    values: Values, x: Rows, support: Support, *, against: Weight | None = None
) -> Weight | tuple[Weight, PerLatent, PerLatent]:
    """See `mechvis.kernels.sparse_grad.segment_sum`."""
    require_segments(values, x, support, against)
    order, starts = support.by_latent
    out = weighted_rows(support.rows[order], starts, values[order], x)
    if against is None:
        return out
    out = out.to(torch.promote_types(out.dtype, against.dtype))
    blocks = list(zip(out.split(BLOCK), against.split(BLOCK), strict=True))
    squares = torch.cat([torch.linalg.vecdot(rows, rows) for rows, _ in blocks])
    return out, squares, torch.cat([torch.linalg.vecdot(rows, other.to(out.dtype)) for rows, other in blocks])


@torch.no_grad()
def column_sums(values: Values, support: Support) -> PerLatent:
    """See `mechvis.kernels.sparse_grad.column_sums`."""
    require_values("column_sums", values, support)
    order, starts = support.by_latent
    work = torch.promote_types(values.dtype, torch.float32)
    return torch.nn.functional.embedding_bag(
        order, values.to(work)[:, None], starts, mode="sum", include_last_offset=True
    )[:, 0]


def require_products(a: Tensor, weight: Tensor, support: Support) -> None:
    """Sizes fit each other.

    Raises:
        ShapeMismatch: they do not.
    """
    fits = a.ndim == 2 and weight.ndim == 2 and a.shape[1] == weight.shape[1]
    if not fits or (len(a), len(weight)) != (support.n_rows, support.n_latents):
        raise ShapeMismatch(
            f"entry_products takes a [row d] and weight [latent d] for a support of {support.n_rows} rows and "
            f"{support.n_latents} latents; got {list(a.shape)} and {list(weight.shape)}."
        )


def require_segments(values: Tensor, x: Tensor, support: Support, against: Tensor | None) -> None:
    """Sizes fit each other.

    Raises:
        ShapeMismatch: they do not.
    """
    require_values("segment_sum", values, support)
    if x.ndim != 2 or len(x) != support.n_rows:
        raise ShapeMismatch(f"segment_sum takes x [row d] for {support.n_rows} rows; got {list(x.shape)}.")
    if against is not None and against.shape != (support.n_latents, x.shape[1]):
        raise ShapeMismatch(
            f"segment_sum takes against [latent d] of {[support.n_latents, x.shape[1]]}, like the answer; got "
            f"{list(against.shape)}."
        )


def require_values(operation: str, values: Tensor, support: Support) -> None:
    """One value per entry.

    Raises:
        ShapeMismatch: there is not.
    """
    if values.shape != (len(support),):
        raise ShapeMismatch(
            f"{operation} takes one value per entry of the support, {len(support)}; got {list(values.shape)}."
        )


@functools.cache
def _say_nothing_of_beta() -> None:
    """torch tells once per process that sparse CSR tensors are in beta; that is no news for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
