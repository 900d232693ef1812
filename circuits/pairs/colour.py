"""Colour edits: the hues turned, or no colour at all. Shape and brightness pattern stay (methods.md 5.8, 3, **X**)."""

from typing import Any

import numpy as np

from circuits.pairs.pairs import Pairs
from circuits.pairs.where import Where, attribute_pairs
from mechvis.data.images import ImageSet
from mechvis.errors import OutOfRange

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601, as image libraries use them)."""


def hue_rotation(model: Any, images: ImageSet, *, degrees: float = 180.0, where: Where = "object") -> Pairs:
    """Pairs whose corrupt half has its hues turned on the colour circle; saturation and value (HSV) stay.

    Args:
        model: a wrapped model.
        images: with object masks, unless `where="all"`.
        degrees: how far; 180 is the opposite colour.
        where: `object`, `background` or `all`.

    Raises:
        OutOfRange: a multiple of 360, which changes nothing.
        BadData: no masks; images without colours.

    Example:
        >>> pairs = hue_rotation(model, images, degrees=120)                                       # doctest: +SKIP
    """
    if not np.isfinite(degrees) or degrees % 360 == 0:
        raise OutOfRange(f"degrees={degrees:g} turns no hue; the opposite colour is 180.")

    def turned(image: np.ndarray, place: np.ndarray) -> np.ndarray:
        from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

        hsv = rgb_to_hsv(image / 255)
        hsv[..., 0] = (hsv[..., 0] + degrees / 360) % 1
        return np.round(hsv_to_rgb(hsv) * 255).astype(np.uint8)

    return attribute_pairs(model, images, f"hue rotation by {degrees:g} degrees", where, turned, rgb=True)


def grey(model: Any, images: ImageSet, *, where: Where = "object") -> Pairs:
    """Pairs whose corrupt half is grey of the same brightness.

    Args:
        model: a wrapped model.
        images: with object masks, unless `where="all"`.
        where: `object`, `background` or `all`.

    Raises:
        BadData: no masks; images without colours.

    Example:
        >>> pairs = grey(model, images, where="all")                                               # doctest: +SKIP
    """

    def faded(image: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.round(image @ LUMA).astype(np.uint8)[..., None].repeat(3, -1)

    return attribute_pairs(model, images, "grey", where, faded, rgb=True)
