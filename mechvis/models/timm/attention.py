"""Self-attention of timm's blocks, with one projection for queries, keys and values or with three."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mechvis.models.parts import AttentionParts
from mechvis.models.timm.common import is_none, unsupported
from mechvis.models.transformers.common import linear_bias, linear_weight


def attention(model: nn.Module, path: str, module: nn.Module, **more: Any) -> AttentionParts:
    """Self-attention of any timm block; `more` are further fields of `AttentionParts`.

    Args:
        model: the whole model, for errors.
        path: where the attention is, for errors.
        module: has `num_heads`, `scale`, `fused_attn`, `proj`, and either `qkv` or `q_proj`, `k_proj`, `v_proj`.
    """
    if not is_none(getattr(module, "gate", None)):
        raise unsupported(model, f"{path}.gate", module.gate, "which gates the mixed values by the input of attention")
    n_heads, norm, projection = module.num_heads, getattr(module, "norm", None), module.proj
    d_head = linear_weight(projection).shape[1] // n_heads
    return AttentionParts(
        n_heads=n_heads,
        d_head=d_head,
        **(_together(module) if getattr(module, "qkv", None) is not None else _apart(module)),
        after=None if is_none(norm) else norm,
        out=projection,
        out_weight=lambda: rearrange(linear_weight(projection), "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: linear_bias(projection),
        scale=scale(module, d_head),
        fused=lambda: bool(module.fused_attn),
        scale_queries=True,
        **more,
    )


def scale(module: nn.Module, d_head: int) -> float:
    """Factor on query-key products. Fused attention is called without one and takes torch's, 1 / sqrt(d_head); the
    explicit way takes the module's, d_head ** -0.5, which for some d_head (8, 32, 88) is another number in float64."""
    return 1 / math.sqrt(d_head) if module.fused_attn else module.scale


def query_key_norms(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Norms per head of queries and of keys `[row token head d_head]`, where there are such."""

    def per_head(norm: nn.Module | None) -> Callable[[Tensor], Tensor]:
        if is_none(norm):
            return lambda x: x
        # In upstream's order of axes, because the result lies in memory in that order: products then round as there.
        return lambda x: norm(x.transpose(1, 2)).transpose(1, 2)

    return per_head(getattr(module, "q_norm", None)), per_head(getattr(module, "k_norm", None))


def _together(module: nn.Module) -> dict[str, Any]:
    """One weight for queries, keys and values, with its own bias, with biases for queries and values beside it, or
    without any."""
    n_heads = module.num_heads
    q_norm, k_norm = query_key_norms(module)
    width = linear_weight(module.qkv).shape[0] // 3
    d_head = width // n_heads

    def beside() -> Tensor | None:
        if getattr(module, "q_bias", None) is None:
            return None
        return torch.cat((module.q_bias, module.k_bias, module.v_bias))

    def bypassed() -> bool:
        # Upstream then takes the weight without calling the module, so that adapters and hooks on it have no effect.
        return getattr(module, "q_bias", None) is not None and not module.qkv_bias_separate

    def product(x: Tensor, part: slice = slice(None)) -> Tensor:
        linear, bias = module.qkv, beside()
        if bypassed():
            return F.linear(x, linear.weight[part], bias[part])
        if part == slice(None):
            out = linear(x)
        elif type(linear) is nn.Linear and not (linear._forward_hooks or linear._forward_pre_hooks):
            out = F.linear(x, linear.weight[part], None if linear.bias is None else linear.bias[part])
        else:
            out = linear(x)[..., part]
        return out if bias is None else out + bias[part]

    def split(x: Tensor, n: int) -> tuple[Tensor, ...]:
        return x.unflatten(-1, (n, n_heads, d_head)).unbind(-3)

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = split(product(x), 3)
        return q_norm(q), k_norm(k), v

    def kv(x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = split(product(x, slice(width, None)), 2)
        return k_norm(k), v

    def in_weights() -> tuple[Tensor, ...]:
        weight = module.qkv.weight if bypassed() else linear_weight(module.qkv)
        return rearrange(weight, "(n h e) d -> n h d e", n=3, h=n_heads).unbind(0)

    def in_biases() -> tuple[Tensor | None, ...]:
        own, more = linear_bias(module.qkv), beside()
        total = more if own is None else own if more is None else own + more
        return (None,) * 3 if total is None else total.unflatten(0, (3, n_heads, d_head)).unbind(0)

    return {
        "q": lambda x: q_norm(split(product(x, slice(0, width)), 1)[0]),
        "kv": kv,
        "qkv": qkv,
        "in_weights": in_weights,
        "in_biases": in_biases,
    }


def _apart(module: nn.Module) -> dict[str, Any]:
    """Three projections. With fewer heads of keys and values than of queries, each is repeated for its queries."""
    q_norm, k_norm = query_key_norms(module)
    n_heads, groups = module.num_heads, getattr(module, "num_kv_groups", 1)
    d_head = linear_weight(module.q_proj).shape[0] // n_heads

    def shared(x: Tensor, dim: int) -> Tensor:
        return x if groups == 1 else x.repeat_interleave(groups, dim=dim)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, d_head))

    def kv(x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = split(module.k_proj(x)), split(module.v_proj(x))
        return shared(k_norm(k), 2), shared(v, 2)

    def in_weights() -> tuple[Tensor, ...]:
        weights = [linear_weight(m) for m in (module.q_proj, module.k_proj, module.v_proj)]
        q, k, v = (rearrange(weight, "(h e) d -> h d e", e=d_head) for weight in weights)
        return q, shared(k, 0), shared(v, 0)

    def in_biases() -> tuple[Tensor | None, ...]:
        biases = [linear_bias(m) for m in (module.q_proj, module.k_proj, module.v_proj)]
        q, k, v = (None if bias is None else bias.unflatten(0, (-1, d_head)) for bias in biases)
        return q, None if k is None else shared(k, 0), None if v is None else shared(v, 0)

    return {"q": lambda x: q_norm(split(module.q_proj(x))), "kv": kv, "in_weights": in_weights, "in_biases": in_biases}
