"""Hugging Face families: ViT, DeiT (plain and distilled), CLIP (vision tower, text tower, both).

Each family is a map of names; the mathematics is shared because these blocks are the same pre-norm block. Everything
that decides numbers (activation, eps, attention implementation, pooling) is read from the live modules.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mechvis.errors import UnsupportedModel
from mechvis.models.parts import AttentionParts, BlockParts, TowerParts


def linear_weight(linear: nn.Module) -> Tensor:
    """`[out in]` weight of a linear layer as it acts now, adapters included (LoRA: base + scaled product)."""
    if hasattr(linear, "get_delta_weight"):
        base = linear.get_base_layer().weight
        active = [name for name in linear.active_adapters if name in linear.lora_A]
        if not linear.merged and not linear.disable_adapters:
            return base + sum((linear.get_delta_weight(name) for name in active), torch.zeros_like(base))
        return base
    return linear.weight


def linear_bias(linear: nn.Module) -> Tensor | None:
    """Bias of a linear layer, adapters or not."""
    return (linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear).bias


def _attention(module: nn.Module, *, n_heads: int, d_head: int, out: str, scale: float, causal: bool) -> AttentionParts:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (n_heads, d_head))

    def q(x: Tensor) -> Tensor:
        return split(module.q_proj(x))

    def kv(x: Tensor) -> tuple[Tensor, Tensor]:
        return split(module.k_proj(x)), split(module.v_proj(x))

    def in_weights() -> tuple[Tensor, ...]:
        linears = (module.q_proj, module.k_proj, module.v_proj)
        return tuple(rearrange(linear_weight(m), "(h e) d -> h d e", h=n_heads) for m in linears)

    def in_biases() -> tuple[Tensor | None, ...]:
        biases = [linear_bias(m) for m in (module.q_proj, module.k_proj, module.v_proj)]
        return tuple(None if b is None else rearrange(b, "(h e) -> h e", h=n_heads) for b in biases)

    project = getattr(module, out)
    return AttentionParts(
        n_heads=n_heads,
        d_head=d_head,
        q=q,
        kv=kv,
        out=project,
        out_weight=lambda: rearrange(linear_weight(project), "d (h e) -> h e d", h=n_heads),
        out_bias=lambda: linear_bias(project),
        in_weights=in_weights,
        in_biases=in_biases,
        scale=scale,
        fused=lambda: module.config._attn_implementation != "eager",
        causal=causal,
        eager_softmax=torch.float32,
    )


def _block(layer: nn.Module, *, attn: AttentionParts, ln1: str, ln2: str) -> BlockParts:
    mlp = layer.mlp
    return BlockParts(
        ln1=getattr(layer, ln1),
        attn=attn,
        ln2=getattr(layer, ln2),
        mlp_in=mlp.fc1,
        act=mlp.activation_fn,
        mlp_out=mlp.fc2,
        mlp_out_weight=lambda: linear_weight(mlp.fc2).T,
        mlp_out_bias=lambda: linear_bias(mlp.fc2),
        d_mlp=linear_weight(mlp.fc1).shape[0],
    )


def _block_aliases(prefix: str, n_layers: int, native: dict[str, str]) -> dict[str, str]:
    return {
        f"{prefix}.{layer}{'.' + path if path else ''}": f"blocks.{layer}.{site}"
        for layer in range(n_layers)
        for path, site in native.items()
    }


def _vit_like(base: nn.Module) -> tuple[tuple[BlockParts, ...], dict[str, str]]:
    """Blocks of ViT and DeiT, which share their layout."""
    blocks = []
    for layer in base.layers:
        module = layer.attention
        attn = _attention(
            module,
            n_heads=module.num_attention_heads,
            d_head=module.head_dim,
            out="o_proj",
            scale=module.scaling,
            causal=False,
        )
        blocks.append(_block(layer, attn=attn, ln1="layernorm_before", ln2="layernorm_after"))
    native = {
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
    return tuple(blocks), native


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _image_example(channels: int, size: tuple[int, int], like: nn.Module) -> Callable[[torch.Generator], Tensor]:
    def example(generator: torch.Generator) -> Tensor:
        weight = next(like.parameters())
        return torch.randn(2, channels, *size, generator=generator).to(weight.device, weight.dtype)

    return example


def _labels(config: Any) -> tuple[str, ...]:
    names = getattr(config, "id2label", None) or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def vit(model: nn.Module) -> TowerParts:
    """ViT and DeiT: `ViTModel`, `ViTForImageClassification`, `DeiTModel`, `DeiTForImageClassification` and
    `DeiTForImageClassificationWithTeacher` (whose logits are the mean of two heads)."""
    name = "deit" if hasattr(model, "deit") or type(model).__name__.startswith("DeiT") else "vit"
    base = getattr(model, name, model)
    blocks, native = _vit_like(base)
    embeddings, config = base.embeddings, base.config
    prefix = ("cls", "distillation") if name == "deit" else ("cls",)
    n_prefix = len(prefix)
    size, patch = _pair(embeddings.image_size), _pair(embeddings.patch_size)
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
        output = model(pixels)
        if head is not None:
            return output.logits
        return output.pooler_output if project is not None else output.last_hidden_state[:, 0]

    path = "" if base is model else name + "."
    return TowerParts(
        family=f"Hugging Face {'DeiT' if name == 'deit' else 'ViT'}",
        embed=embeddings,
        blocks=blocks,
        d_model=config.hidden_size,
        ln_final=base.layernorm,
        reads=reads,
        norm_first=True,
        pool=lambda tokens: tokens.flatten(1) if len(reads) > 1 else tokens[:, 0],
        project=project,
        head=head,
        prefix=prefix,
        image_size=size,
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=(size[0] // patch[0]) * (size[1] // patch[1]) + n_prefix,
        class_names=_labels(config) if head is not None else (),
        reference=reference,
        example=_image_example(config.num_channels, size, model),
        aliases={
            **_block_aliases(f"{path}layers", len(blocks), native),
            f"{path}embeddings": "hook_embed",
            f"{path}layernorm": "ln_final.hook_normalized",
            **({"classifier": "hook_logits"} if hasattr(model, "classifier") else {}),
        },
    )


_CLIP_NATIVE = {
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


def _clip_blocks(encoder: nn.Module, *, causal: bool) -> tuple[BlockParts, ...]:
    blocks = []
    for layer in encoder.layers:
        module = layer.self_attn
        attn = _attention(
            module, n_heads=module.num_heads, d_head=module.head_dim, out="out_proj", scale=module.scale, causal=causal
        )
        blocks.append(_block(layer, attn=attn, ln1="layer_norm1", ln2="layer_norm2"))
    return tuple(blocks)


def clip_vision(model: nn.Module) -> TowerParts:
    """CLIP's vision tower: `CLIPVisionModel`, `CLIPVisionModelWithProjection`, or the one inside a `CLIPModel`."""
    base = getattr(model, "vision_model", model)
    while hasattr(base, "vision_model"):
        base = base.vision_model
    config, embeddings = base.config, base.embeddings
    project = getattr(model, "visual_projection", None)
    size, patch = _pair(embeddings.image_size), _pair(embeddings.patch_size)

    def reference(pixels: Tensor) -> Tensor:
        if hasattr(model, "get_image_features"):
            return model.get_image_features(pixels).pooler_output
        output = model(pixels)
        return output.pooler_output if project is None else output.image_embeds

    path = "" if base is model else "vision_model."
    return TowerParts(
        family="Hugging Face CLIP vision",
        embed=lambda pixels: base.pre_layrnorm(embeddings(pixels)),
        blocks=_clip_blocks(base.encoder, causal=False),
        d_model=config.hidden_size,
        ln_final=base.post_layernorm,
        reads=(0,),
        norm_first=False,
        pool=lambda tokens: tokens[:, 0],
        project=project,
        image_size=size,
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=embeddings.num_positions,
        reference=reference,
        example=_image_example(config.num_channels, size, model),
        aliases={
            **_block_aliases(f"{path}encoder.layers", len(base.encoder.layers), _CLIP_NATIVE),
            f"{path}pre_layrnorm": "hook_embed",
            f"{path}post_layernorm": "ln_final.hook_normalized",
            "visual_projection": "hook_embedding",
        },
    )


