"""Two shapes of different classes stand in one image; the model says for every class whether it is there.

It punishes maps that do not look at the target: for class a the patches of a are right and those of b are decoys, and
for class b the other way round.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.scenes import Drawn, Scenes
from mechvis.testing.evidence.task import Check, Variant, others
from mechvis.testing.evidence.variants.object import ENERGY, SHAPES

_DECOY = 2
_EMPTY = 0.15
"""Share of training images without each of the shapes."""


@dataclass(frozen=True, kw_only=True)
class ClassSpecific(Variant):
    """Two shapes, one distractor, one logit a class (presence)."""

    NAME = "class_specific"
    CLASSES = SHAPES
    LESSON = "a map that ignores the target is wrong for one of two classes"
    STEPS = 300

    def marks(self) -> Float[Tensor, "kind 3 8 8"]:
        shapes = [drawing.bitmap(shape, "white", ENERGY) for shape in SHAPES]
        return torch.stack([*shapes, drawing.bitmap("square", "blue", ENERGY)])

    def scenes(self, numbers: Drawn, *, training: bool) -> Scenes:
        count = len(SHAPES)
        first = numbers.one_of(count, 0)
        second = (first + 1 + numbers.one_of(count - 1, 1)) % count
        kinds = torch.stack([first, second, torch.full_like(first, count)], 1)
        if training:
            for slot in (0, 1):
                kinds[numbers.numbers[:, 2 + slot] < _EMPTY, slot] = drawing.NONE
        return Scenes(variant=self, kinds=kinds, cells=numbers.order[:, :3], ground=numbers.ground)

    def present(self, scenes: Scenes) -> Bool[Tensor, "image class"]:
        """Which classes are there."""
        return (scenes.kinds[:, :2, None] == torch.arange(len(SHAPES))).any(1)

    def labels(self, scenes: Scenes) -> Int[Tensor, " image"]:
        """The class of the first shape."""
        return scenes.kinds[:, 0].clamp(min=0)

    def truth(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        own = scenes.kinds[:, :2, None] == torch.arange(len(SHAPES))
        return (own[..., None] & torch.stack([scenes.covered(0), scenes.covered(1)], 1)[:, :, None]).any(1)

    def decoys(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        marks = (scenes.covered(0) | scenes.covered(1) | scenes.covered(_DECOY))[:, None]
        return marks & ~scenes.truth

    def loss(self, logits: Float[Tensor, "image class"], scenes: Scenes) -> Float[Tensor, ""]:
        return F.binary_cross_entropy_with_logits(logits, self.present(scenes).float())

    def right(self, logits: Float[Tensor, "image class"], scenes: Scenes) -> Bool[Tensor, " image"]:
        return ((logits > 0) == self.present(scenes)).all(1)

    def explained(self, scenes: Scenes) -> Int[Tensor, "image target"]:
        return scenes.kinds[:, :2]

    def checks(self) -> list[Check]:
        count = len(SHAPES)

        def exchanged(seen: Scenes) -> Scenes:
            new = others(seen.kinds[:, 0], count)
            return seen.with_kind(0, torch.where(new == seen.kinds[:, 1], others(new, count), new))

        def own_logit_only(before: Tensor, after: Tensor, old: Scenes, new: Scenes) -> Tensor:
            return self.right(after, new)

        def all_stay(before: Tensor, after: Tensor, old: Scenes, new: Scenes) -> Tensor:
            return ((before > 0) == (after > 0)).all(1)

        return [
            Check(
                name="first shape exchanged: its class is there, the old one is not",
                changed=exchanged,
                holds=own_logit_only,
            ),
            Check(
                name="no first shape: only its class is gone",
                changed=lambda seen: seen.with_kind(0, drawing.NONE),
                holds=own_logit_only,
            ),
            Check(
                name="no second shape: only its class is gone",
                changed=lambda seen: seen.with_kind(1, drawing.NONE),
                holds=own_logit_only,
            ),
            Check(
                name="no distractor: every answer stays",
                changed=lambda seen: seen.with_kind(_DECOY, drawing.NONE),
                holds=all_stay,
            ),
        ]
