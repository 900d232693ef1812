"""What the maps of Hugging Face models share: attention with separate projections, the two-layer MLP, names.

Everything that decides numbers (activation, eps, attention implementation, pooling) is read from the live modules.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mechvis.models.parts import AttentionParts, BlockParts


def linear_weight(linear: nn.Module) -> Tensor:
    """`[out in]` weight of a linear layer as it acts now, adapters (LoRA and kin) included."""
    return _as_it_acts(linear)[0] if hasattr(linear, "get_base_layer") else linear.weight


def linear_bias(linear: nn.Module) -> Tensor | None:
    """Bias of a linear layer as it acts now, adapters included."""
    return _as_it_acts(linear)[1] if hasattr(linear, "get_base_layer") else linear.bias


def _as_it_acts(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """An adapted layer as one matrix and one bias, read off by sending unit vectors through it: right for every kind of
    adapter (LoRA, DoRA, IA3, ...), merged or not, switched off or not, several at once."""
    base = linear.get_base_layer()
    dtype = base.weight.dtype if base.weight.is_floating_point() else torch.get_default_dtype()
    unit = torch.eye(base.in_features, device=base.weight.device, dtype=dtype)
    bias = linear(torch.zeros_like(unit[:1]))[0]
    return (linear(unit) - bias).T, bias if base.bias is not None or bias.any() else None


def attention(
    module: nn.Module,
    *,
    n_heads: int,
    d_head: int,
    out: nn.Module,
    scale: float,
    inputs: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    causal: bool = False,
    eager_softmax: torch.dtype | None = torch.float32,
    **more: Any,
) -> AttentionParts:
    """Attention with three projections and the output projection `out`.

    Args:
        inputs: names of the projections to queries, keys and values.
        eager_softmax: type of the softmax in the family's `eager_attention_forward`; None: that of its input.
        more: further fields of `AttentionParts` (rotate, bias).
    """

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (n_heads, d_head))

    def linears() -> list[nn.Module]:
        return [getattr(module, name) for name in inputs]

    def q(x: Tensor) -> Tensor:
        return split(linears()[0](x))

    def kv(x: Tensor) -> tuple[Tensor, Tensor]:
        _, k, v = linears()
        return split(k(x)), split(v(x))

    def in_weights() -> tuple[Tensor, ...]:
        return tuple(rearrange(linear_weight(m), "(h e) d -> h d e", h=n_heads) for m in linears())

    def in_biases() -> tuple[Tensor | None, ...]:
        biases = [linear_bias(m) for m in linears()]
        return tuple(None if b is None else rearrange(b, "(h e) -> h e", h=n_heads) for b in biases)

    return AttentionParts(
        n_heads=n_heads,
        d_head=d_head,
        q=q,
        kv=kv,
        out=out,
        out_weight=lambda: rearrange(linear_weight(out), "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: linear_bias(out),
        in_weights=in_weights,
        in_biases=in_biases,
        scale=scale,
        fused=lambda: module.config._attn_implementation != "eager",
        causal=causal,
        eager_softmax=eager_softmax,
        **more,
    )


def block(layer: nn.Module, *, attn: AttentionParts, ln1: str, ln2: str, **more: Any) -> BlockParts:
    """A block with norms called `ln1` and `ln2` and an MLP called `mlp`; `more` are further fields of `BlockParts`."""
    return BlockParts(ln1=getattr(layer, ln1), attn=attn, ln2=getattr(layer, ln2), **mlp_fields(layer.mlp), **more)


def mlp_fields(mlp: nn.Module) -> dict[str, Any]:
    """Fields of `BlockParts` for an MLP of `fc1`, `activation_fn`, `fc2`, or of `up_proj`, `act_fn`, `down_proj` with a
    `gate_proj` where it is gated (SwiGLU)."""
    if hasattr(mlp, "fc1"):
        up, down = mlp.fc1, mlp.fc2
        act = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.activation
    else:
        up, act, down = mlp.up_proj, mlp.act_fn, mlp.down_proj
    gate = getattr(mlp, "gate_proj", None)

    def gate_and_linear(x: Tensor) -> tuple[Tensor, Tensor]:
        return gate(x), up(x)

    return {
        "mlp_in": up if gate is None else gate_and_linear,
        "act": act,
        "gated": gate is not None,
        "mlp_out": down,
        "mlp_out_weight": lambda: linear_weight(down).T,
        "mlp_out_bias": lambda: linear_bias(down),
        "d_mlp": linear_weight(up).shape[0],
    }


def block_aliases(prefix: str, n_layers: int, native: dict[str, str]) -> dict[str, str]:
    """Native module path -> site for every block; `native` maps a path inside a block to a site inside a block."""
    return {
        f"{prefix}.{layer}{'.' + path if path else ''}": f"blocks.{layer}.{site}"
        for layer in range(n_layers)
        for path, site in native.items()
    }


def pair(value: Any) -> tuple[int, int]:
    """(height, width) from a number or a pair."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def labels(config: Any) -> tuple[str, ...]:
    """Class names in a model's config."""
    names = getattr(config, "id2label", None) or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def interpolated(pixels: Tensor, size: tuple[int, int]) -> dict[str, bool]:
    """Keyword for models that interpolate their positions only when told: yes for images of another size."""
    return {"interpolate_pos_encoding": True} if tuple(pixels.shape[2:]) != size else {}


def processor(kind: str, **settings: Any) -> Any:
    """(height, width) -> an image processor of transformers (PIL backend) of a class, resizing to exactly this size."""

    def make(size: tuple[int, int]) -> Any:
        import transformers

        return getattr(transformers, kind)(size={"height": size[0], "width": size[1]}, **settings)

    return make
