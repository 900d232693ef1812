"""Rows of a head sweep and their LayerNorm: the plain twin of the kernel, and what runs on a CPU.

    rows[unit, image, token]   = mid[image, token] + scale * (change[image, token, unit] @ weight[unit])
    normed[unit, image, token] = LayerNorm(rows[unit, image, token])

Types below float32 are computed in float32 and rounded once; the norm sees the rounded rows, as it would in the model.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import ShapeMismatch

Stream = Float[Tensor, "image token d_model"]
Change = Float[Tensor, "image token unit d_head"]
Weight = Float[Tensor, "unit d_head d_model"]
Vector = Float[Tensor, " d_model"]
Rows = Float[Tensor, "unit image token d_model"]


def expand_norm(
    mid: Stream,
    change: Change,
    weight: Weight,
    scale: Vector | None = None,
    norm_weight: Vector | None = None,
    norm_bias: Vector | None = None,
    *,
    eps: float,
    out: Rows | None = None,
) -> tuple[Rows, Rows]:
    """See `mechvis.kernels.expand_norm.expand_norm`."""
    require_shapes(mid, change, weight, scale, norm_weight, norm_bias, out)
    work = torch.promote_types(mid.dtype, torch.float32)
    write = torch.einsum("itue,ued->uitd", change.to(work), weight.to(work))
    if scale is not None:
        write = write * scale.to(work)
    rows = (mid.to(work) + write).to(mid.dtype)
    rows = rows if out is None else out.copy_(rows)
    vectors = (vector if vector is None else vector.to(work) for vector in (norm_weight, norm_bias))
    return rows, F.layer_norm(rows.to(work), mid.shape[-1:], *vectors, eps).to(mid.dtype)


def require_shapes(mid, change, weight, scale, norm_weight, norm_bias, out=None) -> None:
    """Sizes fit each other, and so does `out`.

    Raises:
        ShapeMismatch: they do not.
    """
    if mid.ndim != 3 or change.ndim != 4 or weight.ndim != 3:
        fits = False
    else:
        (n, t, d), (_, _, units, e) = mid.shape, change.shape
        fits = change.shape[:2] == (n, t) and weight.shape == (units, e, d)
        fits = fits and all(v is None or v.shape == (d,) for v in (scale, norm_weight, norm_bias))
    if not fits:
        seen = {"scale": scale, "norm_weight": norm_weight, "norm_bias": norm_bias}
        vectors = {name: list(v.shape) for name, v in seen.items() if v is not None}
        raise ShapeMismatch(
            "expand_norm takes mid [image token d_model], change [image token unit d_head], "
            f"weight [unit d_head d_model], vectors [d_model]; "
            f"got {list(mid.shape)}, {list(change.shape)}, {list(weight.shape)}, {vectors}."
        )
    if out is None:
        return
    wanted = (units, n, t, d)
    grads = torch.is_grad_enabled() and any(
        v is not None and v.requires_grad for v in (mid, change, weight, scale, norm_weight, norm_bias)
    )
    if out.shape != wanted or out.dtype != mid.dtype or not out.is_contiguous() or grads:
        raise ShapeMismatch(
            f"expand_norm can put its rows into a contiguous {mid.dtype} {list(wanted)} that needs no gradients; got "
            f"{out.dtype} {list(out.shape)}, strides {out.stride()}{', and gradients are asked for' if grads else ''}."
        )
