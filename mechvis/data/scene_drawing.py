"""Draw scenes: closed formulas for eight shapes and eight textures, one block of images at a time.

1. The object's mask: pixel centres in the object's own coordinates, put into the shape's formula. Edges are hard, so
   that a pixel belongs to the object or to the background and to nothing in between.
2. The background: pixel centres in periods, put into the texture's formula, which picks one of two tones.
3. Faint noise per pixel (an integer hash of the image's key), the same in all channels; then bytes.

Pixels are computed in float32 with ``+ - * / floor abs`` and comparisons only, which IEEE 754 rounds identically
everywhere; the two rotation coefficients come from whole degrees and are rounded to nine decimals, beyond the reach of
differences between mathematical libraries. One thread draws about ten thousand images per second.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from mechvis.data.scene_factors import BACKGROUNDS, IMAGE_SIZE, SHAPES, SceneFactors
from mechvis.errors import unknown

Show = Literal["both", "object", "background"]

_PALETTE = np.array(
    [
        *([0.86, 0.14, 0.14], [0.14, 0.68, 0.18], [0.14, 0.28, 0.90]),
        *([0.94, 0.84, 0.10], [0.60, 0.14, 0.76], [0.10, 0.80, 0.86]),
    ],
    dtype=np.float32,
)


def render(
    factors: SceneFactors, *, show: Show = "both"
) -> tuple[UInt8[np.ndarray, "image height width channel"], Bool[np.ndarray, "image height width"]]:
    """Draw scenes.

    Args:
        factors: One row per image.
        show: "both"; "object" (on flat mid-grey); or "background" (no object).

    Returns:
        Images in 0..255, and the masks of the visible object (all False for "background").

    Raises:
        UnknownName: If `show` is none of the three.

    Example:
        >>> from mechvis.data.scene_factors import sample_factors
        >>> images, masks = render(sample_factors(2, seed=0))
        >>> images.shape, masks.shape
        ((2, 64, 64, 3), (2, 64, 64))
    """
    if show not in ("both", "object", "background"):
        raise unknown("rendering", show, ("both", "object", "background"))
    n = len(factors)
    images = np.empty((n, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    masks = np.zeros((n, IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    # blocks of 64 images keep the work arrays inside the processor's cache
    for begin in range(0, n, 64):
        rows = slice(begin, begin + 64)
        part = factors[rows]
        if show != "background":
            masks[rows] = _object_masks(part)
        images[rows] = _paint(part, masks[rows], flat=show == "object")
    return images, masks


def render_masks(factors: SceneFactors) -> Bool[np.ndarray, "image height width"]:
    """The masks of `render` without the images.

    Example:
        >>> from mechvis.data.scene_factors import sample_factors
        >>> render_masks(sample_factors(2, seed=0)).shape
        (2, 64, 64)
    """
    return np.concatenate([_object_masks(factors[begin : begin + 64]) for begin in range(0, len(factors), 64)])


def _hash32(value: np.ndarray) -> np.ndarray:
    """A 32-bit integer hash (lowbias32), cheap enough for every pixel."""
    value = (value ^ (value >> np.uint32(16))) * np.uint32(0x7FEB352D)
    value = (value ^ (value >> np.uint32(15))) * np.uint32(0x846CA68B)
    return value ^ (value >> np.uint32(16))


_ROWS, _COLUMNS = np.meshgrid(
    np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5, np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5, indexing="ij"
)
_PIXEL = np.arange(IMAGE_SIZE * IMAGE_SIZE, dtype=np.uint32).reshape(IMAGE_SIZE, IMAGE_SIZE) * np.uint32(0x9E3779B1)


def _paint(factors: SceneFactors, masks: np.ndarray, *, flat: bool) -> UInt8[np.ndarray, "image height width channel"]:
    noise_key = (factors.key >> np.uint64(32)).astype(np.uint32)[:, None, None]
    # 8 noise bits, centred: amplitude about 3 % of the range, the same in all channels
    noise = ((_hash32(_PIXEL ^ noise_key) >> np.uint32(24)).astype(np.float32) - np.float32(127.5)) * np.float32(0.06)
    noise = noise + np.float32(0.5)
    object_tone = np.clip(_PALETTE[factors.colour] + factors.colour_jitter, 0, 1) * np.float32(255)
    tones = np.full_like(factors.tones, 0.5) if flat else factors.tones
    tones = tones * np.float32(255)
    second = _textures(factors)
    # a table lookup per pixel: 0 and 1 are the background's tones, 2 is the object
    table = np.concatenate([tones, object_tone[:, None]], axis=1)
    code = np.where(masks, np.intp(2), second.astype(np.intp)) + 3 * np.arange(len(factors))[:, None, None]
    pixels = np.take(table.reshape(-1, 3), code, axis=0)
    pixels += noise[..., None]
    return np.clip(pixels, 0, 255.5, out=pixels).astype(np.uint8)


def _object_masks(factors: SceneFactors) -> Bool[np.ndarray, "image height width"]:
    radians = np.deg2rad(factors.angle.astype(np.float64))
    cos = np.round(np.cos(radians), 9).astype(np.float32)[:, None, None]
    sin = np.round(np.sin(radians), 9).astype(np.float32)[:, None, None]
    size = factors.size[:, None, None]
    right = (_COLUMNS - factors.x[:, None, None]) / size
    up = (factors.y[:, None, None] - _ROWS) / size
    u, v = cos * right + sin * up, cos * up - sin * right
    masks = np.empty(u.shape, dtype=bool)
    for index in np.unique(factors.shape):
        rows = factors.shape == index
        masks[rows] = _INSIDE[SHAPES[index]](u[rows], v[rows])
    return masks


def _textures(factors: SceneFactors) -> Bool[np.ndarray, "image height width"]:
    x = _COLUMNS + factors.phase_x[:, None, None]
    y = _ROWS + factors.phase_y[:, None, None]
    second = np.empty(x.shape, dtype=bool)
    for index in np.unique(factors.background):
        rows = factors.background == index
        period = factors.period[rows][:, None, None]
        if BACKGROUNDS[index] == "speckled":
            second[rows] = _speckled(x[rows], y[rows], factors.key[rows][:, None, None])
        else:
            second[rows] = _TEXTURES[BACKGROUNDS[index]](x[rows] / period, y[rows] / period)
    return second


def _speckled(x: np.ndarray, y: np.ndarray, key: np.ndarray) -> np.ndarray:
    column, row = (np.floor(place * np.float32(0.4)).astype(np.uint32) for place in (x, y))
    cell = column + row * np.uint32(64)
    return _hash32(cell * np.uint32(0x85EBCA6B) ^ key.astype(np.uint32)) < np.uint32(1 << 31)


def _fraction(value: np.ndarray) -> np.ndarray:
    return value - np.floor(value)


def _odd(value: np.ndarray) -> np.ndarray:
    return _fraction(np.floor(value) * np.float32(0.5)) > 0


def _dotted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = _fraction(x) - np.float32(0.5), _fraction(y) - np.float32(0.5)
    return dx * dx + dy * dy < np.float32(0.1)


def _brick(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y * np.float32(1.4)
    x = x * np.float32(0.7) + np.float32(0.5) * _odd(y)
    return (_fraction(y) < np.float32(0.25)) | (_fraction(x) < np.float32(0.17))


def _zigzag(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fold = np.abs(_fraction(x * np.float32(0.5)) - np.float32(0.5)) * np.float32(2)
    return _fraction(y + fold) < np.float32(0.5)


# texture formulas: coordinates in periods; True where the second tone shows
_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": lambda x, y: _fraction(y) < 0.5,
    "barred": lambda x, y: _fraction(x) < 0.5,
    "diagonal": lambda x, y: _fraction((x + y) * np.float32(0.75)) < 0.5,
    "checkered": lambda x, y: _odd(x * np.float32(1.5)) ^ _odd(y * np.float32(1.5)),
    "dotted": _dotted,
    "brick": _brick,
    "zigzag": _zigzag,
}


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # a pentagram is where at most one of the five half-planes through pairs of tips is left
    normals = ((0.0, 1.0), (0.951056516, 0.309016994), (0.587785252, -0.809016994))
    normals += ((-0.587785252, -0.809016994), (-0.951056516, 0.309016994))
    outside = np.zeros(u.shape, dtype=np.uint8)
    for nu, nv in normals:
        outside += u * np.float32(nu) + v * np.float32(nv) > np.float32(0.309016994)
    return outside <= 1


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = u * np.float32(1.22), v * np.float32(1.22) + np.float32(0.12)
    x2, y2 = x * x, y * y
    rim = x2 + y2 - np.float32(1)
    return rim * rim * rim - x2 * y2 * y <= 0


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return (np.minimum(u, v) <= np.float32(0.28)) & (np.maximum(u, v) <= np.float32(0.94))


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (v >= np.float32(-0.5)) & (v + np.float32(1.732050808) * np.abs(u) <= np.float32(1))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    square = u * u + v * v
    return (square <= np.float32(0.92)) & (square >= np.float32(0.3))


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    from_bite = u - np.float32(0.45)
    square = v * v
    return (u * u + square <= np.float32(0.94)) & (from_bite * from_bite + square > np.float32(0.52))


# shape formulas: coordinates in units of the object's radius, v upwards
_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: u * u + v * v <= np.float32(0.66),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= np.float32(0.7),
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
}
