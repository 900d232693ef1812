"""Texture edit: a blur that stays inside the object (or outside it), so that its outline stays and its texture goes.

A plain blur would let object and background run into each other and soften the outline too. Here both the colours and
the place are blurred, and divided: `blur(colours x place) / blur(place)`, a mean over the pixels of the place alone.
Source: methods.md 5.8, 3 (**X**).
"""

from typing import Any

import numpy as np

from circuits.pairs.pairs import Pairs
from circuits.pairs.where import Where, attribute_pairs
from mechvis.data.images import ImageSet
from mechvis.errors import OutOfRange


def blur(model: Any, images: ImageSet, *, sigma: float = 0.05, where: Where = "object") -> Pairs:
    """Pairs whose corrupt half is blurred at one place.

    Args:
        model: a wrapped model.
        images: with object masks, unless `where="all"`.
        sigma: standard deviation of the Gaussian, as a share of the image's shorter side (0.05 of 224 pixels is 11).
        where: `object`, `background` or `all`.

    Raises:
        OutOfRange: sigma not above 0.
        BadData: no masks.

    Example:
        >>> pairs = blur(model, images, where="background")                                        # doctest: +SKIP
    """
    if not np.isfinite(sigma) or sigma <= 0:
        raise OutOfRange(f"sigma={sigma:g}: a share of the image's shorter side above 0, e.g. 0.05.")

    def blurred(image: np.ndarray, place: np.ndarray) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        width = sigma * min(image.shape[:2])
        weight = gaussian_filter(place.astype(np.float64), width)[..., None]
        colours = gaussian_filter(image * place[..., None].astype(np.float64), (width, width, 0))
        mean = np.divide(colours, weight, out=image.astype(np.float64), where=weight > 1e-12)
        return np.round(mean).clip(0, 255).astype(np.uint8)

    return attribute_pairs(model, images, f"blur of {sigma:g}", where, blurred, rgb=False)
