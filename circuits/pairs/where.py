"""Which pixels an edit of an attribute touches: the object, its surroundings, or all of them."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from circuits.pairs.pairs import Pairs
from circuits.pairs.raw import raw_images, raw_pairs
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, unknown

Where = Literal["object", "background", "all"]
PLACES = ("object", "background", "all")

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Image uint8 `[height width channel]` and place bool `[height width]` -> the whole image changed; only the place of it
is used."""


def attribute_pairs(model: Any, images: ImageSet, name: str, where: Where, change: Change, *, rgb: bool) -> Pairs:
    """Pairs of images and their edit at one place; the model's prediction on the edit counts.

    Args:
        model: a wrapped model.
        images: with masks, unless `where` is `all`.
        name: of the pairs.
        where: what is edited.
        change: the edit.
        rgb: it is about colours, so there must be three channels.

    Raises:
        UnknownName: another place.
        BadData: no masks, or no colours.
    """
    if where not in PLACES:
        raise unknown("place of an edit", where, PLACES)
    own = raw_images(model, images, what=name, masks=where != "all")
    corrupt = []
    for index, image in enumerate(own.images):
        if rgb and image.shape[2] != 3:
            raise BadData(f"{name} needs red, green and blue; {own.ids[index]!r} has {image.shape[2]} channels.")
        if where == "all":
            place = np.ones(image.shape[:2], bool)
        else:
            place = own.masks[index] if where == "object" else ~own.masks[index]
        corrupt.append(np.where(place[..., None], change(image, place), image))
    title = name if where == "all" else f"{name} of the {where}"
    return raw_pairs(model, title, own, corrupt, corrupt_masks=own.masks)
