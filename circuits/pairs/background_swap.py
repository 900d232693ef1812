"""Background swap: the same object, pixel for pixel, before the background of another picture.

The backgrounds are those of images of another class (where a background is a shortcut, it then speaks for another
class), with their own object closed from around it; or pictures of your own. Like the bird on two backgrounds of
Waterbirds, and like the pairs of the released Inside-Out loader (**C**). Source: methods.md 5.8, 2.

The class of the object does not change, so the corrupt half has no label of its own: the model's prediction counts, and
a metric such as `logit_diff` asks whether the model is led from the one to the other.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from circuits.pairs.donors import other_class
from circuits.pairs.fill import Fill, without
from circuits.pairs.pairs import Pairs
from circuits.pairs.raw import raw_images, raw_pairs
from mechvis.data.images import ImageSet


def background_swap(
    model: Any, images: ImageSet, *, backgrounds: ImageSet | None = None, fill: Fill = "nearest", seed: int = 0
) -> Pairs:
    """Pairs whose corrupt half shows the same object before another background.

    Args:
        model: a wrapped model.
        images: with object masks; with labels too, unless `backgrounds` are given.
        backgrounds: pictures to put behind the objects, drawn by `seed`; where they have masks, their object is closed
            from around it. Default: the images themselves, those of another class.
        fill: what the closed object of a background becomes.
        seed: draws who gets which background.

    Raises:
        BadData: no masks or labels, empty masks, or a single class.

    Example:
        >>> pairs = background_swap(model, birds, backgrounds=mechvis.data.folder("oceans"))       # doctest: +SKIP
    """
    what = "background swap"
    own = raw_images(model, images, what=what, masks=True, labels=backgrounds is None)
    if backgrounds is None:
        given, chosen = own, other_class(own.labels, own.labels, seed)
    else:
        given = raw_images(model, backgrounds, what=what, masks=backgrounds.read_mask is not None)
        chosen = np.random.default_rng(seed).integers(0, len(given), len(own))
    corrupt = []
    for image, mask, donor in zip(own.images, own.masks, chosen, strict=True):
        behind = given.images[donor]
        behind = behind if given.masks is None else without(behind, given.masks[donor], fill)
        corrupt.append(np.where(mask[..., None], image, _of_size(behind, image.shape[:2])))
    return raw_pairs(model, what, own, corrupt, corrupt_masks=own.masks)


def _of_size(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image at another size, its proportions kept."""
    if image.shape[:2] == size:
        return image
    planes = (Image.fromarray(image[..., channel]) for channel in range(image.shape[2]))
    fitted = [np.asarray(ImageOps.fit(plane, size[::-1], Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(fitted, axis=-1)
