"""ViT-Prisma's model with the weights of a Hugging Face ViT.

ViT-Prisma needs timm, and with it torchvision, which the base environment does not have; its release also asks for an
old plotly that is not used here. So `make bench` installs it alone (`--no-deps`) into an environment laid over the
other two, and everyone runs there, in one process. Without it the rows are measured without ViT-Prisma, and say so.
"""

from typing import Any

from einops import rearrange
from torch import nn

from mechvis.testing.operators import declare_torchvision_operators


def rebuilt(bare: nn.Module, model: Any) -> nn.Module:
    """ViT-Prisma's class with the weights of a Hugging Face ViT.

    Args:
        bare: the model.
        model: the same, wrapped by mechvis, whose weights have a head axis.
    """
    declare_torchvision_operators()  # before anything imports torchvision
    from vit_prisma.configs.HookedViTConfig import HookedViTConfig
    from vit_prisma.models.base_vit import HookedViT

    config = bare.config
    made = HookedViT(
        HookedViTConfig(
            n_layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_head=model.cfg.d_head,
            n_heads=config.num_attention_heads,
            d_mlp=config.intermediate_size,
            eps=config.layer_norm_eps,
            patch_size=config.patch_size,
            image_size=config.image_size,
            n_classes=config.num_labels,
            return_type="class_logits",
            use_wandb=False,
            device=str(next(bare.parameters()).device),
            dtype=next(bare.parameters()).dtype,
        )
    )
    embeddings, state = bare.vit.embeddings, {}
    state["cls_token"], state["pos_embed.W_pos"] = embeddings.cls_token, embeddings.position_embeddings[0]
    for name in ("weight", "bias"):
        state[f"embed.proj.{name}"] = getattr(embeddings.patch_embeddings.projection, name)
    for i, (layer, block) in enumerate(zip(bare.vit.layers, model.blocks, strict=True)):
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            state[f"blocks.{i}.attn.{name}"] = getattr(block.attn, name)
        for ours, theirs in (("layernorm_before", "ln1"), ("layernorm_after", "ln2")):
            norm = getattr(layer, ours)
            state[f"blocks.{i}.{theirs}.w"], state[f"blocks.{i}.{theirs}.b"] = norm.weight, norm.bias
        for ours, theirs in (("fc1", "in"), ("fc2", "out")):
            linear = getattr(layer.mlp, ours)
            state[f"blocks.{i}.mlp.W_{theirs}"] = rearrange(linear.weight, "out in -> in out")
            state[f"blocks.{i}.mlp.b_{theirs}"] = linear.bias
    state["ln_final.w"], state["ln_final.b"] = bare.vit.layernorm.weight, bare.vit.layernorm.bias
    state["head.W_H"], state["head.b_H"] = bare.classifier.weight.T, bare.classifier.bias
    made.load_state_dict(state)
    return made.eval()
