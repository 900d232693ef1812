"""Models of timm: which map fits a model, and how a published name or a file of weights is read.

One file per class of timm: each fills `mechvis.models.parts` with calls into the user's modules.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mechvis.errors import BadData, MissingPackage, unknown
from mechvis.models.parts import TowerParts
from mechvis.models.timm import beit, eva, vit
from mechvis.models.timm.common import preprocess
from mechvis.models.transformers.common import pair

MAPS: dict[str, Callable[[nn.Module], TowerParts]] = {
    "VisionTransformer": vit.vit,
    "VisionTransformerDistilled": vit.distilled,
    "Eva": eva.eva,
    "Beit": beit.beit,
}
"""Class of timm -> the map of its tower."""


def family_of(model: nn.Module) -> Callable[[nn.Module], TowerParts] | None:
    """The map for a timm model, by its class (sub-classes included); None if it is not one of these."""
    for cls in type(model).__mro__:
        if cls.__name__ in MAPS and cls.__module__.startswith("timm."):
            return MAPS[cls.__name__]
    return None


def two_towers(model: nn.Module) -> None:
    """timm has no models of two towers."""


def read(name: str, *, image_size: int | tuple[int, int] | None = None) -> tuple[nn.Module, Any, None]:
    """Model and preprocessing of a published name, which timm downloads or has in its cache.

    Args:
        name: as `timm.create_model` takes it: `vit_base_patch16_224.augreg_in21k`, `hf-hub:<id>`, `local-dir:<folder>`.
            `<name>@<file>` takes the weights from a safetensors file instead. Where the hub has no safetensors, timm
            reads pickled weights with torch's restricted reader (`weights_only`).
        image_size: make the model for images of this size: timm resamples its position embedding.

    Raises:
        MissingPackage: timm is not installed.
        UnknownName: timm has no such model.
        BadData: the weights cannot be had, or do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingPackage("models named timm:<name> need timm: pip install 'mechvis[timm]'.") from error
    architecture, at, file = name.partition("@")
    if ":" not in architecture and not timm.is_model(architecture.partition(".")[0]):
        raise unknown("timm model", architecture, timm.list_models(pretrained=True))
    try:
        more = {} if image_size is None else {"img_size": image_size}
        model = timm.create_model(architecture, pretrained=True, **more, **(_from_file(file) if at else {}))
    except (OSError, RuntimeError) as error:
        raise BadData(
            f"timm could not make {name!r} with its weights: {type(error).__name__}: {str(error).strip()[:500]} "
            "Weights come from the hub or timm's cache; offline give a file: timm:<name>@<file>.safetensors."
        ) from error
    make = preprocess(model, source=f"timm:{name}")
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return model.eval(), None if make is None or size is None else make(pair(size)), None


def _from_file(file: str) -> dict[str, Any]:
    """Arguments of `timm.create_model` for weights in a file; the number of classes is that of the file's head."""
    from safetensors import safe_open

    path = Path(file)
    if path.suffix != ".safetensors":
        raise BadData(f"{file!r}: weights are read as safetensors only; pickled files can run code.")
    if not path.is_file():
        raise BadData(f"no file {file!r} to read weights from.")
    with safe_open(path, framework="pt") as weights:
        head = "head.weight" in weights.keys()  # noqa: SIM118  not a mapping
        classes = weights.get_slice("head.weight").get_shape()[0] if head else 0
    return {"num_classes": classes, "pretrained_cfg_overlay": {"file": str(path), "num_classes": classes}}
