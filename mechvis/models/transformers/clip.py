"""CLIP: vision tower, text tower, the classifier made of the vision tower."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.models.parts import BlockParts, TowerParts, TwoTowers
from mechvis.models.transformers.common import attention, block, block_aliases, interpolated, labels, pair

NATIVE = {
    "": "hook_resid_post",
    "self_attn": "hook_attn_out",
    "self_attn.out_proj": "hook_attn_out",
    "self_attn.q_proj": "attn.hook_q",
    "self_attn.k_proj": "attn.hook_k",
    "self_attn.v_proj": "attn.hook_v",
    "layer_norm1": "ln1.hook_normalized",
    "layer_norm2": "ln2.hook_normalized",
    "mlp": "hook_mlp_out",
    "mlp.fc1": "mlp.hook_pre",
    "mlp.fc2": "hook_mlp_out",
}


def preprocess(size: tuple[int, int]) -> Any:
    """CLIP's image processor: resize the shorter side, crop the middle."""
    from transformers import CLIPImageProcessorPil

    height, width = size
    return CLIPImageProcessorPil(size={"shortest_edge": min(size)}, crop_size={"height": height, "width": width})


def blocks_of(encoder: nn.Module, *, causal: bool) -> tuple[BlockParts, ...]:
    """Blocks of a tower of CLIP, or of one that is laid out like it."""
    blocks = []
    for layer in encoder.layers:
        module = layer.self_attn
        attn = attention(
            module,
            n_heads=module.num_heads,
            d_head=module.head_dim,
            out=module.out_proj,
            scale=module.scale,
            causal=causal,
        )
        blocks.append(block(layer, attn=attn, ln1="layer_norm1", ln2="layer_norm2"))
    return tuple(blocks)


def vision(model: nn.Module) -> TowerParts:
    """CLIP's vision tower: `CLIPVisionModel`, `CLIPVisionModelWithProjection`, or the one inside a `CLIPModel`."""
    base = getattr(model, "vision_model", model)
    while hasattr(base, "vision_model"):
        base = base.vision_model
    config, embeddings = base.config, base.embeddings
    project = getattr(model, "visual_projection", None)
    size, patch = pair(embeddings.image_size), pair(embeddings.patch_size)

    def reference(pixels: Tensor) -> Tensor:
        other_size = interpolated(pixels, size)
        if hasattr(model, "get_image_features"):
            return model.get_image_features(pixels, **other_size).pooler_output
        output = model(pixels, **other_size)
        return output.pooler_output if project is None else output.image_embeds

    path = "" if base is model else "vision_model."
    return TowerParts(
        family="Hugging Face CLIP vision",
        embed=lambda pixels: base.pre_layrnorm(embeddings(pixels, **interpolated(pixels, size))),
        blocks=blocks_of(base.encoder, causal=False),
        d_model=config.hidden_size,
        ln_final=base.post_layernorm,
        reads=(0,),
        norm="read",
        pool=lambda tokens: tokens[:, 0],
        project=project,
        image_size=size,
        sizes="asked",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=embeddings.num_positions,
        reference=reference,
        preprocess=preprocess,
        aliases={
            **block_aliases(f"{path}encoder.layers", len(base.encoder.layers), NATIVE),
            f"{path}pre_layrnorm": "hook_embed",
            f"{path}post_layernorm": "ln_final.hook_normalized",
            "visual_projection": "hook_embedding",
        },
    )


def classifier(model: nn.Module) -> TowerParts:
    """`CLIPForImageClassification`: the vision tower, the mean over patch tokens without a norm, a linear head."""
    parts = vision(model)
    aliases = {path: site for path, site in parts.aliases.items() if site not in ("ln_final.hook_normalized",)}
    return replace(
        parts,
        family="Hugging Face CLIP classifier",
        ln_final=nn.Identity(),
        reads=None,
        norm="tokens",
        pool=lambda tokens: tokens[:, 1:].mean(dim=1),
        head=model.classifier,
        class_names=labels(model.config),
        reference=lambda pixels: model(pixels, **interpolated(pixels, parts.image_size)).logits,
        aliases={**aliases, "classifier": "hook_logits"},
    )


def text(model: nn.Module) -> TowerParts:
    """CLIP's text tower (causal; the read-out is the end-of-text token). Input: token ids `[row token]`, padded after
    the end of the text; padding cannot be seen by the read-out, so no attention mask is needed."""
    base = getattr(model, "text_model", model)
    while hasattr(base, "text_model"):
        base = base.text_model
    config = base.config
    project = getattr(model, "text_projection", None)

    def end_of_text(ids: Tensor) -> Tensor:
        # Checkpoints older than the eos fix carry eos_token_id 2 and mean "the highest id" (transformers #24773).
        if base.eos_token_id == 2:
            return ids.int().argmax(-1)
        return (ids.int() == base.eos_token_id).int().argmax(-1)

    def reference(ids: Tensor) -> Tensor:
        if hasattr(model, "get_text_features"):
            return model.get_text_features(ids).pooler_output
        output = model(ids)
        return output.pooler_output if project is None else output.text_embeds

    def example(generator: torch.Generator) -> Tensor:
        length = config.max_position_embeddings
        ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
        end = config.vocab_size - 1 if base.eos_token_id == 2 else base.eos_token_id
        ids[ids == end] = 0
        ids[:, length // 2] = end
        return ids.to(next(model.parameters()).device)

    path = "" if base is model else "text_model."
    return TowerParts(
        family="Hugging Face CLIP text",
        modality="text",
        embed=lambda ids: base.embeddings(input_ids=ids),
        blocks=blocks_of(base.encoder, causal=True),
        d_model=config.hidden_size,
        ln_final=base.final_layer_norm,
        reads=end_of_text,
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        project=project,
        prefix=(),
        n_tokens=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        reference=reference,
        example=example,
        aliases={
            **block_aliases(f"{path}encoder.layers", len(base.encoder.layers), NATIVE),
            f"{path}embeddings": "hook_embed",
            f"{path}final_layer_norm": "ln_final.hook_normalized",
            "text_projection": "hook_embedding",
        },
    )


def two_towers(model: nn.Module) -> TwoTowers:
    """`CLIPModel`: both towers."""
    return TwoTowers(vision=vision, text=text, logit_scale=lambda: model.logit_scale.exp())
