"""The same shape stands in two places, and either alone is enough.

It punishes methods that remove one thing at a time: without the one, the other still decides, so each seems to matter
little, and a method that stops at the first sufficient piece of evidence finds only half of it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.scenes import Drawn, Scenes
from mechvis.testing.evidence.task import Check, Variant, follows, others, per_class, same_answer, unsure
from mechvis.testing.evidence.variants.object import ENERGY, SHAPES

_FIRST, _SECOND, _DECOY = 0, 1, 2
_ALONE, _EMPTY = 0.25, 0.1
"""Shares of training images without the first shape, without the second, and without both."""


@dataclass(frozen=True, kw_only=True)
class Redundant(Variant):
    """Two equal shapes, one distractor."""

    NAME = "redundant"
    CLASSES = SHAPES
    LESSON = "removing one of two equal pieces of evidence shows nothing"

    def marks(self) -> Float[Tensor, "kind 3 8 8"]:
        shapes = [drawing.bitmap(shape, "white", ENERGY) for shape in SHAPES]
        return torch.stack([*shapes, drawing.bitmap("square", "blue", ENERGY)])

    def scenes(self, numbers: Drawn, *, training: bool) -> Scenes:
        shape = numbers.one_of(len(SHAPES), 0)
        first, second = shape, shape
        if training:
            which = numbers.numbers[:, 1]
            first = torch.where((which < _ALONE) | (which >= 1 - _EMPTY), drawing.NONE, first)
            second = torch.where((which >= _ALONE) & (which < 2 * _ALONE), drawing.NONE, second)
            second = torch.where(which >= 1 - _EMPTY, drawing.NONE, second)
        kinds = torch.stack([first, second, torch.full_like(shape, len(SHAPES))], 1)
        return Scenes(variant=self, kinds=kinds, cells=numbers.order[:, :3], ground=numbers.ground)

    def labels(self, scenes: Scenes) -> Int[Tensor, " image"]:
        return scenes.kinds[:, :2].max(1).values.clamp(min=0)

    def truth(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_FIRST) | scenes.covered(_SECOND), len(SHAPES))

    def decoys(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_DECOY), len(SHAPES))

    def checks(self) -> list[Check]:
        return [
            Check(
                name="two other shapes: the answer is theirs",
                changed=lambda seen: seen.with_kind(_FIRST, others(seen.labels, len(SHAPES))).with_kind(
                    _SECOND, others(seen.labels, len(SHAPES))
                ),
                holds=follows,
            ),
            Check(
                name="no first shape: the answer stays",
                changed=lambda seen: seen.with_kind(_FIRST, drawing.NONE),
                holds=same_answer,
            ),
            Check(
                name="no second shape: the answer stays",
                changed=lambda seen: seen.with_kind(_SECOND, drawing.NONE),
                holds=same_answer,
            ),
            Check(
                name="neither shape: no class is likely",
                changed=lambda seen: seen.with_kind(_FIRST, drawing.NONE).with_kind(_SECOND, drawing.NONE),
                holds=unsure,
                at_least=0.95,
            ),
            Check(
                name="no distractor: the answer stays",
                changed=lambda seen: seen.with_kind(_DECOY, drawing.NONE),
                holds=same_answer,
            ),
        ]
