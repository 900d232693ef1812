"""A block without anything attached to it: the plain twin of the hooked block, and what sweeps run.

The operations are the upstream's, in the upstream's order, so that the result is bitwise the same on CPU. The two
halves are separate because an ablated head re-enters the network between them (at `resid_mid`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Pattern, PerHead, Residual
from mechvis.models.parts import AttentionParts, BlockParts, Layout, PoolingParts, TowerParts

# The last block computes queries of the tokens that are read only, but keys and values of all.
Queries = Float[Tensor, "row query head d_head"]
Keys = Float[Tensor, "row key head d_head"]


def project(attn: AttentionParts, x: Residual) -> tuple[PerHead, PerHead, PerHead]:
    """Queries, keys and values of all tokens."""
    return attn.qkv(x) if attn.qkv is not None else (attn.q(x), *attn.kv(x))


def place(attn: AttentionParts, q: Queries, k: Keys, layout: Layout, tokens: Tensor | None = None) -> tuple:
    """Queries (of `tokens`, None: all) and keys after rotary positions, where the family has them."""
    if attn.rotate is None:
        return q, k
    return attn.rotate(q, layout, tokens), attn.rotate(k, layout, None)


def _bias(attn: AttentionParts, layout: Layout, tokens: Tensor | None) -> Tensor | None:
    if attn.bias is None:
        return None
    bias = attn.bias(layout)
    return bias if tokens is None else bias[:, :, tokens]


def scores_of(
    attn: AttentionParts, q: Queries, k: Keys, layout: Layout = None, tokens: Tensor | None = None
) -> Pattern:
    """Scaled query-key products `[row head query key]` with position bias, before softmax; future keys are -inf in
    causal towers."""
    q, k = rearrange(q, "r q h d -> r h q d"), rearrange(k, "r k h d -> r h d k")
    scores = (q * attn.scale) @ k if attn.scale_queries else q @ k * attn.scale
    if (bias := _bias(attn, layout, tokens)) is not None:
        scores = scores + bias
    if attn.causal:
        n_query, n_key = scores.shape[-2:]
        future = scores.new_ones(n_query, n_key).triu(1 + n_key - n_query).bool()
        scores = scores.masked_fill(future, float("-inf"))
    return scores


def pattern_of(attn: AttentionParts, scores: Pattern) -> Pattern:
    """Softmax over keys. A model that computes attention explicitly has its own way: the type of its scores, or a fixed
    one (Hugging Face rounds float64 to float32 there). In the place of fused attention: float32 for low-precision
    models, float64 stays float64."""
    work = torch.promote_types(scores.dtype, torch.float32) if attn.fused() else attn.eager_softmax
    return F.softmax(scores, dim=-1, dtype=work).to(scores.dtype)


def mix_explicit(pattern: Pattern, v: Keys) -> Queries:
    """Attention-weighted values, from a pattern."""
    return rearrange(pattern @ rearrange(v, "r k h d -> r h k d"), "r h q d -> r q h d").contiguous()


def mix(
    attn: AttentionParts, q: Queries, k: Keys, v: Keys, layout: Layout = None, tokens: Tensor | None = None
) -> Queries:
    """Attention-weighted values by the way the user's model does it now: fused, or explicit. `q` and `k` have their
    rotary positions already."""
    if not attn.fused():
        return mix_explicit(pattern_of(attn, scores_of(attn, q, k, layout, tokens)), v)
    q, k, v = (rearrange(t, "r t h d -> r h t d") for t in (q, k, v))
    bias = _bias(attn, layout, tokens)
    causal = attn.causal and q.shape[2] > 1
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attn.scale, is_causal=causal)
    return rearrange(z, "r h t d -> r t h d").contiguous()


Mix = Callable[[AttentionParts, Queries, Keys, Keys, Layout, Tensor | None], Queries]


def finish(attn: AttentionParts, mixed: Queries) -> Queries:
    """Mixed values to z, which the output projection reads."""
    if attn.after is None:
        return mixed
    return attn.after(merge(mixed)).unflatten(-1, (attn.n_heads, attn.d_head))


def heads(
    block: BlockParts, normalised: Residual, layout: Layout, tokens: Tensor | None = None, mix: Mix = mix
) -> Queries:
    """z of a normalised stream; with `tokens`, queries for these only, keys and values for all."""
    attn = block.attn
    if tokens is None:
        q, k, v = project(attn, normalised)
    else:
        q, (k, v) = attn.q(normalised[:, tokens]), attn.kv(normalised)
    q, k = place(attn, q, k, layout, tokens)
    return finish(attn, mix(attn, q, k, v, layout, tokens))


def scaled(scale: Callable[[Residual], Residual] | None, write: Residual) -> Residual:
    """A sub-layer's write after LayerScale, where there is one."""
    return write if scale is None else scale(write)


def neurons(block: BlockParts, normalised: Residual) -> Tensor:
    """What the MLP's output product reads, `[row token d_mlp]`."""
    return activations(block, block.mlp_in(normalised))


def activations(block: BlockParts, pre: Any) -> Tensor:
    """Pre-activations, as `mlp_in` gives them, to what the MLP's output product reads."""
    post = block.act(pre[0]) * pre[1] if block.gated else block.act(pre)
    return post if block.mlp_norm is None else block.mlp_norm(post)


def attention(block: BlockParts, x: Residual, layout: Layout = None) -> Residual:
    """The attention half's write, before it is added to the stream."""
    return scaled(block.scale1, block.attn.out(merge(heads(block, block.ln1(x), layout))))


def mlp(block: BlockParts, mid: Residual) -> Residual:
    """The MLP half's write."""
    return scaled(block.scale2, block.mlp_out(neurons(block, block.ln2(mid))))


def plain(block: BlockParts, x: Residual, layout: Layout = None) -> Residual:
    """The whole block."""
    mid = x + attention(block, x, layout)
    return mid + mlp(block, mid)


def merge(z: PerHead) -> Tensor:
    """Heads side by side, as the output projection reads them."""
    return z.flatten(2)


def latents(pooling: PoolingParts, tokens: Residual) -> Float[Tensor, "row latent d_out"]:
    """Attention pooling of normalised tokens."""
    attn = pooling.attn
    q, (k, v) = attn.q(pooling.latents(len(tokens))), attn.kv(tokens)
    x = attn.out(merge(finish(attn, mix(attn, q, k, v))))
    return x if pooling.mlp is None else mlp(pooling.mlp, x) + x


def read_out(parts: TowerParts, x: Residual, pick: Callable[[Residual], Residual]) -> Tensor:
    """The stream after the last block to the model's output; `pick` keeps the tokens that are read."""
    if parts.norm == "tokens":
        x = parts.ln_final(x)
    x = pick(x)
    if parts.norm == "read":
        x = parts.ln_final(x)
    x = parts.pool(x if parts.pooling is None else latents(parts.pooling, x))
    if parts.norm == "pooled":
        x = parts.ln_final(x)
    x = x if parts.project is None else parts.project(x)
    return x if parts.head is None else parts.head(x)
