"""SigLIP: vision tower with attention pooling, text tower, the classifier made of the vision tower."""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mechvis.errors import UnsupportedModel
from mechvis.models import torch_attention
from mechvis.models.parts import PoolingParts, TowerParts, TwoTowers
from mechvis.models.transformers.clip import NATIVE, blocks_of
from mechvis.models.transformers.common import block, block_aliases, interpolated, labels, pair, processor

POOLING = {
    "head": "hook_pooled",
    "head.attention": "pool.hook_attn_out",
    "head.layernorm": "pool.ln2.hook_normalized",
    "head.mlp": "pool.hook_mlp_out",
    "head.mlp.fc1": "pool.mlp.hook_pre",
    "head.mlp.fc2": "pool.hook_mlp_out",
}
"""Path of the pooling head -> site."""


def vision(model: nn.Module) -> TowerParts:
    """SigLIP's vision tower: `SiglipVisionModel`, the one inside a `SiglipModel`, or `SiglipForImageClassification`.

    There is no CLS token: learned attention pools the patches. A model made without it (`vision_use_head=False`) has no
    output of its own but tokens; here it gives their mean, which is also what the classifier takes. The published
    SigLIP 2 models of one resolution are these classes too; their processors resize bilinearly, those of the first
    SigLIP (the default here) bicubically.
    """
    base = _innermost(model, "vision_model")
    config, embeddings = base.config, base.embeddings
    size, patch = pair(embeddings.image_size), pair(embeddings.patch_size)
    head = getattr(model, "classifier", None)
    pooling = _pooling(base.head) if base.use_head and head is None else None
    blocks = blocks_of(base.encoder, causal=False)

    def reference(pixels: Tensor) -> Tensor:
        other_size = interpolated(pixels, size)
        if head is not None:
            return model(pixels, **other_size).logits
        tower = model.get_image_features if hasattr(model, "get_image_features") else model
        output = tower(pixels, **other_size)
        return output.last_hidden_state.mean(1) if pooling is None else output.pooler_output

    path = "" if base is model else "vision_model."
    return TowerParts(
        family="Hugging Face SigLIP " + ("vision" if head is None else "classifier"),
        embed=lambda pixels: embeddings(pixels, **interpolated(pixels, size)),
        blocks=blocks,
        d_model=config.hidden_size,
        ln_final=base.post_layernorm,
        reads=None,
        norm="tokens",
        pooling=pooling,
        pool=(lambda tokens: tokens.mean(1)) if pooling is None else (lambda latents: latents[:, 0]),
        head=head,
        prefix=(),
        image_size=size,
        sizes="asked",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=embeddings.num_positions,
        class_names=labels(model.config) if head is not None else (),
        reference=reference,
        preprocess=processor("SiglipImageProcessorPil"),
        aliases={
            **block_aliases(f"{path}encoder.layers", len(blocks), NATIVE),
            f"{path}embeddings": "hook_embed",
            f"{path}post_layernorm": "ln_final.hook_normalized",
            **({f"{path}{native}": site for native, site in POOLING.items()} if pooling is not None else {}),
            **({"classifier": "hook_logits"} if head is not None else {}),
        },
    )


def text(model: nn.Module) -> TowerParts:
    """SigLIP's text tower: not causal, read at the last token, projected by a linear head. Input: token ids `[row
    token]`, always padded to the longest text the model takes, as it was trained; padding is read like any token."""
    base = _innermost(model, "text_model")
    config, blocks = base.config, blocks_of(base.encoder, causal=False)

    def example(generator: torch.Generator) -> Tensor:
        ids = torch.randint(0, config.vocab_size, (2, config.max_position_embeddings), generator=generator)
        return ids.to(next(base.parameters()).device)

    tower = model.get_text_features if hasattr(model, "get_text_features") else model
    path = "" if base is model else "text_model."
    return TowerParts(
        family="Hugging Face SigLIP text",
        modality="text",
        embed=lambda ids: base.embeddings(input_ids=ids),
        blocks=blocks,
        d_model=config.hidden_size,
        ln_final=base.final_layer_norm,
        reads=lambda ids: torch.full((len(ids),), ids.shape[1] - 1, device=ids.device),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        project=base.head,
        prefix=(),
        n_tokens=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        reference=lambda ids: tower(ids).pooler_output,
        example=example,
        aliases={
            **block_aliases(f"{path}encoder.layers", len(blocks), NATIVE),
            f"{path}embeddings": "hook_embed",
            f"{path}final_layer_norm": "ln_final.hook_normalized",
            f"{path}head": "hook_embedding",
        },
    )


def two_towers(model: nn.Module) -> TwoTowers:
    """`SiglipModel`: both towers, trained with one sigmoid per pair of image and text."""
    return TwoTowers(
        vision=vision,
        text=text,
        logit_scale=lambda: model.logit_scale.exp().squeeze(),
        logit_bias=lambda: model.logit_bias.squeeze(),
        loss="sigmoid",
        encode_ids=encode_ids,
    )


def encode_ids(tokenizer: Any, texts: list[str], longest: int) -> Tensor:
    """Token ids `[row token]`, padded to `longest` as the model was trained: the tower reads the last token, padding or
    not. Both versions were trained on texts in lower case, which their own tokenizers see to; the checkpoints of SigLIP
    2 name Gemma's, which keeps capitals, so it gets lower case."""
    if "Gemma" in type(tokenizer).__name__:
        texts = [text.lower() for text in texts]
    settings = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
    return tokenizer(texts, **settings)["input_ids"]


def variable_patches(model: nn.Module) -> TowerParts:
    """Refuses SigLIP 2 with a variable number of patches (NaFlex).

    Raises:
        UnsupportedModel: always.
    """
    raise UnsupportedModel(
        f"{type(model).__name__} is SigLIP 2 with a variable number of patches (NaFlex): it takes patches, a mask and "
        "a shape per image instead of pixels, and every image has a grid of its own. SigLIP 2 of one resolution is "
        "supported: its checkpoints (google/siglip2-base-patch16-256 and kin) are the classes SiglipModel and "
        "SiglipVisionModel."
    )


def _innermost(model: nn.Module, name: str) -> nn.Module:
    """The tower itself, however deep it lies."""
    while hasattr(model, name):
        model = getattr(model, name)
    return model


def _pooling(head: nn.Module) -> PoolingParts:
    """Attention pooling by an `nn.MultiheadAttention` that is called with weights, and so is explicit whatever the
    model's attention: it scales the queries first and takes the softmax in the model's own type."""
    module = head.attention
    attn = torch_attention.attention(module)

    def kv(tokens: Tensor) -> tuple[Tensor, Tensor]:
        # One product, then keys and values in memory of their own, tokens first: so torch does it, and so it rounds.
        width = module.embed_dim
        both = F.linear(tokens.transpose(0, 1), module.in_proj_weight[width:], module.in_proj_bias[width:])
        both = rearrange(both, "t r (two h e) -> two t r h e", two=2, h=attn.n_heads).contiguous()
        return both[0].transpose(0, 1), both[1].transpose(0, 1)

    # The scale as torch writes it here: in float64 it is another number than 1 / sqrt(72).
    attn = replace(attn, kv=kv, fused=lambda: False, scale=math.sqrt(1 / module.head_dim))
    return PoolingParts(
        attn=attn,
        latents=lambda rows: head.probe.repeat(rows, 1, 1),
        d_out=module.embed_dim,
        # Only the MLP half of this block is used; it has one norm.
        mlp=block(head, attn=attn, ln1="layernorm", ln2="layernorm"),
    )
