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
_DINOV2 = {**{name: value for name, value in _IMAGE.items() if name != "intermediate_size"}, "mlp_ratio": 2}
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


def _mae(**overrides: Any) -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEModel

    return ViTMAEModel(ViTMAEConfig(**{**_IMAGE, **overrides}))


def _mae_pretraining(**overrides: Any) -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    decoder = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    decoder = {f"decoder_{name}": value for name, value in decoder.items()}
    return ViTMAEForPreTraining(ViTMAEConfig(**{**_IMAGE, **decoder, **overrides}))


def _beit(**overrides: Any) -> nn.Module:
    """Position bias of each layer; LayerScale; read at CLS."""
    from transformers import BeitConfig, BeitForImageClassification

    settings = {"use_relative_position_bias": True, "use_mean_pooling": False, "num_labels": CLASSES}
    return BeitForImageClassification(BeitConfig(**{**_IMAGE, **settings, **overrides}))


def _beit_mean(**overrides: Any) -> nn.Module:
    """Position bias of each layer beside a shared one; mean pooling."""
    return _beit(**{"use_shared_relative_position_bias": True, "use_mean_pooling": True, **overrides})


def _beit_shared(**overrides: Any) -> nn.Module:
    """Shared position bias and absolute positions; no LayerScale, no head."""
    from transformers import BeitConfig, BeitModel

    settings = {
        "use_shared_relative_position_bias": True,
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": False,
        "layer_scale_init_value": 0.0,
    }
    return BeitModel(BeitConfig(**{**_IMAGE, **settings, **overrides}))


def _siglip(**overrides: Any) -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    model = SiglipModel(SiglipConfig(text_config={**_TEXT, **overrides}, vision_config={**_IMAGE, **overrides}))
    # As the published models start: a scale of ten.
    nn.init.constant_(model.logit_scale, 2.3)
    return model


def _siglip_vision(**overrides: Any) -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**{**_IMAGE, **overrides}))


def _siglip_headless(**overrides: Any) -> nn.Module:
    return _siglip_vision(vision_use_head=False, **overrides)


def _siglip_text(**overrides: Any) -> nn.Module:
    from transformers import SiglipTextConfig, SiglipTextModel

    return SiglipTextModel(SiglipTextConfig(**{**_TEXT, "projection_size": 8, **overrides}))


def _siglip_classifier(**overrides: Any) -> nn.Module:
    from transformers import SiglipConfig, SiglipForImageClassification

    n_classes = overrides.pop("num_labels", CLASSES)
    return SiglipForImageClassification(
        SiglipConfig(text_config=_TEXT, vision_config={**_IMAGE, **overrides}, num_labels=n_classes)
    )


def _dinov2(**overrides: Any) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**{**_DINOV2, **overrides}))


def _dinov2_swiglu(**overrides: Any) -> nn.Module:
    return _dinov2(use_swiglu_ffn=True, **overrides)


def _dinov2_classifier(**overrides: Any) -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    return Dinov2ForImageClassification(Dinov2Config(**{**_DINOV2, "num_labels": CLASSES, **overrides}))


def _dinov2_registers(**overrides: Any) -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**{**_DINOV2, "num_register_tokens": 2, **overrides}))


def _dinov2_registers_classifier(**overrides: Any) -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    settings = {**_DINOV2, "num_register_tokens": 2, "num_labels": CLASSES}
    return Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**{**settings, **overrides}))


def _dinov3(**overrides: Any) -> nn.Module:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(DINOv3ViTConfig(**{**_IMAGE, "num_register_tokens": 2, **overrides}))


def _dinov3_gated(**overrides: Any) -> nn.Module:
    return _dinov3(**{"use_gated_mlp": True, "hidden_act": "silu", **overrides})


_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vit": _vit,
    "vit-base": _vit_base,
    "deit": _deit,
    "deit-distilled": _deit_distilled,
    "clip": _clip,
    "clip-vision": _clip_vision,
    "clip-classifier": _clip_classifier,
    "clip-text": _clip_text,
    "mae": _mae,
    "mae-pretraining": _mae_pretraining,
    "beit": _beit,
    "beit-mean": _beit_mean,
    "beit-shared": _beit_shared,
    "siglip": _siglip,
    "siglip-vision": _siglip_vision,
    "siglip-headless": _siglip_headless,
    "siglip-text": _siglip_text,
    "siglip-classifier": _siglip_classifier,
    "dinov2": _dinov2,
    "dinov2-swiglu": _dinov2_swiglu,
    "dinov2-classifier": _dinov2_classifier,
    "dinov2-registers": _dinov2_registers,
    "dinov2-registers-classifier": _dinov2_registers_classifier,
    "dinov3": _dinov3,
    "dinov3-gated": _dinov3_gated,
}


def tiny_families() -> tuple[str, ...]:
    """Names that :func:`tiny` takes."""
    return tuple(_FAMILIES)


def tiny(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "sdpa", **overrides: Any
) -> nn.Module:
    """A bare, random, tiny model of a family, in eval mode: 3 layers x 4 heads x 4, 12 x 12 pixels in 3 x 3 patches.

    Args:
        family: one of :func:`tiny_families`. `vit-base` is a `ViTModel` with its pooler; `clip` and `siglip` have both
            towers.
        seed: fixes every weight; the global random state is left alone.
        dtype: type of the weights.
        attention: `sdpa` or `eager`.
        overrides: entries of the model's config (for `clip` and `siglip`, of both towers' configs).

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
    """Random weights of the usual size, random biases, random gains around one, LayerScale around a half: in place,
    reproducible."""
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
            elif "lambda" in name:  # LayerScale
                value = 0.5 + 0.1 * noise
            elif ("embedding" in name and "projection" not in name) or "token" in name:
                value = 0.5 * noise
            else:
                value = noise / parameter[0].numel() ** 0.5
            parameter.copy_(value)


def tiny_input(family: str, *, n: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random batch that a tiny model (for `clip` and `siglip`: its vision tower) takes: pixels, or token ids for
    `clip-text` and `siglip-text`."""
    generator = torch.Generator().manual_seed(seed)
    if not family.endswith("-text"):
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
