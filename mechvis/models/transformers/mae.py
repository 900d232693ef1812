"""ViT-MAE: the encoder, which here sees every patch."""

import copy

import torch
from torch import Tensor, nn

from mechvis.models.parts import TowerParts
from mechvis.models.transformers.common import block_aliases, interpolated, pair, processor
from mechvis.models.transformers.vit import NATIVE, blocks_of

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def mae(model: nn.Module) -> TowerParts:
    """ViT-MAE's encoder: `ViTMAEModel`, or the one inside `ViTMAEForPreTraining` (its decoder takes no part).

    The model was trained with most patches hidden at random. Used for its representations it sees them all, in
    order: its embeddings run with `mask_ratio` 0 and with rising noise, by which they sort the patches. Both are
    given to a shallow copy that shares every module and weight, so the user's own `config.mask_ratio` stays as it
    is. There is no head: the output is the CLS token of `last_hidden_state`.
    """
    base = getattr(model, "vit", model)
    embeddings, config, blocks = base.embeddings, base.config, blocks_of(base)
    size, patch = pair(embeddings.image_size), pair(embeddings.patch_size)

    def in_order(pixels: Tensor) -> Tensor:
        n_patches = (pixels.shape[2] // patch[0]) * (pixels.shape[3] // patch[1])
        return torch.arange(n_patches, device=pixels.device, dtype=torch.float32).expand(len(pixels), -1)

    def embed(pixels: Tensor) -> Tensor:
        return unmasked(base).embeddings(pixels, noise=in_order(pixels), **interpolated(pixels, size))[0]

    def reference(pixels: Tensor) -> Tensor:
        output = unmasked(base)(pixels, noise=in_order(pixels), **interpolated(pixels, size))
        return output.last_hidden_state[:, 0]

    path = "" if base is model else "vit."
    return TowerParts(
        family="Hugging Face ViT-MAE",
        embed=embed,
        blocks=blocks,
        d_model=config.hidden_size,
        ln_final=base.layernorm,
        reads=(0,),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        image_size=size,
        sizes="asked",
        patch_size=patch,
        channels=config.num_channels,
        n_tokens=embeddings.position_embeddings.shape[1],
        reference=reference,
        preprocess=processor("ViTImageProcessorPil", **IMAGENET),
        aliases={
            **block_aliases(f"{path}layers", len(blocks), NATIVE),
            f"{path}embeddings": "hook_embed",
            f"{path}layernorm": "ln_final.hook_normalized",
        },
    )


def unmasked(base: nn.Module) -> nn.Module:
    """A shallow copy of an encoder, with the same modules and weights, whose embeddings keep every patch."""
    embeddings, twin = copy.copy(base.embeddings), copy.copy(base)
    embeddings.config = copy.copy(base.embeddings.config)
    embeddings.config.mask_ratio = 0.0
    twin._modules = {**base._modules, "embeddings": embeddings}
    return twin
