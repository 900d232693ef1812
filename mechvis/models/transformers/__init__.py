"""Models of Hugging Face transformers: which map fits a model, and how a folder or hub id is read.

One file per architecture: each fills `mechvis.models.parts` with calls into the user's modules, in about 40 lines.
Masked image modelling, segmentation and backbone classes have no map: load such a checkpoint as its base model.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mechvis.errors import BadData, MechvisWarning, UnsupportedModel
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


def read(path: Any, *, image_size: Any = None) -> tuple[nn.Module, Any, Any]:
    """Model, image processor and tokenizer (None where missing) of a local folder or hub id.

    Weights are read as safetensors only; remote code is never run. `image_size` needs nothing here: these models
    interpolate their positions in every forward.

    Raises:
        BadData: not a model folder, or the hub cannot be reached.
        UnsupportedModel: an architecture that transformers does not have.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadData(f"hf:{path} cannot be read: {_first_line(error)}") from error
    architecture = (config.architectures or [None])[0]
    cls = getattr(transformers, architecture or "", None)
    if cls is None:
        raise UnsupportedModel(
            f"{path}: config.json names the architecture {architecture!r}, which transformers "
            f"{transformers.__version__} does not have."
        )
    try:
        with _quiet() if Path(path).is_dir() else contextlib.nullcontext():
            model, found = cls.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except OSError as error:
        raise BadData(f"the weights of hf:{path} cannot be read: {_first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        warnings.warn(
            f"{path} lacks {len(missing)} of the weights of {architecture}, which are random now: "
            f"{', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}. What depends on them means nothing.",
            MechvisWarning,
            stacklevel=3,
        )
    return model.eval(), image_processor(path), partial(tokenizer, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bar of upstream's while weights are read from a folder, which takes no time to watch; a download shows its
    own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def image_processor(path: Any) -> Any | None:
    """The image processor saved with a model (PIL backend, which needs no torchvision), or None."""
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError, ImportError):
        return _without_torchvision(path)


def _without_torchvision(path: Any) -> Any | None:
    """A saved processor where transformers finds no class for it without torchvision: the PIL class of that name (its
    releases before 5.18 do not look for it), our own twin of DINOv3's, or None."""
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError):
        return None
    name = str(settings.get("image_processor_type") or settings.get("feature_extractor_type"))
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name == "DINOv3ViTImageProcessor":
        plain = settings.get("do_resize", True) and not settings.get("do_center_crop")
        return dinov3_images.FloatResize.of_settings(settings) if plain else None
    cls = getattr(transformers, name + "Pil", None)
    return None if cls is None else cls.from_pretrained(path)


def tokenizer(path: Any) -> Any | None:
    """The tokenizer saved with a model, or None."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return None