def clip_classifier(model: nn.Module) -> TowerParts:
    """`CLIPForImageClassification`: the vision tower, the mean over patch tokens without a norm, a linear head."""
    parts = clip_vision(model)
    aliases = {path: site for path, site in parts.aliases.items() if site not in ("ln_final.hook_normalized",)}
    return replace(
        parts,
        family="Hugging Face CLIP classifier",
        ln_final=nn.Identity(),
        reads=None,
        norm_first=True,
        pool=lambda tokens: tokens[:, 1:].mean(dim=1),
        head=model.classifier,
        class_names=_labels(model.config),
        reference=lambda pixels: model(pixels).logits,
        aliases={**aliases, "classifier": "hook_logits"},
    )


def clip_text(model: nn.Module) -> TowerParts:
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
        blocks=_clip_blocks(base.encoder, causal=True),
        d_model=config.hidden_size,
        ln_final=base.final_layer_norm,
        reads=end_of_text,
        norm_first=True,
        pool=lambda tokens: tokens[:, 0],
        project=project,
        prefix=(),
        n_tokens=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        reference=reference,
        example=example,
        aliases={
            **_block_aliases(f"{path}encoder.layers", len(base.encoder.layers), _CLIP_NATIVE),
            f"{path}embeddings": "hook_embed",
            f"{path}final_layer_norm": "ln_final.hook_normalized",
            "text_projection": "hook_embedding",
        },
    )


