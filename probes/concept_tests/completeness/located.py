"""Representations per location together with the model behind them: what a completeness test is made on.

`tail(z, images)` gives the logits that the model would answer if its locations read z; `images` are the positions of
the rows in this set, for tails that keep something of each image (the class token). It must be differentiable in z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch, SplitOverlap, unknown

Tail = Callable[[Float[Tensor, "image location d"], Int[Tensor, " image"]], Float[Tensor, "image class"]]
AGAINST = ("model", "labels")


@dataclass(frozen=True, kw_only=True, eq=False)
class Located:
    """Images as locations, with what the model makes of them; made by :func:`located` or `vit_located`."""

    z: Float[Tensor, "image location d"] = field(repr=False)
    """Representations."""
    tail: Tail = field(repr=False)
    """From representations to logits."""
    answers: Int[Tensor, " image"] = field(repr=False)
    """What the untouched model answers."""
    labels: Int[Tensor, " image"] | None = field(default=None, repr=False)
    """What is right, where it is known."""
    ids: tuple[str, ...] = field(default=(), repr=False)
    """Names of the images, to refuse those that were used already."""
    about: dict[str, Any] = field(default_factory=dict)
    """Where the representations come from: site, what the class token carries, model, images."""

    def __len__(self) -> int:
        return len(self.z)

    def wanted(self, against: str) -> Int[Tensor, " image"]:
        """What an answer is compared with: the model's own answers, or the labels.

        Raises:
            BadData: there are no labels.
            UnknownName: neither of the two.
        """
        if against not in AGAINST:
            raise unknown("thing to compare answers with", against, AGAINST)
        if against == "labels" and self.labels is None:
            raise BadData("these images have no labels: pass labels=, or compare with the model's answers.")
        return self.answers if against == "model" else self.labels

    @torch.no_grad()
    def answered(self, z: Float[Tensor, "image location d"], batch: int = 256) -> Int[Tensor, " image"]:
        """The model's answers if the locations read other representations."""
        rows = torch.arange(len(self))
        return torch.cat([self.tail(z[i : i + batch], rows[i : i + batch]).argmax(1) for i in range(0, len(z), batch)])


def located(
    z: Float[Tensor, "image location d"],
    tail: Callable[[Tensor], Tensor],
    *,
    labels: Int[Tensor, " image"] | None = None,
    ids: Sequence[str] = (),
) -> Located:
    """Representations of your own with the function behind them.

    Args:
        z: `[image location d]`, floating point.
        tail: representations to logits `[image class]`, frozen and differentiable.
        labels: right classes.
        ids: names of the images.

    Raises:
        ShapeMismatch: not `[image location d]`, or as many labels or ids as there are no images.
        NotFinite: NaN or Inf.

    Example:
        >>> from mechvis.testing.concept_worlds import concept_bag
        >>> bag = concept_bag()
        >>> len(located(bag.images(5), bag.tail))
        5
    """
    z = checked(z)
    with torch.no_grad():
        logits = tail(z)
    if logits.ndim != 2 or len(logits) != len(z):
        raise ShapeMismatch(f"the tail gives logits [image class], got {list(logits.shape)} for {len(z)} images.")
    for what, given in (("labels", labels), ("ids", ids or None)):
        if given is not None and len(given) != len(z):
            raise ShapeMismatch(f"{len(z)} images but {len(given)} {what}.")
    return Located(
        z=z,
        tail=lambda some, _images: tail(some),
        answers=logits.argmax(1),
        labels=None if labels is None else torch.as_tensor(labels).long(),
        ids=tuple(ids),
    )


def checked(z: Tensor) -> Tensor:
    """Representations that can be used, or an error that says why not."""
    z = torch.as_tensor(z)
    if z.ndim != 3 or not len(z) or not z.is_floating_point():
        raise ShapeMismatch(f"representations are floating point [image location d], got {z.dtype} {list(z.shape)}.")
    if not torch.isfinite(z).all():
        raise NotFinite(f"image {int((~torch.isfinite(z)).flatten(1).any(1).nonzero()[0])} holds NaN or Inf.")
    return z


def refuse_shared(train: Located, test: Located) -> None:
    """Refuse test images that the decoder was trained on.

    Raises:
        SplitOverlap: images in both sets.
    """
    shared = set(train.ids) & set(test.ids)
    same = train.z is test.z or (train.z.shape == test.z.shape and torch.equal(train.z, test.z))
    if shared or same:
        n = len(shared) or len(test)
        raise SplitOverlap(
            f"{n} of the test images were used to train the decoder: its accuracy there would say nothing. Pass other "
            "images as test=."
        )
