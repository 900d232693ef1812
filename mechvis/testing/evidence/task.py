"""What a planted variant is: a generator whose truth is known, how it is trained, and what a certificate checks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.testing.evidence.scenes import Drawn, Scenes, drawn


@dataclass(frozen=True, kw_only=True)
class Check:
    """One causal check of a certificate: draw the images again with something changed, and look at the answers."""

    name: str
    """What is changed."""
    changed: Callable[[Scenes], Scenes]
    """Draws the images again."""
    holds: Callable[[Tensor, Tensor, Scenes, Scenes], Tensor]
    """(logits before, logits after, scenes before, scenes after) -> for which images the answer is as it should be."""
    at_least: float = 0.99
    """Share of images for which it must hold."""


@dataclass(frozen=True, kw_only=True)
class Variant(ABC):
    """A task with planted evidence."""

    NAME: ClassVar[str] = ""
    """Name in tables and folders."""
    CLASSES: ClassVar[tuple[str, ...]] = ()
    """Class names."""
    LESSON: ClassVar[str] = ""
    """What it punishes, one sentence."""
    READING: ClassVar[Literal["value", "magnitude"]] = "value"
    """How maps are scored: `value` where the truth is evidence *for* the class, `magnitude` where it only matters."""
    STEPS: ClassVar[int] = 250
    """Optimiser steps of the recipe."""

    @abstractmethod
    def marks(self) -> Float[Tensor, "kind 3 8 8"]:
        """What each kind of mark looks like."""

    @abstractmethod
    def scenes(self, numbers: Drawn, *, training: bool) -> Scenes:
        """Make images of random numbers; training images may lack evidence, test images have it."""

    @abstractmethod
    def labels(self, scenes: Scenes) -> Int[Tensor, " image"]:
        """The class that the evidence decides."""

    @abstractmethod
    def truth(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        """Patches that the score of each class depends on."""

    @abstractmethod
    def decoys(self, scenes: Scenes) -> Bool[Tensor, "image class patch"]:
        """Patches of marks that do not decide about that class."""

    @abstractmethod
    def checks(self) -> list[Check]:
        """Causal checks of the certificate."""

    def draw(self, n: int, seed: int = 0, *, training: bool = False) -> Scenes:
        """Images; the first ones of a longer draw are the same.

        Example:
            >>> variant("object").draw(4).truth.sum(2).max().item()        # doctest: +SKIP
            4
        """
        return self.scenes(drawn(n, seed), training=training)

    def loss(self, logits: Float[Tensor, "image class"], scenes: Scenes) -> Float[Tensor, ""]:
        """What training minimises: cross-entropy, with equal shares for images without evidence."""
        return F.cross_entropy(logits, self.goal(scenes))

    def goal(self, scenes: Scenes) -> Float[Tensor, "image class"]:
        """The distribution over classes that an image should get."""
        sure = F.one_hot(scenes.labels, len(self.CLASSES)).float()
        shown = scenes.truth.any(2).any(1)
        return torch.where(shown[:, None], sure, torch.full_like(sure, 1 / len(self.CLASSES)))

    def right(self, logits: Float[Tensor, "image class"], scenes: Scenes) -> Bool[Tensor, " image"]:
        """Whether the answer is right."""
        return logits.argmax(1) == scenes.labels

    def explained(self, scenes: Scenes) -> Int[Tensor, "image target"]:
        """Classes that are explained, one column a question: the one that the evidence decides."""
        return scenes.labels[:, None]


def same_answer(before: Tensor, after: Tensor, old: Scenes, new: Scenes) -> Tensor:
    """The largest logit is that of the same class."""
    return before.argmax(1) == after.argmax(1)


def follows(before: Tensor, after: Tensor, old: Scenes, new: Scenes) -> Tensor:
    """The answer is the changed image's own label."""
    return new.variant.right(after, new)


def unsure(before: Tensor, after: Tensor, old: Scenes, new: Scenes) -> Tensor:
    """No class has more than half of what lies between chance and certainty left."""
    chance = 1 / after.shape[1]
    return after.softmax(1).max(1).values < (1 + chance) / 2


def others(kinds: Int[Tensor, " image"], count: int) -> Int[Tensor, " image"]:
    """Another kind of the first `count`, never the same."""
    return (kinds + 1) % count


def per_class(mask: Bool[Tensor, "image patch"], classes: int) -> Bool[Tensor, "image class patch"]:
    """The same patches for every class."""
    return mask[:, None].expand(-1, classes, -1)
