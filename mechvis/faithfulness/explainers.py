"""A method and its question as plain functions of one thing: the model, the class, or the pixels.

Checks of robustness ask a method again under a change. They need to know nothing of methods: only a function from what
is changed to maps. These make such functions; any other explainer can be written as one by hand.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from mechvis.attribution.method import Method
    from mechvis.attribution.question import Question

MapsOf = Callable[..., Float[Tensor, "image patch"]]
"""From what is changed to maps."""


def by_model(method: "Method", ask: "Question") -> Callable[[Any], Float[Tensor, "image patch"]]:
    """Another model -> maps of the same images and classes."""
    from mechvis.attribution.attribute import maps_of

    return lambda model: maps_of(method, replace(ask, model=model))


def by_class(method: "Method", ask: "Question") -> Callable[[Int[Tensor, " image"]], Float[Tensor, "image patch"]]:
    """Other classes, one per image -> maps. A contrast that would be the class itself becomes the class explained
    before."""
    from mechvis.attribution.attribute import maps_of

    def maps(classes: Tensor) -> Tensor:
        target = ask.target
        contrast = target.contrast
        if contrast is not None:
            contrast = torch.where(contrast == classes, target.classes, contrast)
        return maps_of(method, replace(ask, target=replace(target, classes=classes, contrast=contrast, rule="given")))

    return maps


def by_pixels(method: "Method", ask: "Question") -> Callable[[Tensor], Float[Tensor, "image patch"]]:
    """Other pixels of the same images -> maps for the same classes."""
    from mechvis.attribution.attribute import maps_of

    return lambda pixels: maps_of(method, replace(ask, pixels=pixels))


def by_place(method: "Method", ask: "Question") -> Callable[[list[int]], Float[Tensor, "image patch"]]:
    """Which of the images, in which order -> their maps, computed together as one batch."""
    from mechvis.attribution.attribute import maps_of

    def maps(places: list[int]) -> Tensor:
        chosen = torch.tensor(places)
        part = replace(
            ask,
            pixels=ask.pixels[chosen.to(ask.pixels.device)],
            target=ask.target[chosen.to(ask.target.classes.device)],
            ids=ask.ids[chosen],
        )
        return maps_of(method, part)

    return maps
