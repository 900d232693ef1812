"""The models that come with the package: real, trained, small, and usable without a download.

Each is an ordinary Hugging Face folder inside the package (`config.json`, `model.safetensors`,
`preprocessor_config.json`, a model card), so plain `transformers` opens it too. How they were trained is in
`mechvis.models.training`; this module only knows where they are, and imports nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path

from mechvis.errors import unknown

_WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """One bundled model."""

    name: str
    """What `mechvis.load` is given."""
    architecture: str
    """The `transformers` class that opens the folder."""
    summary: str
    """One line for lists."""


_MODELS = {
    model.name: model
    for model in (
        BundledModel(
            name="scenes-vit",
            architecture="ViTForImageClassification",
            summary="4 layers of 4 heads, 64 x 64 pixels: names the shape, with a learned background shortcut",
        ),
        BundledModel(
            name="scenes-clip",
            architecture="CLIPModel",
            summary="image and text tower of the same size: names shape, colour and background zero-shot",
        ),
    )
}


def names() -> tuple[str, ...]:
    """Names of the bundled models.

    Example:
        >>> "scenes-vit" in names()
        True
    """
    return tuple(_MODELS)


def path(name: str) -> Path:
    """The folder of a bundled model.

    Raises:
        UnknownName: If there is no such model.

    Example:
        >>> path("scenes-clip").name
        'scenes-clip'
    """
    if name not in _MODELS:
        raise unknown("bundled model", name, names())
    return _WEIGHTS / name


def describe(name: str) -> BundledModel:
    """What a bundled model is.

    Raises:
        UnknownName: If there is no such model.

    Example:
        >>> describe("scenes-vit").architecture
        'ViTForImageClassification'
    """
    if name not in _MODELS:
        raise unknown("bundled model", name, names())
    return _MODELS[name]


def card(name: str) -> str:
    """The model card (Markdown) with the recipe and the measured figures.

    Raises:
        UnknownName: If there is no such model.

    Example:
        >>> card("scenes-vit").splitlines()[0]
        '# scenes-vit'
    """
    return (path(name) / "README.md").read_text(encoding="utf-8")
