"""A disc and a ring, each in one of three colours: the class says whether the colours are the same.

Neither object tells anything alone; two readers have to work together. It punishes methods that find one object, and
methods that add up what each patch does alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.testing.evidence import drawing
from mechvis.testing.evidence.scenes import Drawn, Scenes
from mechvis.testing.evidence.task import Check, Variant, follows, per_class, same_answer
from mechvis.testing.evidence.variants.object import ENERGY

COLOURS = ("red", "green", "blue")
_DISC, _RING, _DECOY = 0, 1, 2
_EMPTY = 0.08


@dataclass(frozen=True, kw_only=True)
class TwoHeads(Variant):
    """Two objects that must be compared, and a third one in a colour of its own choice."""

    NAME = "two_heads"
    CLASSES = ("different", "same")
    LESSON = "two pieces of evidence that say something only together"
    READING = "magnitude"
    STEPS = 300

    def marks(self) -> Float[Tensor, "kind 3 8 8"]:
        return torch.stack(
            [drawing.bitmap(shape, colour, ENERGY) for shape in ("disc", "ring", "bars") for colour in COLOURS]
        )

    def scenes(self, numbers: Drawn, *, training: bool) -> Scenes:
        count = len(COLOURS)
        disc = numbers.one_of(count, 0)
        other = (disc + 1 + numbers.one_of(count - 1, 1)) % count
        ring = torch.where(numbers.numbers[:, 2] < 0.5, disc, other)
        kinds = torch.stack([disc, count + ring, 2 * count + numbers.one_of(count, 3)], 1)
        if training:
            for slot in (_DISC, _RING):
                kinds[numbers.numbers[:, 4 + slot] < _EMPTY, slot] = drawing.NONE
        return Scenes(variant=self, kinds=kinds, cells=numbers.order[:, :3], ground=numbers.ground)

    def labels(self, scenes: Scenes) -> Int[Tensor, " image"]:
        return (scenes.kinds[:, _DISC] == scenes.kinds[:, _RING] - len(COLOURS)).long()

    def truth(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        both = (scenes.kinds[:, :2] >= 0).all(1)[:, None]  # one alone decides nothing
        return per_class((scenes.covered(_DISC) | scenes.covered(_RING)) & both, 2)

    def decoys(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        return per_class(scenes.covered(_DECOY), 2)

    def checks(self) -> list[Check]:
        count = len(COLOURS)

        def recoloured(seen: Scenes, slot: int) -> Scenes:
            """To the other object's colour where they differ, to another where they do not."""
            partner = seen.kinds[:, 1 - slot] - count * (1 - slot)
            colour = torch.where(seen.labels == 1, (partner + 1) % count, partner)
            return seen.with_kind(slot, colour + count * slot)

        def both(seen: Scenes) -> Scenes:
            """Both colours one further: what was same stays same."""
            return seen.with_kind(_DISC, (seen.kinds[:, 0] + 1) % count).with_kind(
                _RING, (seen.kinds[:, 1] - count + 1) % count + count
            )

        return [
            Check(
                name="disc recoloured: the answer turns", changed=lambda seen: recoloured(seen, _DISC), holds=follows
            ),
            Check(
                name="ring recoloured: the answer turns", changed=lambda seen: recoloured(seen, _RING), holds=follows
            ),
            Check(name="both recoloured alike: the answer stays", changed=both, holds=same_answer),
            Check(
                name="distractor recoloured: the answer stays",
                changed=lambda seen: seen.with_kind(
                    _DECOY, 2 * count + (seen.kinds[:, _DECOY] - 2 * count + 1) % count
                ),
                holds=same_answer,
            ),
            Check(
                name="no distractor: the answer stays",
                changed=lambda seen: seen.with_kind(_DECOY, drawing.NONE),
                holds=same_answer,
            ),
        ]
