"""Raw images with masks and labels, for edits that act before the model's preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.pairs.halves import pairs_of, preprocess_of
from circuits.pairs.pairs import Pairs
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, BadImages
from mechvis.labels import with_model_classes


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """Images as they are on disk."""

    images: list[np.ndarray]
    """Uint8 `[height width channel]` each; sizes may differ."""
    masks: list[np.ndarray] | None
    """Bool `[height width]` each, True on the object; None where there are none."""
    labels: np.ndarray | None
    """Class index per image, as the model counts."""
    ids: tuple[str, ...]
    """One name per image."""

    def __len__(self) -> int:
        return len(self.images)


def raw_images(model: Any, images: Any, *, what: str, masks: bool = False, labels: bool = False) -> Raw:
    """Read a set for an edit.

    Args:
        model: its classes are what labels are matched to.
        images: an `ImageSet`.
        what: the edit, for messages.
        masks: it needs object masks, each with an object and something around it.
        labels: it needs labels.

    Raises:
        BadImages: no `ImageSet`.
        BadData: masks or labels are missing, or a mask is empty, full, or of another size than its image.
    """
    if not isinstance(images, ImageSet):
        raise BadImages(
            f"{what} edits raw images, so it takes an ImageSet (mechvis.data.folder, scenes, ...), got "
            f"{type(images).__name__}. For pixels that you edited yourself use circuits.pairs.aligned."
        )
    if masks and images.read_mask is None:
        raise BadData(f"{what} needs object masks, and {images.name!r} has none. Load the images with masks=.")
    if labels and images.labels is None:
        raise BadData(f"{what} needs labels, and {images.name!r} has none: use class folders or a label column.")
    known = with_model_classes(images, model)
    read = None if images.read_mask is None else [images.read_mask(int(row)) for row in images.rows]
    found = Raw(images=images.raw(), masks=read, labels=known.labels, ids=images.ids)
    if masks:
        _check_masks(found, what)
    return found


def raw_pairs(
    model: Any,
    name: str,
    clean: Raw,
    corrupt: Sequence[np.ndarray],
    *,
    corrupt_masks: Sequence[np.ndarray] | None = None,
    corrupt_labels: np.ndarray | None = None,
) -> Pairs:
    """Both halves through the model's preprocessing, masks through its geometry."""
    preprocess = preprocess_of(model)
    return pairs_of(
        model,
        name,
        preprocess(clean.images),
        preprocess(list(corrupt)),
        ids=clean.ids,
        clean_labels=clean.labels,
        corrupt_labels=corrupt_labels,
        masks=None if clean.masks is None else preprocess.masks(clean.masks),
        corrupt_masks=None if corrupt_masks is None else preprocess.masks(list(corrupt_masks)),
    )


def _check_masks(found: Raw, what: str) -> None:
    for image, mask, name in zip(found.images, found.masks, found.ids, strict=True):
        if mask.dtype != bool or mask.shape != image.shape[:2]:
            raise BadData(f"{what}: the mask of {name!r} is {mask.dtype} {mask.shape}, its image {image.shape[:2]}.")
    for word, bad in (
        ("is empty", [not mask.any() for mask in found.masks]),
        ("covers the whole image", [bool(mask.all()) for mask in found.masks]),
    ):
        if any(bad):
            names = [name for name, wrong in zip(found.ids, bad, strict=True) if wrong]
            some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise BadData(f"{what}: the mask {word} in {len(names)} of {len(found)} images ({some}). Leave these out.")
