"""Known shifts of known size: corrupted copies of a set of images, as ladders of five severities.

A monitor is calibrated on them (:mod:`circuits.comparison.alarm`): the labels are those of the clean images, so the
accuracy under each shift is known. All act on raw uint8 images, before any preprocessing.

==============  ====================================================================================================
kind            what severity 1 to 5 means
==============  ====================================================================================================
`blur`          Gaussian blur; its radius as a share of the image's side
`noise`         independent Gaussian noise per pixel and channel; its deviation as a share of the range
`contrast`      colours pulled to the image's mean colour, by a share
`colour`        a cast: red brighter and blue darker by a share (warm light)
`hue`           hues turned by degrees, saturation and value stay
`background`    the object (by its mask) before the background of another image of the set, on a share of the images
==============  ====================================================================================================

The same image, kind, severity and seed give the same pixels, whatever subset it is read in. What is drawn does not
change with severity (the noise pattern, which image gives its background), so a ladder differs in size only, and the
images whose background is swapped at one severity are among those of the next.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, BadImages, OutOfRange, unknown

Kind = Literal["blur", "noise", "contrast", "colour", "hue", "background"]

LADDERS: dict[str, tuple[float, ...]] = {
    "blur": (0.008, 0.016, 0.024, 0.04, 0.06),
    "noise": (0.04, 0.08, 0.12, 0.2, 0.3),
    "contrast": (0.2, 0.4, 0.6, 0.75, 0.9),
    "colour": (0.1, 0.2, 0.3, 0.45, 0.6),
    "hue": (30.0, 60.0, 90.0, 120.0, 180.0),
    "background": (0.2, 0.4, 0.6, 0.8, 1.0),
}
"""Size of each severity (**X**): shares, and degrees for `hue`."""
KINDS = tuple(LADDERS)
SEVERITIES = (1, 2, 3, 4, 5)


def corrupted(images: ImageSet, kind: Kind, severity: int, *, seed: int = 0) -> ImageSet:
    """The same images under one corruption, read when asked for; labels and masks stay.

    Args:
        images: any images; with masks for `background`.
        kind: see the module.
        severity: 1 to 5.
        seed: of noise and of backgrounds.

    Raises:
        UnknownName: no such kind.
        OutOfRange: no such severity.
        BadData: `background` without masks, or with fewer than two images.
        BadImages: an image (when it is read) that is not uint8 with three channels.

    Example:
        >>> corrupted(mechvis.data.scenes(4), "blur", 3).name                                      # doctest: +SKIP
        'scenes, blur 3'
    """
    if kind not in LADDERS:
        raise unknown("corruption", kind, KINDS)
    if severity not in SEVERITIES:
        raise OutOfRange(f"severity={severity!r}: corruptions come in severities 1 to {len(SEVERITIES)}.")
    size = LADDERS[kind][severity - 1]
    source = f"{seed}/{kind}/{images.recipe or images.name}"
    change = _with_backgrounds(images, size, source) if kind == "background" else _of_pixels(kind, size, source)

    def read(row: int) -> np.ndarray:
        image = images.read(row)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise BadImages(
                f"image {row} of {images.name!r} is {image.dtype} {list(image.shape)}; corruptions change uint8 "
                "[height width 3]."
            )
        return change(image, row)

    return replace(
        images,
        name=f"{images.name}, {kind} {severity}",
        ids=tuple(f"{name}+{kind}{severity}" for name in images.ids),
        read=read,
        captions=None,
        recipe=f"{images.recipe} {kind}={size} seed={seed} {_donor_word(images, kind)}" if images.recipe else "",
    )


def ladder(
    images: ImageSet, kinds: Sequence[Kind] = KINDS, severities: Sequence[int] = SEVERITIES, *, seed: int = 0
) -> dict[str, ImageSet]:
    """Every kind at every severity, by names such as `blur 3`.

    Take images that are in no other set of the comparison: a corrupted copy shares its content with the original, and
    two sets of the same pictures are closer than two sets of different ones.

    Args:
        images: labelled, if the ladder is to calibrate an alarm.
        kinds: kinds of corruption.
        severities: numbers from 1 to 5.
        seed: of noise and of backgrounds.

    Raises:
        BadData: no kind or no severity; and as :func:`corrupted`.

    Example:
        >>> list(ladder(mechvis.data.scenes(4), ("blur",), (1, 3)))                                # doctest: +SKIP
        ['blur 1', 'blur 3']
    """
    if not kinds or not severities:
        raise BadData("a ladder needs at least one kind of corruption and one severity.")
    return {
        f"{kind} {severity}": corrupted(images, kind, severity, seed=seed) for kind in kinds for severity in severities
    }


def _of_pixels(kind: str, size: float, source: str) -> Callable[[np.ndarray, int], np.ndarray]:
    def change(image: np.ndarray, row: int) -> np.ndarray:
        if kind == "blur":
            from PIL import Image, ImageFilter

            radius = size * max(image.shape[:2])
            return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
        if kind == "hue":
            from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

            hsv = rgb_to_hsv(image / 255)
            hsv[..., 0] = (hsv[..., 0] + size / 360) % 1
            return _bytes(hsv_to_rgb(hsv) * 255)
        if kind == "noise":
            return _bytes(image + 255 * size * _generator(source, row).normal(size=image.shape))
        if kind == "contrast":
            return _bytes(image + size * (image.mean((0, 1)) - image))
        return _bytes(image * np.array([1 + size, 1.0, 1 - size]))

    return change


def _with_backgrounds(images: ImageSet, share: float, source: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """Puts the object of an image before the background of another one, whose own object is closed from around it."""
    if images.read_mask is None:
        raise BadData(
            f"{images.name!r} has no masks, and swapping backgrounds needs the object. Pass masks= to the loader."
        )
    if len(images) < 2:
        raise BadData("a background comes from another image of the set: it needs at least two images.")
    rows = np.sort(images.rows)
    order = np.random.default_rng(_number(source)).permutation(len(rows))
    donors = {int(rows[i]): int(rows[j]) for i, j in zip(order, np.roll(order, 1), strict=True)}

    def change(image: np.ndarray, row: int) -> np.ndarray:
        from circuits.pairs.fill import without

        if _generator(source, row).random() >= share:
            return image
        donor = donors[row]
        other, hole = images.read(donor), images.read_mask(donor)
        if other.shape != image.shape:
            raise BadImages(
                f"images {row} and {donor} of {images.name!r} differ in size, {list(image.shape[:2])} and "
                f"{list(other.shape[:2])}: backgrounds can be swapped among images of one size only."
            )
        if hole.all():
            raise BadData(
                f"the mask of image {donor} of {images.name!r} covers all of it: it has no background to give."
            )
        return np.where(images.read_mask(row)[..., None], image, without(other, hole))

    return change


def _donor_word(images: ImageSet, kind: str) -> str:
    """What else fixes the pixels: with swapped backgrounds, the images that there were to choose from."""
    if kind != "background":
        return ""
    return f"among={hashlib.sha256(np.sort(images.rows).tobytes()).hexdigest()[:16]}"


def _generator(source: str, row: int) -> np.random.Generator:
    return np.random.default_rng(_number(f"{source}/{row}"))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values).clip(0, 255).astype(np.uint8)
