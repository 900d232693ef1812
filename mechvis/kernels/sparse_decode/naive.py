"""The sparse decoder: the plain twin of the kernel, and what runs on a CPU.

    out[row] = sum over the entries of row of value[entry] * weight[latent[entry]]

`torch.nn.functional.embedding_bag` is this sum: it walks over the entries of a row in their order and holds nothing
beside the output. Types below float32 are widened first, so that sums are taken in float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import ShapeMismatch
from mechvis.kernels.support import Support

Values = Float[Tensor, " entry"]
Weight = Float[Tensor, "latent d"]
Decoded = Float[Tensor, "row d"]


@torch.no_grad()
def sparse_decode(values: Values, support: Support, weight: Weight) -> Decoded:
    """See `mechvis.kernels.sparse_decode.sparse_decode`."""
    require_shapes(values, support, weight)
    return weighted_rows(support.latents, support.offsets, values, weight)


def weighted_rows(
    index: Tensor, offsets: Tensor, values: Float[Tensor, " entry"], table: Float[Tensor, "row d"]
) -> Float[Tensor, "bag d"]:
    """Per bag, the sum of `value * table[index]` over the entries from `offsets[bag]` to `offsets[bag + 1]`.

    Args:
        index: row of the table for each entry.
        offsets: where each bag starts, and the end.
        values: factor of each entry.
        table: rows to add up.
    """
    work = torch.promote_types(torch.promote_types(values.dtype, table.dtype), torch.float32)
    return torch.nn.functional.embedding_bag(
        index, table.to(work), offsets, mode="sum", per_sample_weights=values.to(work), include_last_offset=True
    )


def require_shapes(values: Tensor, support: Support, weight: Tensor) -> None:
    """Sizes fit each other.

    Raises:
        ShapeMismatch: they do not.
    """
    if values.shape != (len(support),) or weight.ndim != 2 or len(weight) != support.n_latents:
        raise ShapeMismatch(
            f"sparse_decode takes values [entry] and weight [latent d] for a support of {len(support)} entries and "
            f"{support.n_latents} latents; got {list(values.shape)} and {list(weight.shape)}."
        )
