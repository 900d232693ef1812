"""From the tokens to the output: norm, pooling (also by attention), head."""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mechvis.errors import UnsupportedModel
from mechvis.models.parts import AttentionParts, BlockParts, PoolingParts
from mechvis.models.timm.attention import query_key_norms, scale
from mechvis.models.timm.common import is_none, mlp, mlp_names, unsupported
from mechvis.models.transformers.common import linear_bias, linear_weight


def read_out(model: nn.Module, *, n_prefix: int, patches_only: bool = True) -> dict[str, Any]:
    """Fields of `TowerParts` for norm, pooling and head.

    Without pooling (`global_pool=""`) the model answers with all its tokens; here the class token is read then, and
    where there is none the mean over the patches.

    Args:
        model: has `norm`, `fc_norm`, `global_pool`, `head`, and perhaps `attn_pool`.
        n_prefix: tokens before the patches.
        patches_only: mean and maximum leave the prefix out.
    """
    pooler, unpooled = getattr(model, "attn_pool", None), not model.global_pool
    kind = model.global_pool or ("token" if model.cls_token is not None else "avg")
    skip = n_prefix if patches_only else 0
    fields: dict[str, Any] = {"reads": (0,) if kind == "token" else None, "reference": model}
    names: dict[str, str] = {}
    if pooler is not None:
        fields |= attention_pooling(model, pooler, skip) | {"reads": None}
        names |= pooling_names(pooler, fields["pooling"])
    elif kind in ("token", "avg", "max", "avgmax"):
        fields["pool"] = partial(pooled, kind=kind, skip=skip)
    else:
        raise UnsupportedModel(f"{type(model).__name__}: global_pool={kind!r} is no pooling that is known.")
    if unpooled and pooler is None:
        fields["reference"] = lambda pixels: pooled(model(pixels), kind=kind, skip=skip)
    if is_none(model.fc_norm):
        fields |= {"ln_final": model.norm, "norm": "tokens"}
        names["norm"] = "ln_final.hook_normalized"
    elif not is_none(model.norm):
        if unpooled and kind != "token":
            raise unsupported(model, "fc_norm", model.fc_norm, "a second norm of every token")
        fields |= {"ln_final": model.norm, "norm": "tokens", "project": model.fc_norm}
        names |= {"norm": "ln_final.hook_normalized"} | ({} if unpooled else {"fc_norm": "hook_embedding"})
    else:
        # Without pooling upstream, this norm acts on every token.
        place = "tokens" if unpooled else "read" if kind == "token" and pooler is None else "pooled"
        fields |= {"ln_final": model.fc_norm, "norm": place}
        names["fc_norm"] = "ln_final.hook_normalized"
    if fields["norm"] == "pooled":
        names.pop("attn_pool", None)  # what it returns is normalised before it is `hook_pooled`
    if not isinstance(model.head, nn.Identity):
        fields["head"] = model.head
        names |= {} if unpooled else {"head": "hook_logits"}
    return fields | {"aliases": names}


def pooled(tokens: Tensor, *, kind: str, skip: int) -> Tensor:
    """Tokens to one vector: the first, or mean, maximum or both of those after `skip`."""
    if kind == "token":
        return tokens[:, 0]
    patches = tokens[:, skip:]
    if kind == "avg":
        return patches.mean(dim=1)
    return patches.amax(dim=1) if kind == "max" else 0.5 * (patches.amax(dim=1) + patches.mean(dim=1))


def attention_pooling(model: nn.Module, module: nn.Module, skip: int) -> dict[str, Any]:
    """Attention of learned queries over the tokens (SigLIP): fields `pooling`, `pool`, `d_pooled`.

    Args:
        skip: tokens at the beginning that are no keys.
    """
    from timm.layers import AttentionPoolLatent

    if not isinstance(module, AttentionPoolLatent):
        raise unsupported(model, "attn_pool", module, "which is no attention of learned queries")
    if module.pool not in ("token", "avg"):
        raise unsupported(model, "attn_pool", module, f"which answers with all its latents (pool {module.pool!r})")
    n_heads, d_head, q_linear, out = module.num_heads, module.head_dim, module.q, module.proj
    q_norm, k_norm = query_key_norms(module)
    like = module.latent

    def kv(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x[:, skip:] if skip else x
        x = x if module.pos_embed is None else x + module.pos_embed.unsqueeze(0).to(x.dtype)
        k, v = module.kv(x).unflatten(-1, (2, n_heads, d_head)).unbind(-3)
        return k_norm(k), v

    def one() -> Tensor:
        return torch.eye(n_heads * d_head, dtype=like.dtype, device=like.device)

    def in_weights() -> tuple[Tensor, ...]:
        q = one() if is_none(q_linear) else linear_weight(q_linear)
        kv = rearrange(linear_weight(module.kv), "(n h e) d -> n h d e", n=2, h=n_heads)
        return rearrange(q, "(h e) d -> h d e", h=n_heads), kv[0], kv[1]

    def in_biases() -> tuple[Tensor | None, ...]:
        q, kv = None if is_none(q_linear) else linear_bias(q_linear), linear_bias(module.kv)
        k, v = (None, None) if kv is None else kv.unflatten(0, (2, n_heads, d_head)).unbind(0)
        return None if q is None else q.unflatten(0, (n_heads, d_head)), k, v

    attn = AttentionParts(
        n_heads=n_heads,
        d_head=d_head,
        q=lambda latents: q_norm(q_linear(latents).unflatten(-1, (n_heads, d_head))),
        kv=kv,
        out=out,
        out_weight=lambda: rearrange(one() if is_none(out) else linear_weight(out), "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: None if is_none(out) else linear_bias(out),
        in_weights=in_weights,
        in_biases=in_biases,
        scale=scale(module, d_head),
        fused=lambda: bool(module.fused_attn),
        scale_queries=True,
    )
    after = None
    if module.mlp is not None:
        after = BlockParts(ln1=nn.Identity(), attn=attn, ln2=module.norm, **mlp(model, "attn_pool.mlp", module.mlp))
    d_out = n_heads * d_head if is_none(out) else linear_weight(out).shape[0]
    parts = PoolingParts(
        attn=attn,
        latents=lambda rows: module.latent.expand(rows, -1, -1),
        n_latents=module.latent.shape[1],
        keys="patch" if skip else "token",
        d_out=d_out,
        mlp=after,
    )
    return {"pooling": parts, "pool": partial(pooled, kind=module.pool, skip=0), "d_pooled": d_out}


def pooling_names(module: nn.Module, parts: PoolingParts) -> dict[str, str]:
    """Native module path -> site for attention pooling."""
    names = {"attn_pool": "hook_pooled", "attn_pool.proj": "pool.hook_attn_out"}
    if parts.mlp is not None:
        names |= {"attn_pool.norm": "pool.ln2.hook_normalized", "attn_pool.mlp": "pool.hook_mlp_out"}
        names |= {f"attn_pool.mlp.{n}": f"pool.mlp.{hook}" for n, hook in mlp_names(module.mlp, parts.mlp).items()}
    return names
