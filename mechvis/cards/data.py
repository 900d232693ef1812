"""What an explanation is tried on: a model and images that chose nothing."""

from dataclasses import dataclass
from typing import Any

from mechvis.cards.parts import LEVELS
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class CardData:
    """A model, images to judge on, and what must not be judged on.

    Raises:
        SplitOverlap: images that chose something are among those that judge.
        BadData: no images.

    Example:
        >>> data = CardData(model=model, images=images)                   # doctest: +SKIP
        >>> attribution.card(data, level="smoke").report("card.html")     # doctest: +SKIP
    """

    model: Any
    """The wrapped model that is explained."""
    images: Any
    """An `ImageSet`, or pixels `[image channel height width]`: for the judging."""
    chosen_on: Any = None
    """Images that chose anything (a threshold, a layer, k, a ranking); must be disjoint from `images`."""
    reference: Any = None
    """Other images, for means and for what is put in the place of patches; None: a third of `images` is set aside."""
    extra: Any = None
    """What a kind of explanation needs besides: a `HookedCLIP` for text spans, labels of concepts, ..."""

    def __post_init__(self):
        if not len(self.images):
            raise BadData("a card needs images to judge on.")
        if self.chosen_on is not None and isinstance(self.images, ImageSet) and isinstance(self.chosen_on, ImageSet):
            refuse_overlap(self.images, self.chosen_on, what="images that chose may not judge")

    def at(self, level: str, *, reference: bool = True) -> "CardData":
        """The same with as many images as the level looks at.

        Args:
            level: `smoke`, `standard` or `full`.
            reference: set images aside as reference where none were given.

        Raises:
            UnknownName: no such level.
        """
        if level not in LEVELS:
            raise unknown("level of a card", level, LEVELS)
        images, others = self.images, self.reference
        if reference and others is None and len(images) >= 6:
            third = min(len(images) // 3, LEVELS[level])
            images, others = images[third:], images[:third]
        return CardData(
            model=self.model,
            images=images[: LEVELS[level]],
            chosen_on=self.chosen_on,
            reference=None if others is None else others[: LEVELS[level]],
            extra=self.extra,
        )

    def facts(self) -> dict[str, Any]:
        """What identifies the data, as JSON can hold it."""
        images = self.images
        named = isinstance(images, ImageSet)
        return {
            "name": images.name if named else "pixels",
            "fingerprint": images.fingerprint if named else "",
            "n": len(images),
            "n_reference": 0 if self.reference is None else len(self.reference),
            "chosen_on": self.chosen_on.fingerprint if isinstance(self.chosen_on, ImageSet) else "not given",
            "selection": "the first of the set",
        }


def subject(model: Any) -> dict[str, Any]:
    """What identifies the model: name, weights, numerics."""
    parts = model.parts
    return {
        "name": model.title or parts.family,
        "family": parts.family,
        "fingerprint": model.fingerprint,
        "parity": "" if model.parity is None else str(model.parity),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": "fused" if parts.blocks[0].attn.fused() else "explicit",
        "image_size": list(parts.image_size or ()),
        "preprocess": ""
        if model.preprocess is None
        else str(getattr(model.preprocess, "fingerprint", model.preprocess)),
    }
