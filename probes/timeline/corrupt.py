"""Mild corruptions, for the question whether decisions move when images get a little worse (methods.md 3.1).

Noise, blur and brightness at severity 1 or 2 (**N**), on raw uint8 images before any preprocessing; the sizes are ours
(**X**). The same image, kind, severity and seed give the same pixels.
"""

import hashlib
from dataclasses import replace
from typing import Literal

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, unknown

Kind = Literal["noise", "blur", "brightness"]
SIZES: dict[str, tuple[float, float]] = {"noise": (0.04, 0.08), "blur": (0.01, 0.02), "brightness": (0.1, 0.2)}
"""Deviation as a share of the range; radius as a share of the side; what is added as a share of the range."""


def mildly_corrupted(images: ImageSet, kind: Kind, severity: Literal[1, 2] = 1, *, seed: int = 0) -> ImageSet:
    """The same images, a little worse, read when asked for.

    Args:
        images: any images.
        kind: `noise`, `blur` or `brightness`.
        severity: 1 or 2.
        seed: of the noise.

    Raises:
        UnknownName: no such kind.
        BadData: another severity, or images that are not an `ImageSet`.

    Example:
        >>> mildly_corrupted(mechvis.data.scenes(4), "blur", 2).name                               # doctest: +SKIP
        'scenes, blur 2'
    """
    if kind not in SIZES:
        raise unknown("corruption", kind, SIZES)
    if severity not in (1, 2) or not isinstance(images, ImageSet):
        raise BadData(
            f"corruptions are of severity 1 or 2 (got {severity}) and act on an ImageSet (got {type(images).__name__})."
        )
    size = SIZES[kind][severity - 1]

    def read(row: int) -> np.ndarray:
        image = images.read(row)
        if kind == "blur":
            from PIL import Image, ImageFilter

            return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(size * max(image.shape[:2]))))
        if kind == "brightness":
            return _bytes(image + 255 * size)
        word = hashlib.sha256(f"{images.name}/{seed}/{row}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(word[:8], "little"))
        return _bytes(image + 255 * size * generator.normal(size=image.shape))

    recipe = f"{images.recipe} {kind} {severity} seed {seed}" if images.recipe else ""
    return replace(images, read=read, name=f"{images.name}, {kind} {severity}", recipe=recipe)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values).clip(0, 255).astype(np.uint8)
