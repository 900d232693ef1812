"""timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder and other ViTs with rotary positions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.models.parts import BlockParts, Layout, TowerParts
from mechvis.models.timm.attention import attention
from mechvis.models.timm.common import (
    block_names,
    check_whole_patches,
    class_names,
    geometry,
    mlp,
    preprocess,
    unsupported,
)
from mechvis.models.timm.read_out import read_out


def eva(model: nn.Module) -> TowerParts:
    """`Eva`, with rotary positions shared by all blocks, one per block (`rope_mixed`), or none."""
    n_registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    prefix = ("cls",) * (model.cls_token is not None) + tuple(f"register{i}" for i in range(n_registers))
    shape = geometry(model)
    size, patch = shape["image_size"], shape["patch_size"]

    def embed(pixels: Tensor) -> Tensor:
        check_whole_patches(pixels, shape)
        return model.norm_pre(model._pos_embed(model.patch_embed(pixels))[0])

    def layout(size: tuple[int, int]) -> Layout:
        """Sines and cosines of the patches, as upstream asks for them."""
        if model.dynamic_img_size:
            return model.rope.get_embed(shape=(size[0] // patch[0], size[1] // patch[1]))
        return model.rope.get_embed(shape=None if hasattr(model.rope, "feat_shape") else model.patch_embed.grid_size)

    blocks, names = [], {}
    for index, layer in enumerate(model.blocks):
        table = _own_table(index) if getattr(model, "rope_mixed", False) else _shared_table
        blocks.append(_block(model, f"blocks.{index}", layer, None if model.rope is None else table))
        names |= block_names(f"blocks.{index}", layer, blocks[-1])
    # Attention pooling takes all tokens, mean and maximum those of the patches.
    fields = read_out(model, n_prefix=len(prefix), patches_only=model.attn_pool is None)
    return TowerParts(
        family="timm Eva",
        embed=embed,
        blocks=tuple(blocks),
        layout=None if model.rope is None else layout,
        d_model=model.embed_dim,
        prefix=prefix,
        n_tokens=len(prefix) + (size[0] // patch[0]) * (size[1] // patch[1]),
        class_names=class_names(model),
        preprocess=preprocess(model),
        aliases={"norm_pre": "hook_embed", **names, **fields.pop("aliases")},
        **shape,
        **fields,
    )


def _shared_table(layout: Layout) -> Tensor:
    return layout


def _own_table(index: int) -> Callable[[Layout], Tensor]:
    return lambda layout: layout[index]


def _block(model: nn.Module, path: str, layer: nn.Module, table: Callable[[Layout], Tensor] | None) -> BlockParts:
    from timm.models.eva import EvaBlock, EvaBlockPostNorm

    if not isinstance(layer, (EvaBlock, EvaBlockPostNorm)):
        raise unsupported(model, path, layer, "not attention followed by an MLP")
    rotate = None if table is None else rotary(layer.attn, table)
    fields = {
        "attn": attention(model, f"{path}.attn", layer.attn, rotate=rotate),
        **mlp(model, f"{path}.mlp", layer.mlp),
    }
    if isinstance(layer, EvaBlockPostNorm):
        norms = {"ln1": nn.Identity(), "ln2": nn.Identity(), "scale1": layer.norm1, "scale2": layer.norm2}
        return BlockParts(**norms, linear_writes=False, **fields)
    return BlockParts(ln1=layer.norm1, ln2=layer.norm2, **layer_scales(layer), **fields)


def layer_scales(layer: nn.Module) -> dict[str, Any]:
    """LayerScale that is a parameter of the block."""
    return {
        "scale1": None if layer.gamma_1 is None else lambda x: layer.gamma_1 * x,
        "scale2": None if layer.gamma_2 is None else lambda x: layer.gamma_2 * x,
    }


def rotary(module: nn.Module, table: Callable[[Layout], Tensor]) -> Callable[[Tensor, Layout, Tensor | None], Tensor]:
    """Rotation of queries or keys `[row token head d_head]`; tokens of the prefix stay as they are."""

    def rotate(x: Tensor, layout: Layout, tokens: Tensor | None) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        n_prefix, half, angles = module.num_prefix_tokens, getattr(module, "rotate_half", False), table(layout)
        x = x.transpose(1, 2)  # upstream's order: row head token d_head
        if tokens is None:
            patches = apply_rot_embed_cat(x[:, :, n_prefix:], angles, half=half).to(x.dtype)
            return torch.cat([x[:, :, :n_prefix], patches], dim=2).transpose(1, 2)
        # Any tokens in any order: each with the angle of its own patch, where it is a patch.
        is_patch = tokens >= n_prefix
        own = angles[..., (tokens - n_prefix).clamp(min=0), :]
        rotated = apply_rot_embed_cat(x, own, half=half).to(x.dtype)
        return torch.where(is_patch[:, None], rotated, x).transpose(1, 2)

    return rotate
