"""Pairs of your own images: two sets that are aligned one to one, token by token.

Whatever made them, a photo taken twice, a picture edited by hand, or a generator: row `i` of both is one pair, and what
is the same in both should lie at the same place.
"""

from typing import Any

from circuits.pairs.halves import half_of, pairs_of
from circuits.pairs.pairs import Pairs
from mechvis.axes import Mask, Pixels
from mechvis.data.images import ImageSet
from mechvis.errors import ShapeMismatch


def aligned(
    model: Any,
    clean: ImageSet | Pixels,
    corrupt: ImageSet | Pixels,
    *,
    name: str = "aligned images",
    clean_labels: Any = None,
    corrupt_labels: Any = None,
    masks: Mask | None = None,
    corrupt_masks: Mask | None = None,
) -> Pairs:
    """Pairs of two sets of images, or of two pixel tensors.

    Args:
        model: a wrapped model.
        clean: an `ImageSet`, or preprocessed pixels `[image channel height width]`. A set's labels and masks are taken
            over where nothing else is given; labels are matched to the model's classes by name.
        corrupt: the same number of images in the same order.
        name: how the corrupt half came about.
        clean_labels: class index per image; without them (and without labels of the set) the model's prediction counts.
        corrupt_labels: likewise for the corrupt half.
        masks: object of each clean image, bool `[image height width]`, at the size that the model sees.
        corrupt_masks: object of each corrupt image.

    Raises:
        ShapeMismatch: halves that do not fit each other.
        BadData, BadImages, OutOfRange.

    Example:
        >>> pairs = aligned(model, before, after, name="road sign painted over")                   # doctest: +SKIP
    """
    first = half_of(model, clean, clean_labels, masks, "clean")
    second = half_of(model, corrupt, corrupt_labels, corrupt_masks, "corrupt")
    if len(first.ids) != len(second.ids):
        raise ShapeMismatch(
            f"{name}: {len(first.ids)} clean images and {len(second.ids)} corrupt ones. Row i of both is one pair."
        )
    return pairs_of(
        model,
        name,
        first.pixels,
        second.pixels,
        ids=first.ids,
        clean_labels=first.labels,
        corrupt_labels=second.labels,
        masks=first.masks,
        corrupt_masks=second.masks,
    )
