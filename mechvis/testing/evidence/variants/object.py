"""A white shape decides the class; a blue square, equally loud, decides nothing.

It punishes methods that follow whatever is conspicuous. All four patches of a shape tell its class, so removing one
alone changes little: single-patch occlusion must look worse here than methods that remove patches together.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.scenes import Drawn, Scenes
from mechvis.testing.evidence.task import Check, Variant, follows, others, per_class, same_answer, unsure

SHAPES = ("ring", "plus", "cross", "bars")
ENERGY = 0.55
"""Root mean square of every mark over its cell."""
_SHAPE, _DECOY = 0, 1
_EMPTY = 0.1
"""Share of training images without a shape."""


@dataclass(frozen=True, kw_only=True)
class Object(Variant):
    """One shape, one distractor."""

    NAME = "object"
    CLASSES = SHAPES
    LESSON = "what is conspicuous is not what decides"

    def marks(self) -> Float[Tensor, "kind 3 8 8"]:
        shapes = [drawing.bitmap(shape, "white", ENERGY) for shape in SHAPES]
        return torch.stack([*shapes, drawing.bitmap("square", "blue", ENERGY)])

    def scenes(self, numbers: Drawn, *, training: bool) -> Scenes:
        shape = numbers.one_of(len(SHAPES), 0)
        if training:
            shape = torch.where(numbers.numbers[:, 1] < _EMPTY, drawing.NONE, shape)
        kinds = torch.stack([shape, torch.full_like(shape, len(SHAPES))], 1)
        return Scenes(variant=self, kinds=kinds, cells=numbers.order[:, :2], ground=numbers.ground)

    def labels(self, scenes: Scenes) -> Int[Tensor, " image"]:
        return scenes.kinds[:, _SHAPE].clamp(min=0)

    def truth(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_SHAPE), len(SHAPES))

    def decoys(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_DECOY), len(SHAPES))

    def checks(self) -> list[Check]:
        return [
            Check(
                name="another shape: the answer is that shape",
                changed=lambda seen: seen.with_kind(_SHAPE, others(seen.kinds[:, _SHAPE], len(SHAPES))),
                holds=follows,
            ),
            Check(
                name="shape moved: the answer stays",
                changed=lambda seen: seen.moved(_SHAPE, seen.free_cell()),
                holds=same_answer,
            ),
            Check(
                name="no shape: no class is likely",
                changed=lambda seen: seen.with_kind(_SHAPE, drawing.NONE),
                holds=unsure,
                at_least=0.95,
            ),
            Check(
                name="no distractor: the answer stays",
                changed=lambda seen: seen.with_kind(_DECOY, drawing.NONE),
                holds=same_answer,
            ),
            Check(
                name="distractor moved: the answer stays",
                changed=lambda seen: seen.moved(_DECOY, seen.free_cell()),
                holds=same_answer,
            ),
        ]
