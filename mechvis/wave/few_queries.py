"""Attention of a few queries over many tokens, without the keys and values of those tokens.

In the last block only the tokens of the read-out ask (mostly the CLS token), and so do the latents of an attention
pooling. Their keys and values need not be made, because both are products with the same stream:

    scores = q K^T = q (x W_K + b_K)^T = (q W_K^T) x^T + constant        softmax does not see a constant per query
    z      = p V   = p (x W_V + b_V)   = (p x) W_V + b_V                 each row of p sums to one

Per row that is `2 query head token d_model` multiply-adds for `2 token d_model^2`: 3.6 million for 232 million in a
ViT-B/16. It holds where keys have no norm and no rotary positions, and the projections are nothing but products. That
is tried on the clean rows of every call; where it fails keys and values are made as usual (the plain twin).
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.models.parts import AttentionParts, Layout
from mechvis.wave.same import same


@dataclass(frozen=True)
class FewQueries:
    """An attention whose keys and values are never made."""

    attn: AttentionParts
    to_keys: Float[Tensor, "head d_model d_head"]
    to_values: Float[Tensor, "head d_model d_head"]
    value_bias: Float[Tensor, "head d_head"] | None

    def heads(
        self, q: plain.Queries, x: Residual, layout: Layout = None, tokens: Tensor | None = None
    ) -> plain.Queries:
        """z of some queries.

        Args:
            q: the queries, with bias and norm.
            x: the normalised stream that keys and values would be made of.
            layout, tokens: for the position bias: the image's size, and which tokens ask.
        """
        attn, heads, n = self.attn, self.attn.n_heads, q.shape[1]
        # So few products cost nothing, and fused attention does not round its scores to a low precision either.
        work = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            x = x.to(work)
            asked = einsum(q.to(work), self.to_keys.to(work), "r q h e, h d e -> r h q d").flatten(1, 2)
            asked = asked * attn.scale if attn.scale_queries else asked
            scores = torch.bmm(asked, x.mT).unflatten(1, (heads, n))
            scores = scores if attn.scale_queries else scores * attn.scale
            if attn.bias is not None:
                bias = attn.bias(layout)
                scores = scores + (bias if tokens is None else bias[:, :, tokens])
            pattern = plain.pattern_of(attn, scores).flatten(1, 2)
            mixed = torch.bmm(pattern, x).unflatten(1, (heads, n))
            z = einsum(mixed, self.to_values.to(work), "r h q d, h d e -> r q h e")
            z = z if self.value_bias is None else z + self.value_bias
        return plain.finish(attn, z.to(q.dtype))


def without_keys(attn: AttentionParts, x: Residual, n_queries: int) -> FewQueries | None:
    """The same attention without keys and values, or None where that is no gain or not the same.

    Args:
        attn: the attention.
        x: normalised stream of some rows (the clean ones), on which it is tried.
        n_queries: how many queries each row has.
    """
    d_model, n_heads = x.shape[-1], attn.n_heads
    # With more queries the products below cost what the keys and values do.
    if attn.rotate is not None or attn.causal or 2 * n_queries * n_heads > d_model:
        return None
    (_, to_keys, to_values), (_, key_bias, value_bias) = attn.in_weights(), attn.in_biases()
    keys, values = attn.kv(x)
    # A pooling may leave tokens out, a norm changes keys, an adapter or a quantised product may be more than a product.
    if not _product(x, to_keys, key_bias, keys) or not _product(x, to_values, value_bias, values):
        return None
    return FewQueries(attn, to_keys, to_values, value_bias)


def _product(x: Residual, weight: Tensor, bias: Tensor | None, expected: plain.Keys) -> bool:
    """Is this what the module makes of the stream?"""
    if expected.shape[:2] != x.shape[:2]:
        return False
    own = einsum(x, weight, "r t d, h d e -> r t h e")
    own = own if bias is None else own + bias
    return same(own, expected)
