"""What a planted task consists of: images, a program over their variables, and places for it in a model."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechvis.axes import Labels, Mask, Pixels
from mechvis.errors import BadData
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.scenes import Scenes, Variables


@dataclass(frozen=True, kw_only=True)
class PlantedTask:
    """One task."""

    name: str
    """As in `load("colour-if-shape")`."""
    summary: str
    """One line."""
    classes: tuple[str, ...]
    """Name of each label."""
    registers: int
    """Register tokens of its models."""
    program: Callable[[Variables], Labels] = field(repr=False)
    """The high-level program: variables to label."""
    draw: Callable[[int, torch.Generator], Scenes] = field(repr=False)
    """Random factors of some images."""
    render: Callable[[Scenes], Pixels] = field(repr=False)
    """Factors to preprocessed pixels `[image 3 32 32]`."""
    mask: Callable[[Scenes], Mask] = field(repr=False)
    """Factors to the mask of the object (or objects)."""
    corruptions: dict[str, Callable[[Scenes, torch.Generator], Scenes]] = field(repr=False)
    """Name of a pair family that changes single variables -> how the corrupt half comes about."""
    changes: dict[str, tuple[str, ...]] = field(repr=False)
    """Name of such a family -> the variables that it changes, `label` among them where the answer can change."""
    placement: Callable[[int], Placement] = field(repr=False)
    """Seed to the places of the program."""
    linear: tuple[str, ...]
    """Variables that one attention head can gather from the patch embedding: what decoys of layer 0 carry."""
    nuisance: Callable[[Scenes], dict[str, tuple[Tensor, int]]] = field(repr=False)
    """Irrelevant properties that decoys carry: name -> value per image, number of values."""

    def scenes(self, n: int, *, seed: int) -> Scenes:
        """Random factors of `n` images.

        Raises:
            BadData: fewer than one image.
        """
        if n < 1:
            raise BadData(f"{self.name}: at least one image is needed, got n={n}.")
        return self.draw(n, torch.Generator().manual_seed(seed))

    def labels(self, scenes: Scenes) -> Labels:
        """What the program answers."""
        return self.program(scenes.variables)
