"""Object swap: the same picture with an object of another class in the same place. Isolates evidence of the object.

1. The own object's pixels are closed from around them.
2. The object of a donor image (of another class, drawn by `seed`) is cut out by its mask, resized with its proportions
   kept so that it fits the own object's box, and put in the middle of it.

Before resizing, the donor's surroundings are painted with its object's nearest colours, so that no rim of the donor's
background comes along. Position and size stay; colour and pose are the donor's. For bundled scenes `scene_swap` is
exact. Source: methods.md 5.8, 1 (**X**).
"""

from typing import Any

import numpy as np
from PIL import Image

from circuits.pairs.donors import other_class
from circuits.pairs.fill import Fill, without
from circuits.pairs.pairs import Pairs
from circuits.pairs.raw import raw_images, raw_pairs
from mechvis.data.images import ImageSet


def object_swap(
    model: Any, images: ImageSet, *, donors: ImageSet | None = None, fill: Fill = "nearest", seed: int = 0
) -> Pairs:
    """Pairs whose corrupt half shows an object of another class in the box of the clean one.

    Args:
        model: a wrapped model.
        images: with labels and object masks.
        donors: images that give the objects, with labels and masks; default: the images themselves.
        fill: what the own object's pixels become where the new one does not cover them.
        seed: draws the donors.

    Returns:
        Pairs: the corrupt label is the donor's, the corrupt mask the new object's.

    Raises:
        BadData: no masks or labels, empty masks, or a single class.

    Example:
        >>> pairs = object_swap(model, mechvis.data.folder("birds", masks="masks"), seed=3)        # doctest: +SKIP
    """
    own = raw_images(model, images, what="object swap", masks=True, labels=True)
    given = own if donors is None else raw_images(model, donors, what="object swap", masks=True, labels=True)
    chosen = other_class(own.labels, given.labels, seed)
    corrupt, masks = [], []
    for image, mask, donor in zip(own.images, own.masks, chosen, strict=True):
        cut, shape = _fitted(given.images[donor], given.masks[donor], _box(mask))
        edited, place = without(image, mask, fill), _middle(_box(mask), shape.shape)
        edited[place][shape] = cut[shape]
        new = np.zeros_like(mask)
        new[place] = shape
        corrupt.append(edited)
        masks.append(new)
    labels = given.labels[chosen]
    return raw_pairs(model, "object swap", own, corrupt, corrupt_masks=masks, corrupt_labels=labels)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _fitted(image: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """An object and its mask, resized to fit into a box with its proportions kept."""
    at = _box(mask)
    cut, shape = without(image, ~mask)[at], mask[at]
    room = [side.stop - side.start for side in box]
    factor = min(room[0] / shape.shape[0], room[1] / shape.shape[1])
    height, width = (max(1, round(side * factor)) for side in shape.shape)
    # One channel at a time: images may have other channels than red, green and blue.
    channels = [_resized(cut[..., channel], (height, width), smooth=True) for channel in range(cut.shape[2])]
    small = _resized(shape.astype(np.uint8), (height, width), smooth=False) > 0
    return np.stack(channels, axis=-1), small if small.any() else np.ones_like(small)


def _resized(plane: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(plane).resize(size[::-1], how))


def _middle(box: tuple[slice, slice], shape: tuple[int, int]) -> tuple[slice, slice]:
    """The place of something in the middle of a box."""
    starts = [side.start + (side.stop - side.start - length) // 2 for side, length in zip(box, shape, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))
