"""timm's `Beit`: BEiT and BEiT v2, with a position bias on the attention scores."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mechvis.models.parts import BlockParts, Layout, TowerParts
from mechvis.models.timm.attention import attention
from mechvis.models.timm.common import block_names, class_names, geometry, mlp, preprocess
from mechvis.models.timm.eva import layer_scales
from mechvis.models.timm.read_out import read_out


def beit(model: nn.Module) -> TowerParts:
    """`Beit`: position bias per block, one shared by all blocks, or none."""
    shape = geometry(model)
    size, patch = shape["image_size"], shape["patch_size"]

    def embed(pixels: Tensor) -> Tensor:
        patches = model.patch_embed(pixels)
        x = torch.cat((model.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        return model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)

    blocks, names = [], {}
    for index, layer in enumerate(model.blocks):
        at = f"blocks.{index}"
        blocks.append(
            BlockParts(
                ln1=layer.norm1,
                ln2=layer.norm2,
                attn=attention(model, f"{at}.attn", layer.attn, bias=_bias(layer.attn, model.rel_pos_bias)),
                **mlp(model, f"{at}.mlp", layer.mlp),
                **layer_scales(layer),
            )
        )
        names |= block_names(at, layer, blocks[-1])
    fields = read_out(model, n_prefix=1)
    return TowerParts(
        family="timm BEiT",
        embed=embed,
        blocks=tuple(blocks),
        # The shared bias is looked up once for all blocks, as upstream does it.
        layout=None if model.rel_pos_bias is None else lambda size: model.rel_pos_bias(),
        d_model=model.embed_dim,
        n_tokens=1 + (size[0] // patch[0]) * (size[1] // patch[1]),
        class_names=class_names(model),
        preprocess=preprocess(model),
        aliases={"pos_drop": "hook_embed", **names, **fields.pop("aliases")},
        **shape,
        **fields,
    )


def _bias(module: nn.Module, shared: nn.Module | None) -> Callable[[Layout], Tensor] | None:
    """`[1 head query key]`: the block's own bias plus the shared one."""
    own = module.relative_position_bias_table is not None
    if not own and shared is None:
        return None

    def bias(layout: Layout) -> Tensor:
        if shared is None:
            return module._get_rel_pos_bias()
        return module._get_rel_pos_bias() + layout if own else layout[None]

    return bias
