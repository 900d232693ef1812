"""What a wave front does otherwise under `torch.autocast` (see :mod:`mechvis.screen`), for speed.

1. The normed stream is cast once, not by each of the products that read it.
2. On a CPU attention is two products and a softmax: torch's fused attention has no bfloat16 products there and takes as
   long as in float32. Measured on one thread (avx512_bf16), 4 x 197 tokens, 12 heads of 64: fused 7.1 ms, this 3.5;
   32 x 65 tokens, 4 heads of 32: 2.2 and 0.9. The scores are rounded to bfloat16, so z deviates by 0.7 % instead of
   0.2 %; the effects of heads, which all products of the block round, by 5 to 10 % more than they do anyway (a mean
   effect by 0.48 instead of 0.45 % on `scenes-vit`).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.models.parts import AttentionParts, Layout


def low(device: torch.device) -> torch.dtype | None:
    """The low precision in which products run there now; None: that of the model."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def normed(norm: nn.Module, x: Residual) -> Residual:
    """The normed stream, in the type in which products read it."""
    dtype, x = low(x.device), norm(x)
    return x if dtype is None else x.to(dtype)


def mix(
    attn: AttentionParts, q: plain.Queries, k: plain.Keys, v: plain.Keys, layout: Layout = None,
    tokens: Tensor | None = None,
) -> plain.Queries:  # fmt: skip
    """Attention-weighted values, as `mechvis.block.mix` gives them up to rounding."""
    if q.device.type != "cpu" or low(q.device) is None or not attn.fused() or attn.causal or attn.bias is not None:
        return plain.mix(attn, q, k, v, layout, tokens)
    q, k, v = (rearrange(t, "r t h d -> r h t d") for t in (q * attn.scale, k, v))
    with torch.autocast("cpu", enabled=False):
        pattern = (q @ k.to(q.dtype).mT).softmax(-1)
        return rearrange(pattern.to(v.dtype) @ v, "r h t d -> r t h d").contiguous()
