"""timm's `VisionTransformer` (ViT, DeiT, DINOv2, CLIP's and SigLIP's image towers, ...) and distilled DeiT."""

from typing import Any

from torch import Tensor, nn

from mechvis.models.parts import BlockParts, TowerParts
from mechvis.models.timm.attention import attention
from mechvis.models.timm.common import (
    block_names,
    check_whole_patches,
    class_names,
    geometry,
    is_none,
    mlp,
    preprocess,
    unsupported,
)
from mechvis.models.timm.read_out import read_out


def vit(model: nn.Module) -> TowerParts:
    """`VisionTransformer`: class token or not, registers, any pooling, norms before or after each half."""
    prefix = ("cls",) * bool(model.has_class_token) + tuple(f"register{i}" for i in range(model.num_reg_tokens))
    return _tower(
        model,
        "timm ViT",
        prefix=prefix,
        **read_out(model, n_prefix=len(prefix), patches_only=not model.pool_include_prefix),
    )


def distilled(model: nn.Module) -> TowerParts:
    """`VisionTransformerDistilled` (DeiT): the mean of two heads, one on the class token, one on the distillation
    token."""

    def heads(pooled: Tensor) -> Tensor:
        cls, distillation = pooled.chunk(2, dim=-1)
        return (model.head(cls) + model.head_dist(distillation)) / 2

    fields: dict[str, Any] = {"pool": lambda tokens: tokens.flatten(1), "head": heads}
    if isinstance(model.head, nn.Identity):
        fields = {"pool": lambda tokens: (tokens[:, 0] + tokens[:, 1]) / 2, "d_pooled": model.embed_dim}
    return _tower(
        model,
        "timm DeiT, distilled",
        prefix=("cls", "distillation"),
        reads=(0, 1),
        norm="tokens",
        ln_final=model.norm,
        reference=model,
        aliases={"norm": "ln_final.hook_normalized"},
        **fields,
    )


def _tower(
    model: nn.Module, family: str, *, prefix: tuple[str, ...], aliases: dict[str, str], **fields: Any
) -> TowerParts:
    shape = geometry(model)
    size, patch = shape["image_size"], shape["patch_size"]

    def embed(pixels: Tensor) -> Tensor:
        check_whole_patches(pixels, shape)
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))

    blocks, names = [], {}
    for index, layer in enumerate(model.blocks):
        blocks.append(_block(model, f"blocks.{index}", layer))
        names |= block_names(f"blocks.{index}", layer, blocks[-1])
    return TowerParts(
        family=family,
        embed=embed,
        blocks=tuple(blocks),
        d_model=model.embed_dim,
        prefix=prefix,
        n_tokens=len(prefix) + (size[0] // patch[0]) * (size[1] // patch[1]),
        class_names=class_names(model),
        preprocess=preprocess(model),
        aliases={"norm_pre": "hook_embed", **names, **aliases},
        **shape,
        **fields,
    )


def _block(model: nn.Module, path: str, layer: nn.Module) -> BlockParts:
    from timm.models.vision_transformer import Attention, Block, ResPostBlock

    if not isinstance(layer, (Block, ResPostBlock)):
        raise unsupported(model, path, layer, "not attention followed by an MLP")
    if not isinstance(layer.attn, Attention):
        raise unsupported(model, f"{path}.attn", layer.attn, "not plain attention")
    fields = {"attn": attention(model, f"{path}.attn", layer.attn), **mlp(model, f"{path}.mlp", layer.mlp)}
    if isinstance(layer, ResPostBlock):
        # The norms act on what the halves write, not on what they read.
        norms = {"ln1": nn.Identity(), "ln2": nn.Identity(), "scale1": layer.norm1, "scale2": layer.norm2}
        return BlockParts(**norms, linear_writes=False, **fields)
    return BlockParts(
        ln1=layer.norm1, ln2=layer.norm2, scale1=_layer_scale(layer.ls1), scale2=_layer_scale(layer.ls2), **fields
    )


def _layer_scale(module: nn.Module) -> Any:
    if is_none(module):
        return None
    # What is scaled here may be a weight (the bias of a projection), which must not change.
    return (lambda x: module(x.clone())) if getattr(module, "inplace", False) else module
