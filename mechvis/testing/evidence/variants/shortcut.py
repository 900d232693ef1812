"""A coloured square in one of the corners goes with the class in 95 % of training images; the shape itself is faint.

The model takes the cue. It punishes explanations that show what a person would look at: the truth is the corner, as
measured by exchanging cue and shape, and the shape is a decoy. Accuracy is over images in which cue and shape agree.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.scenes import Drawn, Scenes
from mechvis.testing.evidence.task import Check, Variant, follows, others, per_class, same_answer, unsure
from mechvis.testing.evidence.variants.object import ENERGY, SHAPES

COLOURS = ("red", "green", "blue", "yellow")
FAINT = 0.06
"""Root mean square of a shape; the ground's is 0.12."""
AGREE = 0.95
"""Share of training images in which the cue's colour goes with the shape."""
_SHAPE, _CUE, _DECOY = 0, 1, 2
_EMPTY = 0.1
_CORNERS = (0, drawing.CELLS - 1, drawing.N_CELLS - drawing.CELLS, drawing.N_CELLS - 1)


@dataclass(frozen=True, kw_only=True)
class Shortcut(Variant):
    """A cue, a faint shape that the label is about, and a loud distractor."""

    NAME = "shortcut"
    CLASSES = SHAPES
    LESSON = "the model uses a cue that nobody meant"

    def marks(self) -> Float[Tensor, "kind 3 8 8"]:
        shapes = [drawing.bitmap(shape, "white", FAINT) for shape in SHAPES]
        cues = [drawing.bitmap("square", colour, ENERGY) for colour in COLOURS]
        return torch.stack([*shapes, *cues, drawing.bitmap("disc", "white", ENERGY)])

    def scenes(self, numbers: Drawn, *, training: bool) -> Scenes:
        count = len(SHAPES)
        shape = numbers.one_of(count, 0)
        colour = shape
        if training:
            colour = torch.where(numbers.numbers[:, 1] < AGREE, shape, numbers.one_of(count, 2))
        corner = torch.tensor(_CORNERS)[numbers.one_of(4, 3)]
        inner = numbers.order[~torch.isin(numbers.order, torch.tensor(_CORNERS))].unflatten(0, (len(shape), -1))
        kinds = torch.stack([shape, count + colour, torch.full_like(shape, 2 * count)], 1)
        if training:
            kinds[numbers.numbers[:, 4] < _EMPTY, :2] = drawing.NONE
        cells = torch.stack([inner[:, 0], corner, inner[:, 1]], 1)
        return Scenes(variant=self, kinds=kinds, cells=cells, ground=numbers.ground)

    def labels(self, scenes: Scenes) -> Int[Tensor, " image"]:
        return (scenes.kinds[:, _CUE] - len(SHAPES)).clamp(min=0)

    def goal(self, scenes: Scenes) -> Float[Tensor, "image class"]:
        # Training is about the shape, as in life; that the answer comes from the cue is what the certificate shows.
        shape = scenes.kinds[:, _SHAPE]
        sure = torch.nn.functional.one_hot(shape.clamp(min=0), len(SHAPES)).float()
        return torch.where((shape >= 0)[:, None], sure, torch.full_like(sure, 1 / len(SHAPES)))

    def truth(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_CUE), len(SHAPES))

    def decoys(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_SHAPE) | scenes.covered(_DECOY), len(SHAPES))

    def checks(self) -> list[Check]:
        count = len(SHAPES)
        return [
            Check(
                name="another cue: the answer is the cue's",
                changed=lambda seen: seen.with_kind(_CUE, count + others(seen.labels, count)),
                holds=follows,
            ),
            Check(
                name="another shape: the answer stays",
                changed=lambda seen: seen.with_kind(_SHAPE, others(seen.kinds[:, _SHAPE], count)),
                holds=same_answer,
            ),
            Check(
                name="no shape: the answer stays",
                changed=lambda seen: seen.with_kind(_SHAPE, drawing.NONE),
                holds=same_answer,
            ),
            Check(
                name="neither cue nor shape: no class is likely",
                changed=lambda seen: seen.with_kind(_CUE, drawing.NONE).with_kind(_SHAPE, drawing.NONE),
                holds=unsure,
                at_least=0.95,
            ),
            Check(
                name="no distractor: the answer stays",
                changed=lambda seen: seen.with_kind(_DECOY, drawing.NONE),
                holds=same_answer,
            ),
        ]
