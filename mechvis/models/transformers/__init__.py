"""Models of Hugging Face transformers: which map fits a model, and how a folder or hub id is read.

One file per architecture: each fills `mechvis.models.parts` with calls into the user's modules, in about 40 lines.
Masked image modelling, segmentation and backbone classes have no map: load such a checkpoint as its base model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from mechvis.errors import UnsupportedModel
from mechvis.models.parts import TowerParts, TwoTowers
from mechvis.models.transformers import beit, clip, dino, dinov3_images, mae, siglip, vit
from mechvis.models.transformers.common import linear_weight

MAPS: dict[str, Callable[[nn.Module], TowerParts]] = {
    "ViTModel": vit.vit,
    "ViTForImageClassification": vit.vit,
    "DeiTModel": vit.vit,
    "DeiTForImageClassification": vit.vit,
    "DeiTForImageClassificationWithTeacher": vit.vit,
    "CLIPVisionModel": clip.vision,
    "CLIPVisionModelWithProjection": clip.vision,
    "CLIPForImageClassification": clip.classifier,
    "CLIPTextModel": clip.text,
    "CLIPTextModelWithProjection": clip.text,
    "ViTMAEModel": mae.mae,
    "ViTMAEForPreTraining": mae.mae,
    "BeitModel": beit.beit,
    "BeitForImageClassification": beit.beit,
    "SiglipVisionModel": siglip.vision,
    "SiglipForImageClassification": siglip.vision,
    "SiglipTextModel": siglip.text,
    "Siglip2Model": siglip.variable_patches,
    "Siglip2VisionModel": siglip.variable_patches,
    "Siglip2ForImageClassification": siglip.variable_patches,
    "Siglip2TextModel": siglip.text,
    "Dinov2Model": dino.dinov2,
    "Dinov2ForImageClassification": dino.dinov2,
    "Dinov2WithRegistersModel": dino.dinov2,
    "Dinov2WithRegistersForImageClassification": dino.dinov2,
    "DINOv3ViTModel": dino.dinov3,
}
"""Class of transformers -> the map of its towers."""

PAIRS: dict[str, Callable[[nn.Module], TwoTowers]] = {
    "CLIPModel": clip.two_towers,
    "SiglipModel": siglip.two_towers,
}
"""Class of transformers -> its two towers."""


def _by_class(model: nn.Module, known: dict[str, Any]) -> Any | None:
    """What is known of a model's class, or of the nearest class of transformers that it inherits from."""
    for cls in type(model).__mro__:
        if cls.__name__ in known and cls.__module__.startswith("transformers."):
            return known[cls.__name__]
    return None


def family_of(model: nn.Module) -> Callable[[nn.Module], TowerParts] | None:
    """The map for a Hugging Face model, by its class (sub-classes included); None if it is not one of these."""
    return _by_class(model, MAPS)


def two_towers(model: nn.Module) -> TwoTowers | None:
    """The towers of a model of two; None if it is not one of these."""
    found = _by_class(model, PAIRS)
    return None if found is None else found(model)


def read(path: Any) -> tuple[nn.Module, Any, Any]:
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
    except (OSError, ValueError, ImportError):
        return _without_torchvision(path)


def _without_torchvision(path: Any) -> Any | None:
    """Our own twin of a saved processor that transformers offers for torchvision only: DINOv3's; else None."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError):
        return None
    known = str(settings.get("image_processor_type")).startswith("DINOv3ViTImageProcessor")
    if known and settings.get("do_resize", True) and not settings.get("do_center_crop"):
        return dinov3_images.FloatResize.of_settings(settings)
    return None


def tokenizer(path: Any) -> Any | None:
    """The tokenizer saved with a model, or None."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return None
