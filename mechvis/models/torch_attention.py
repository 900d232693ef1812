"""The map of `torch.nn.MultiheadAttention`, which torchvision and open_clip build their blocks from.

Torch never calls its output projection as a module, and reads queries, keys and values off one packed weight. So the
parts here read the weights each time and use them as functions: what a user changes in them counts at once, and hooks
on `out_proj` fire as rarely as they do upstream.

Rounding: upstream has two ways. With a graph it calls fused attention, and so do we: outputs and all gradients are the
same bit for bit, because the products here run over tokens first and rows second, as upstream's do. Without a graph, in
eval mode, without a mask and with an even number of heads, upstream takes a native path that computes attention
explicitly; ours stays fused, and the two differ in the last bits (about 1e-7 of the output in float32).
`torch.backends.mha.set_fastpath_enabled(False)` switches that path off.
"""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mechvis.errors import UnsupportedModel
from mechvis.models.parts import AttentionParts


def attention(module: nn.Module, *, causal: bool = False) -> AttentionParts:
    """Parts of a `torch.nn.MultiheadAttention` that is called with `need_weights=False`; `batch_first` or not, for the
    caller turns the axes.

    Raises:
        UnsupportedModel: not that class (an adapter around it?), or with extra keys (`add_bias_kv`, `add_zero_attn`).
    """
    if not isinstance(module, nn.MultiheadAttention):
        raise UnsupportedModel(
            f"{type(module).__module__}.{type(module).__name__} stands where torch.nn.MultiheadAttention is expected. "
            "Adapters around it cannot be mapped: merge them into the weights first."
        )
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        raise UnsupportedModel("torch.nn.MultiheadAttention with add_bias_kv or add_zero_attn has keys of no token.")
    linear, n_heads = module.out_proj, module.num_heads
    project = packed(module, n_heads, turned=True) if module.in_proj_weight is not None else _separate(module, n_heads)

    def out(z: Tensor) -> Tensor:
        n_tokens = z.shape[1]
        write = F.linear(z.transpose(0, 1).flatten(0, 1), linear.weight, linear.bias)
        return write.unflatten(0, (n_tokens, -1)).transpose(0, 1)

    return AttentionParts(
        n_heads=n_heads,
        d_head=module.head_dim,
        **project,
        out=out,
        out_weight=lambda: rearrange(linear.weight, "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: linear.bias,
        scale=1 / math.sqrt(module.head_dim),
        fused=lambda: True,
        scale_queries=True,
        causal=causal,
    )


def packed(
    module: nn.Module,
    n_heads: int,
    *,
    turned: bool = False,
    after_q: Callable[[Tensor], Tensor] = lambda q: q,
    after_k: Callable[[Tensor], Tensor] = lambda k: k,
) -> dict[str, Any]:
    """The projections (`q`, `kv`, `qkv`, `in_weights`, `in_biases` of `AttentionParts`) of a module that has one
    `in_proj_weight` and perhaps one `in_proj_bias` for all three.

    Args:
        turned: the product runs over tokens first and rows second.
        after_q: what happens to `[row token head d_head]` queries (a norm).
        after_k: the same for keys.
    """

    def product(x: Tensor, part: slice, count: int) -> tuple[Tensor, ...]:
        bias = None if module.in_proj_bias is None else module.in_proj_bias[part]
        return _product(x, module.in_proj_weight[part], bias, n_heads, count, turned)

    def width() -> int:
        return module.in_proj_weight.shape[0] // 3

    def q(x: Tensor) -> Tensor:
        return after_q(*product(x, slice(width()), 1))

    def kv(x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = product(x, slice(width(), None), 2)
        return after_k(k), v

    def qkv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = product(x, slice(None), 3)
        return after_q(q), after_k(k), v

    def in_weights() -> tuple[Tensor, ...]:
        return tuple(rearrange(w, "(h e) d -> h d e", h=n_heads) for w in module.in_proj_weight.chunk(3))

    return {"q": q, "kv": kv, "qkv": qkv, "in_weights": in_weights, "in_biases": _in_biases(module, n_heads)}


def _separate(module: nn.Module, n_heads: int) -> dict[str, Any]:
    """The same where keys and values have another width than queries: three weights, one bias."""

    def product(x: Tensor, name: str, index: int) -> Tensor:
        bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[index]
        return _product(x, getattr(module, name), bias, n_heads, 1, turned=True)[0]

    def in_weights() -> tuple[Tensor, ...]:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        return tuple(rearrange(w, "(h e) d -> h d e", h=n_heads) for w in weights)

    return {
        "q": lambda x: product(x, "q_proj_weight", 0),
        "kv": lambda x: (product(x, "k_proj_weight", 1), product(x, "v_proj_weight", 2)),
        "in_weights": in_weights,
        "in_biases": _in_biases(module, n_heads),
    }


def _in_biases(module: nn.Module, n_heads: int) -> Callable[[], tuple[Tensor | None, ...]]:
    def in_biases() -> tuple[Tensor | None, ...]:
        bias = module.in_proj_bias
        return (None,) * 3 if bias is None else tuple(rearrange(b, "(h e) -> h e", h=n_heads) for b in bias.chunk(3))

    return in_biases


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, n_heads: int, count: int, turned: bool
) -> tuple[Tensor, ...]:
    """A product with `count` weights below each other, as `count` tensors `[row token head d_head]`."""
    pieces = F.linear(x.transpose(0, 1) if turned else x, weight, bias).chunk(count, dim=-1)
    # Cut first, turned back afterwards: the gradient of the bias then adds up in upstream's order.
    return tuple((p.transpose(0, 1) if turned else p).unflatten(-1, (n_heads, -1)) for p in pieces)
