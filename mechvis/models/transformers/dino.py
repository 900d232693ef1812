"""DINOv2, with and without registers, and DINOv3 with its rotary positions."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn

from mechvis.axes import PerHead
from mechvis.models.parts import AttentionParts, BlockParts, TowerParts
from mechvis.models.transformers.common import (
    attention,
    block_aliases,
    labels,
    linear_bias,
    linear_weight,
    mlp_fields,
    pair,
)
from mechvis.models.transformers.dinov3_images import FloatResize

NATIVE = {
    "": "hook_resid_post",
    "norm1": "ln1.hook_normalized",
    "attention.q_proj": "attn.hook_q",
    "attention.k_proj": "attn.hook_k",
    "attention.v_proj": "attn.hook_v",
    "layer_scale1": "hook_attn_out",
    "norm2": "ln2.hook_normalized",
    "layer_scale2": "hook_mlp_out",
}
"""Path inside a layer -> site inside a block: a block's writes are what comes out of LayerScale."""

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def dinov2(model: nn.Module) -> TowerParts:
    """DINOv2: `Dinov2Model`, `Dinov2ForImageClassification` and the same two `WithRegisters`. The classifier reads the
    CLS token beside the mean of the patches; without one the output is the CLS token. Any image size: the config says
    518 pixels, the published image processors make 224."""
    base = next((getattr(model, name) for name in ("dinov2", "dinov2_with_registers") if hasattr(model, name)), model)
    config, embeddings = base.config, base.embeddings
    head = getattr(model, "classifier", None)
    n_registers = embeddings.register_tokens.shape[1] if hasattr(embeddings, "register_tokens") else 0
    prefix = _prefix(n_registers)
    size, patch = pair(embeddings.patch_embeddings.image_size), pair(embeddings.patch_embeddings.patch_size)

    def cls_and_mean(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, 0], tokens[:, len(prefix) :].mean(dim=1)], dim=1)

    path = next((f"{name}." for name, child in model.named_children() if child is base), "")
    return TowerParts(
        family="Hugging Face DINOv2" + (" with registers" if n_registers else ""),
        embed=embeddings,
        blocks=_blocks(base.encoder),
        d_model=config.hidden_size,
        ln_final=base.layernorm,
        reads=(0,) if head is None else None,
        norm="tokens",
        pool=(lambda tokens: tokens[:, 0]) if head is None else cls_and_mean,
        d_pooled=config.hidden_size * (1 if head is None else 2),
        head=head,
        prefix=prefix,
        image_size=size,
        sizes="any",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=(size[0] // patch[0]) * (size[1] // patch[1]) + len(prefix),
        class_names=labels(config) if head is not None else (),
        reference=lambda pixels: model(pixels).pooler_output if head is None else model(pixels).logits,
        preprocess=resize_and_crop,
        aliases={
            **block_aliases(f"{path}encoder.layer", len(base.encoder.layer), _native(base.encoder)),
            f"{path}embeddings": "hook_embed",
            f"{path}layernorm": "ln_final.hook_normalized",
            **({"classifier": "hook_logits"} if head is not None else {}),
        },
    )


def dinov3(model: nn.Module) -> TowerParts:
    """DINOv3: `DINOv3ViTModel`. Positions are rotations of queries and keys of the patches, for whatever grid the image
    has; CLS and registers are not rotated. The output is the CLS token."""
    config, embeddings, rope = model.config, model.embeddings, model.rope_embeddings
    prefix = _prefix(embeddings.register_tokens.shape[1])
    size, patch = pair(config.image_size), pair(config.patch_size)

    def layout(pixels: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # The module looks at the size, type and device of an image only; prefix tokens turn by an angle of zero.
        cos, sin = rope(embeddings.patch_embeddings.weight.new_empty(0, 1, *pixels))
        still = cos.new_ones(len(prefix), cos.shape[1])
        return torch.cat([still, cos]), torch.cat([torch.zeros_like(still), sin])

    return TowerParts(
        family="Hugging Face DINOv3",
        embed=embeddings,
        blocks=_blocks(model.model, rotate=rotate),
        d_model=config.hidden_size,
        ln_final=model.norm,
        reads=(0,),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        layout=layout,
        prefix=prefix,
        image_size=size,
        sizes="any",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=(size[0] // patch[0]) * (size[1] // patch[1]) + len(prefix),
        reference=lambda pixels: model(pixels).pooler_output,
        preprocess=lambda size: FloatResize(size={"height": size[0], "width": size[1]}),
        aliases={
            **block_aliases("model.layer", len(model.model.layer), _native(model.model)),
            "embeddings": "hook_embed",
            "norm": "ln_final.hook_normalized",
        },
    )


def rotate(x: PerHead, layout: tuple[Tensor, Tensor], tokens: Int[Tensor, " token"] | None) -> PerHead:
    """Queries or keys of `tokens` (None: all) turned by their positions' angles; `layout` holds cosine and sine per
    token of the image, `[token d_head]` each."""
    cos, sin = layout if tokens is None else (table[tokens] for table in layout)
    x = rearrange(x, "r t h e -> r h t e").contiguous()  # as the upstream has it: then its products round as there
    first, second = x.chunk(2, dim=-1)
    return rearrange(x * cos + torch.cat((-second, first), dim=-1) * sin, "r h t e -> r t h e")


def resize_and_crop(size: tuple[int, int]) -> Any:
    """DINOv2's image processor: resize the shorter side to 8/7 of the size, crop the middle."""
    from transformers import BitImageProcessorPil

    height, width = size
    return BitImageProcessorPil(
        size={"shortest_edge": round(max(size) * 256 / 224)}, crop_size={"height": height, "width": width}, **IMAGENET
    )


def _prefix(n_registers: int) -> tuple[str, ...]:
    return ("cls", *(f"register{i}" for i in range(n_registers)))


def _blocks(encoder: nn.Module, **more: Any) -> tuple[BlockParts, ...]:
    blocks = []
    for layer in encoder.layer:
        module, more_of_old = layer.attention, {}
        if old := hasattr(module, "attention"):  # DINOv2 before transformers 5.18
            module, out = module.attention, module.output.dense
            more_of_old = {"inputs": ("query", "key", "value")}
        attn = attention(
            module,
            n_heads=module.num_heads if hasattr(module, "num_heads") else module.num_attention_heads,
            d_head=module.attention_head_size if old else module.head_dim,
            out=out if old else module.o_proj,
            scale=module.scaling,
            eager_softmax=None,
            **more_of_old,
            **more,
        )
        attn = replace(attn, qkv=partial(_queries_last, attn)) if old else attn
        fields = {"scale1": layer.layer_scale1, "scale2": layer.layer_scale2, **_mlp(layer.mlp)}
        blocks.append(BlockParts(ln1=layer.norm1, attn=attn, ln2=layer.norm2, **fields))
    return tuple(blocks)


def _queries_last(attn: AttentionParts, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the order in which DINOv2 did it before transformers 5.18: gradients add up in that order."""
    k, v = attn.kv(x)
    return attn.q(x), k, v


def _mlp(mlp: nn.Module) -> dict[str, Any]:
    if not hasattr(mlp, "weights_in"):
        return mlp_fields(mlp)
    # SwiGLU of DINOv2 before transformers 5.18: one product for the gate and the linear half, and no module for silu.
    return {
        "mlp_in": lambda x: mlp.weights_in(x).chunk(2, dim=-1),
        "act": nn.functional.silu,
        "gated": True,
        "mlp_out": mlp.weights_out,
        "mlp_out_weight": lambda: linear_weight(mlp.weights_out).T,
        "mlp_out_bias": lambda: linear_bias(mlp.weights_out),
        "d_mlp": linear_weight(mlp.weights_out).shape[1],
    }


def _native(encoder: nn.Module) -> dict[str, str]:
    layer = encoder.layer[0]
    names = dict(NATIVE)
    if hasattr(layer.attention, "attention"):
        for letter, name in zip("qkv", ("query", "key", "value"), strict=True):
            names[f"attention.attention.{name}"] = names.pop(f"attention.{letter}_proj")
    if hasattr(layer.mlp, "gate_proj"):
        return {**names, "mlp.gate_proj": "mlp.hook_pre", "mlp.up_proj": "mlp.hook_pre_linear"}
    first = next((name for name in ("fc1", "up_proj") if hasattr(layer.mlp, name)), None)
    return names if first is None else {**names, f"mlp.{first}": "mlp.hook_pre"}
