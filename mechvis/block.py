"""A block without anything attached to it: the plain twin of the hooked block, and what sweeps run.

The operations are the upstream's, in the upstream's order, so that the result is bitwise the same on CPU. The two
halves are separate because an ablated head re-enters the network between them (at `resid_mid`).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Pattern, PerHead, Residual
from mechvis.models.parts import AttentionParts, BlockParts

# The last block computes queries of the tokens that are read only, but keys and values of all.
Queries = Float[Tensor, "row query head d_head"]
Keys = Float[Tensor, "row key head d_head"]


def scores_of(attn: AttentionParts, q: Queries, k: Keys) -> Pattern:
    """Scaled query-key products `[row head query key]`, before softmax; future keys are -inf in causal towers."""
    scores = rearrange(q, "r q h d -> r h q d") @ rearrange(k, "r k h d -> r h d k") * attn.scale
    if attn.causal:
        n_query, n_key = scores.shape[-2:]
        future = scores.new_ones(n_query, n_key).triu(1 + n_key - n_query).bool()
        scores = scores.masked_fill(future, float("-inf"))
    return scores


def pattern_of(attn: AttentionParts, scores: Pattern) -> Pattern:
    """Softmax over keys: in float32 for low-precision models, float64 stays float64, unless the user's model computes
    attention explicitly and has its own way (Hugging Face rounds float64 to float32 there)."""
    work = None if attn.fused() else attn.eager_softmax
    work = torch.promote_types(scores.dtype, torch.float32) if work is None else work
    return F.softmax(scores, dim=-1, dtype=work).to(scores.dtype)


def mix_explicit(pattern: Pattern, v: Keys) -> Queries:
    """Attention-weighted values, from a pattern."""
    return rearrange(pattern @ rearrange(v, "r k h d -> r h k d"), "r h q d -> r q h d").contiguous()


def mix(attn: AttentionParts, q: Queries, k: Keys, v: Keys) -> Queries:
    """Attention-weighted values by the way the user's model does it now: fused, or explicit."""
    if not attn.fused():
        return mix_explicit(pattern_of(attn, scores_of(attn, q, k)), v)
    q, k, v = (rearrange(t, "r t h d -> r h t d") for t in (q, k, v))
    z = F.scaled_dot_product_attention(q, k, v, scale=attn.scale, is_causal=attn.causal and q.shape[2] > 1)
    return rearrange(z, "r h t d -> r t h d").contiguous()


def attention(block: BlockParts, x: Residual) -> Residual:
    """The attention half's write, before it is added to the stream."""
    normalised = block.ln1(x)
    q = block.attn.q(normalised)
    k, v = block.attn.kv(normalised)
    out = block.attn.out(merge(mix(block.attn, q, k, v)))
    return out if block.scale1 is None else block.scale1(out)


def mlp(block: BlockParts, mid: Residual) -> Residual:
    """The MLP half's write."""
    out = block.mlp_out(block.act(block.mlp_in(block.ln2(mid))))
    return out if block.scale2 is None else block.scale2(out)


def plain(block: BlockParts, x: Residual) -> Residual:
    """The whole block."""
    mid = attention(block, x) + x
    return mlp(block, mid) + mid


def plain_at(block: BlockParts, x: Residual, tokens: Tensor) -> Residual:
    """The whole block, but only for the stream at `tokens`: keys and values for all, queries and MLP for these.

    Args:
        tokens: int64 indices `[token]`.
    """
    normalised = block.ln1(x)
    q = block.attn.q(normalised[:, tokens])
    k, v = block.attn.kv(normalised)
    out = block.attn.out(merge(mix(block.attn, q, k, v)))
    mid = (out if block.scale1 is None else block.scale1(out)) + x[:, tokens]
    return mlp(block, mid) + mid


def merge(z: PerHead) -> Tensor:
    """Heads side by side, as the output projection reads them."""
    return z.flatten(2)