def family_of(model: nn.Module) -> Callable[[nn.Module], TowerParts] | None:
    """The map for a Hugging Face model, by its class (sub-classes included); None if it is not one of these."""
    from transformers.models.clip import modeling_clip
    from transformers.models.deit import modeling_deit
    from transformers.models.vit import modeling_vit

    if isinstance(
        model,
        (
            modeling_vit.ViTForImageClassification,
            modeling_vit.ViTModel,
            modeling_deit.DeiTForImageClassification,
            modeling_deit.DeiTModel,
            modeling_deit.DeiTForImageClassificationWithTeacher,
        ),
    ):
        return vit
    if isinstance(model, (modeling_clip.CLIPVisionModel, modeling_clip.CLIPVisionModelWithProjection)):
        return clip_vision
    if isinstance(model, modeling_clip.CLIPForImageClassification):
        return clip_classifier
    if isinstance(model, (modeling_clip.CLIPTextModel, modeling_clip.CLIPTextModelWithProjection)):
        return clip_text
    return None


def is_clip(model: nn.Module) -> bool:
    """Is this a model of two towers?"""
    from transformers.models.clip import modeling_clip

    return isinstance(model, modeling_clip.CLIPModel)


def read_folder(path: Any) -> tuple[nn.Module, Any, Any]:
    """Model, image processor and tokenizer (None where missing) of a local folder or hub id.

    Weights are read as safetensors only; remote code is never run.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    architecture = (config.architectures or [None])[0]
    cls = getattr(transformers, architecture or "", None)
    if cls is None:
        raise UnsupportedModel(
            f"{path}: config.json names the architecture {architecture!r}, which transformers "
            f"{transformers.__version__} does not have."
        )
    model = cls.from_pretrained(path, use_safetensors=True, trust_remote_code=False).eval()
    return model, image_processor(path), partial(tokenizer, path)


def image_processor(path: Any) -> Any | None:
    """The image processor saved with a model (PIL backend, which needs no torchvision), or None."""
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError):
        return None


def tokenizer(path: Any) -> Any | None:
    """The tokenizer saved with a model, or None."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return None
