"""ViT and DeiT, plain and distilled."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mechvis.models.parts import TowerParts
from mechvis.models.transformers.common import attention, block, block_aliases, interpolated, labels, pair, processor

NATIVE = {
    "": "hook_resid_post",
    "attention": "hook_attn_out",
    "attention.o_proj": "hook_attn_out",
    "attention.q_proj": "attn.hook_q",
    "attention.k_proj": "attn.hook_k",
    "attention.v_proj": "attn.hook_v",
    "layernorm_before": "ln1.hook_normalized",
    "layernorm_after": "ln2.hook_normalized",
    "mlp": "hook_mlp_out",
    "mlp.fc1": "mlp.hook_pre",
    "mlp.fc2": "hook_mlp_out",
}
"""Path inside a layer -> site inside a block, for the models that are laid out as ViT."""


def vit(model: nn.Module) -> TowerParts:
    """ViT and DeiT: `ViTModel`, `ViTForImageClassification`, `DeiTModel`, `DeiTForImageClassification` and
    `DeiTForImageClassificationWithTeacher` (whose logits are the mean of two heads)."""
    name = "deit" if hasattr(model, "deit") or type(model).__name__.startswith("DeiT") else "vit"
    base = getattr(model, name, model)
    blocks = blocks_of(base)
    embeddings, config = base.embeddings, base.config
    prefix = ("cls", "distillation") if name == "deit" else ("cls",)
    n_prefix = len(prefix)
    size, patch = pair(embeddings.image_size), pair(embeddings.patch_size)
    # Upstream's interpolation reshapes positions to a square grid, and divides by the patch size as one number.
    interpolates = isinstance(embeddings.patch_size, int) and size[0] == size[1]
    reads, project, head = (0,), None, getattr(model, "classifier", None)
    if hasattr(model, "distillation_classifier"):
        reads = (0, 1)

        def head(pooled: Tensor) -> Tensor:
            cls, distillation = pooled.chunk(2, dim=-1)
            return (model.cls_classifier(cls) + model.distillation_classifier(distillation)) / 2

    pooler = getattr(base, "pooler", None)
    if head is None and pooler is not None:

        def project(pooled: Tensor) -> Tensor:
            return pooler.activation(pooler.dense(pooled))

    def reference(pixels: Tensor) -> Tensor:
        output = model(pixels, **interpolated(pixels, size))
        if head is not None:
            return output.logits
        return output.pooler_output if project is not None else output.last_hidden_state[:, 0]

    path = "" if base is model else name + "."
    return TowerParts(
        family=f"Hugging Face {'DeiT' if name == 'deit' else 'ViT'}",
        embed=lambda pixels: embeddings(pixels, **interpolated(pixels, size)),
        blocks=blocks,
        d_model=config.hidden_size,
        ln_final=base.layernorm,
        reads=reads,
        norm="tokens",
        pool=lambda tokens: tokens.flatten(1) if len(reads) > 1 else tokens[:, 0],
        project=project,
        head=head,
        prefix=prefix,
        image_size=size,
        sizes="asked" if interpolates else "one",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=(size[0] // patch[0]) * (size[1] // patch[1]) + n_prefix,
        class_names=labels(config) if head is not None else (),
        reference=reference,
        preprocess=processor("DeiTImageProcessorPil", do_center_crop=False)
        if name == "deit"
        else processor("ViTImageProcessorPil"),
        aliases={
            **block_aliases(f"{path}layers", len(blocks), NATIVE),
            f"{path}embeddings": "hook_embed",
            f"{path}layernorm": "ln_final.hook_normalized",
            **({"classifier": "hook_logits"} if hasattr(model, "classifier") else {}),
        },
    )


def blocks_of(base: nn.Module, more: Callable[[nn.Module], dict[str, Any]] = lambda layer: {}) -> tuple:
    """Blocks of the models that are laid out as ViT; `more` gives further fields of `BlockParts` for a layer (its entry
    `bias` goes to the attention)."""
    blocks = []
    for layer in base.layers:
        module, fields = layer.attention, dict(more(layer))
        attn = attention(
            module,
            n_heads=module.num_attention_heads,
            d_head=module.head_dim,
            out=module.o_proj,
            scale=module.scaling,
            bias=fields.pop("bias", None),
        )
        blocks.append(block(layer, attn=attn, ln1="layernorm_before", ln2="layernorm_after", **fields))
    return tuple(blocks)
