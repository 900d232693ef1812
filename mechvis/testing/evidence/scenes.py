"""Images of a planted variant with the truth about them, and ways to draw them again with one thing changed.

The truth is per image and *class*: `truth[i, c]` are the patches that the score of class `c` depends on by construction
of the generator; `decoys` are patches of marks that are as conspicuous and decide nothing (about that class). A class
that has no evidence in an image has an empty mask, and measures leave it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.testing.evidence import drawing

if TYPE_CHECKING:
    from mechvis.testing.evidence.task import Variant

_SPARE = 16
"""Uniform numbers per image beside those that place marks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """Images of one variant."""

    variant: "Variant"
    """Whose images these are."""
    kinds: Int[Tensor, "image slot"]
    """Which mark each slot shows; -1: none."""
    cells: Int[Tensor, "image slot"]
    """Where."""
    ground: Float[Tensor, "image 3 height width"]
    """What is behind the marks."""

    def __post_init__(self):
        if self.kinds.shape != self.cells.shape or len(self.kinds) != len(self.ground):
            raise ShapeMismatch(
                f"kinds {list(self.kinds.shape)}, cells {list(self.cells.shape)} and ground {list(self.ground.shape)} "
                "are not about the same images and slots."
            )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> "Scenes":
        """Some of the images."""
        return replace(self, kinds=self.kinds[index], cells=self.cells[index], ground=self.ground[index])

    @property
    def pixels(self) -> Float[Tensor, "image 3 height width"]:
        """Preprocessed images."""
        return drawing.paint(self.ground, self.variant.marks(), self.kinds, self.cells)

    @property
    def labels(self) -> Int[Tensor, " image"]:
        """The class that the evidence decides."""
        return self.variant.labels(self)

    @property
    def truth(self) -> Bool[Tensor, "image class patch"]:
        """Patches that the score of each class depends on; empty where a class has no evidence."""
        return self.variant.truth(self)

    @property
    def decoys(self) -> Bool[Tensor, "image class patch"]:
        """Patches of conspicuous marks that do not decide about that class."""
        return self.variant.decoys(self)

    def with_kind(self, slot: int, kinds: Int[Tensor, " image"] | int) -> "Scenes":
        """The same images with other marks in one slot; -1 removes it."""
        changed = self.kinds.clone()
        changed[:, slot] = kinds
        return replace(self, kinds=changed)

    def moved(self, slot: int, cells: Int[Tensor, " image"]) -> "Scenes":
        """The same images with the mark of one slot elsewhere."""
        changed = self.cells.clone()
        changed[:, slot] = cells
        return replace(self, cells=changed)

    def free_cell(self) -> Int[Tensor, " image"]:
        """A cell of each image that no slot uses: the first one after the last slot's."""
        taken = torch.zeros(len(self), drawing.N_CELLS, dtype=torch.bool).scatter_(1, self.cells, True)
        after = (self.cells[:, -1:] + 1 + torch.arange(drawing.N_CELLS)) % drawing.N_CELLS
        return after.gather(1, (~taken.gather(1, after)).int().argmax(1, keepdim=True))[:, 0]

    def covered(self, slot: int) -> Bool[Tensor, "image patch"]:
        """Patches under the mark of a slot."""
        return drawing.patches_of(self.cells[:, slot], self.kinds[:, slot] >= 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Random numbers from which a variant makes scenes; the first images of a longer draw are the same."""

    order: Int[Tensor, "image cell"]
    """Cells in random order."""
    numbers: Float[Tensor, "image number"]
    """Uniform numbers, 16 an image."""
    ground: Float[Tensor, "image 3 height width"]
    """Noise."""

    def one_of(self, count: int, number: int) -> Int[Tensor, " image"]:
        """A whole number below `count` per image, from the uniform number of that place."""
        return (self.numbers[:, number] * count).long().clamp(max=count - 1)


def drawn(n: int, seed: int) -> Drawn:
    """Draw the numbers of `n` images.

    Raises:
        OutOfRange: no image.
    """
    if n < 1:
        raise OutOfRange(f"n={n}: draw at least one image.")
    places, noise = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    uniform = torch.from_numpy(places.random((n, drawing.N_CELLS + _SPARE)))
    ground = torch.from_numpy(noise.standard_normal((n, 3, drawing.SIZE, drawing.SIZE), dtype=np.float32))
    return Drawn(
        order=uniform[:, : drawing.N_CELLS].argsort(1),
        numbers=uniform[:, drawing.N_CELLS :],
        ground=drawing.NOISE * ground,
    )
