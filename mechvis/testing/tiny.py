"""Very small random models of every supported family, with nothing left at a value that hides mistakes.

A fresh Hugging Face model has zero biases and unit LayerNorm gains, so a map that forgets a bias or a gain passes
every comparison. Here every bias is non-zero and every gain differs from one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import unknown

IMAGE, PATCH, CLASSES, WORDS = 12, 4, 8, 50

_TOWER = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 32}
_IMAGE = {**_TOWER, "image_size": IMAGE, "patch_size": PATCH}
_TEXT = {
    **_TOWER,
    "vocab_size": WORDS,
    "max_position_embeddings": 12,
    "bos_token_id": WORDS - 2,
    "eos_token_id": WORDS - 1,
    "pad_token_id": 1,
}


def _vit(**overrides: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**{**_IMAGE, "num_labels": CLASSES, **overrides}))


def _vit_base(**overrides: Any) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**{**_IMAGE, **overrides}))


def _deit(**overrides: Any) -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassification

    return DeiTForImageClassification(DeiTConfig(**{**_IMAGE, "num_labels": CLASSES, **overrides}))


def _deit_distilled(**overrides: Any) -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return DeiTForImageClassificationWithTeacher(DeiTConfig(**{**_IMAGE, "num_labels": CLASSES, **overrides}))


def _clip(**overrides: Any) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    shared = {"projection_dim": 8, **overrides}
    return CLIPModel(
        CLIPConfig(
            text_config={**_TEXT, **shared}, vision_config={**_IMAGE, **shared}, projection_dim=shared["projection_dim"]
        )
    )


def _clip_vision(**overrides: Any) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{**_IMAGE, "projection_dim": 8, **overrides}))


def _clip_classifier(**overrides: Any) -> nn.Module:
    from transformers import CLIPConfig, CLIPForImageClassification

    return CLIPForImageClassification(
        CLIPConfig(text_config=_TEXT, vision_config={**_IMAGE, **overrides}, num_labels=overrides.get("num_labels", 5))
    )


def _clip_text(**overrides: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**{**_TEXT, "projection_dim": 8, **overrides}))


_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vit": _vit,
    "vit-base": _vit_base,
    "deit": _deit,
    "deit-distilled": _deit_distilled,
    "clip": _clip,
    "clip-vision": _clip_vision,
    "clip-classifier": _clip_classifier,
    "clip-text": _clip_text,
}


def tiny_families() -> tuple[str, ...]:
    """Names that :func:`tiny` takes."""
    return tuple(_FAMILIES)


def tiny(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "sdpa", **overrides: Any
) -> nn.Module:
    """A bare, random, tiny model of a family, in eval mode: 3 layers x 4 heads x 4, 12 x 12 pixels in 3 x 3 patches.

    Args:
        family: one of :func:`tiny_families`. `vit-base` is a `ViTModel` with its pooler; `clip` has both towers.
        seed: fixes every weight; the global random state is left alone.
        dtype: type of the weights.
        attention: `sdpa` or `eager`.
        overrides: entries of the model's config (for `clip`, of both towers' configs).

    Raises:
        UnknownName: no such family.

    Example:
        >>> tiny("vit").config.num_attention_heads
        4
    """
    if family not in _FAMILIES:
        raise unknown("tiny family", family, _FAMILIES)
    with torch.random.fork_rng(devices=[]):
        model = _FAMILIES[family](**overrides)
    model.set_attn_implementation(attention)
    randomise(model, seed)
    return model.to(dtype).eval()


def randomise(model: nn.Module, seed: int) -> None:
    """Random weights of the usual size, random biases, random gains around one: in place, reproducible."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                continue
            if id(parameter) in norms:
                value = 1 + 0.3 * noise
            elif name.endswith("bias"):
                value = 0.3 * noise
            elif ("embedding" in name and "projection" not in name) or "token" in name:
                value = 0.5 * noise
            else:
                value = noise / parameter[0].numel() ** 0.5
            parameter.copy_(value)


def tiny_input(family: str, *, n: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random batch that a tiny model (for `clip`: its vision tower) takes: pixels, or token ids for `clip-text`."""
    generator = torch.Generator().manual_seed(seed)
    if family != "clip-text":
        return torch.randn(n, 3, IMAGE, IMAGE, generator=generator).to(dtype)
    ids = torch.randint(2, WORDS - 2, (n, 10), generator=generator)
    for row in range(n):
        ids[row, 4 + row % 5] = WORDS - 1
        ids[row, 5 + row % 5 :] = 1
    return ids


def tiny_preprocess(size: int = IMAGE) -> Preprocess:
    """An image processor that fits the tiny models (mean and standard deviation one half)."""
    from transformers import ViTImageProcessorPil

    return Preprocess.of_processor(ViTImageProcessorPil(size={"height": size, "width": size}))


def rand_vit(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """F1: a random ViT for exactness identities (sum of parts = whole) and finite differences.

    L=3, H=4, d=16, d_head=4, 10 tokens, 32 neurons, 8 classes; random LayerNorm gains and biases, all biases non-zero.
    """
    return tiny("vit", seed=seed, dtype=dtype)
