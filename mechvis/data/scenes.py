"""Procedural scenes: images whose every factor is known, so that an interpretability claim can be checked.

A scene is one coloured shape on a textured background. The module answers: *does the model read the object or its
surroundings?* by drawing images in which shape and background agree as often as you ask, with the object's exact mask,
and pairs of images that differ in one factor only.

How an image is made:

1. `sample_factors` draws every factor of image ``i`` from an integer hash of ``(version, seed, i, factor)``, so image
   ``i`` is the same whatever the number of images, the batch or the machine.
2. `render` draws the background from two tones and a texture, the object's mask from a closed formula, then adds
   faint per-pixel noise (again an integer hash) and rounds to bytes.

Pixels are computed with ``+ - * / floor abs`` and comparisons only, which IEEE 754 rounds identically everywhere; the two
rotation coefficients come from whole degrees and are rounded to nine decimals, beyond the reach of libm differences.
Background colours are drawn independently of the texture, so that the texture alone names the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8, UInt64

from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, unknown

IMAGE_SIZE = 64
"""Side of an image in pixels."""

VERSION = 1
"""Part of every random key: a change to the drawing raises it."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
BACKGROUNDS = ("striped", "barred", "diagonal", "checkered", "dotted", "brick", "zigzag", "speckled")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")

TEMPLATES = (
    "a photo of a {colour} {shape} on a {background} background",
    "a {colour} {shape} on a {background} background",
    "a picture of a {colour} {shape} in front of a {background} background",
    "a {background} background with a {colour} {shape}",
)
"""Caption templates; the template of an image is one of its random factors."""

Group = Literal["consistent", "conflicting"]
Change = Literal["object", "background", "colour"]
Show = Literal["both", "object", "background"]

_PALETTE = np.array(
    [[0.86, 0.14, 0.14], [0.14, 0.68, 0.18], [0.14, 0.28, 0.90], [0.94, 0.84, 0.10], [0.60, 0.14, 0.76], [0.10, 0.80, 0.86]],
    dtype=np.float32,
)
_STREAMS = {
    name: number
    for number, name in enumerate(
        (
            *("shape", "background", "agree", "colour", "size", "x", "y", "angle", "period", "phase_x", "phase_y", "base"),
            *("contrast", "polarity", "tint", "colour_jitter", "template", "pixel", "swap"),
        )
    )
}


@dataclass(frozen=True, kw_only=True)
class SceneFactors:
    """Everything that determines a batch of scenes; two equal rows give two equal images."""

    key: UInt64[np.ndarray, "image"]
    """Key of the image's pixel noise, from version, seed and image number."""
    shape: Int64[np.ndarray, "image"]
    """Index into `SHAPES`."""
    background: Int64[np.ndarray, "image"]
    """Index into `BACKGROUNDS`."""
    colour: Int64[np.ndarray, "image"]
    """Index into `COLOURS`: the object's colour."""
    template: Int64[np.ndarray, "image"]
    """Index into `TEMPLATES`."""
    size: Float32[np.ndarray, "image"]
    """Radius in pixels of the circle around the object."""
    x: Float32[np.ndarray, "image"]
    """Column of the object's centre in pixels."""
    y: Float32[np.ndarray, "image"]
    """Row of the object's centre in pixels."""
    angle: Int64[np.ndarray, "image"]
    """Rotation of the object in whole degrees, anticlockwise."""
    period: Float32[np.ndarray, "image"]
    """Period of the texture in pixels."""
    phase_x: Float32[np.ndarray, "image"]
    """Horizontal shift of the texture in pixels."""
    phase_y: Float32[np.ndarray, "image"]
    """Vertical shift of the texture in pixels."""
    tones: Float32[np.ndarray, "image 2 channel"]
    """The background's two colours, each channel in [0, 1]."""
    colour_jitter: Float32[np.ndarray, "image channel"]
    """Added to the palette colour of the object."""

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: slice | np.ndarray) -> SceneFactors:
        return SceneFactors(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def consistent(self) -> Bool[np.ndarray, "image"]:
        """Whether the background is the shape's partner texture (equal index)."""
        return self.shape == self.background


def sample_factors(
    n: int,
    *,
    seed: int = 0,
    correlation: float | None = None,
    group: Group | None = None,
    start: int = 0,
) -> SceneFactors:
    """Draw the factors of images ``start .. start + n - 1`` of the endless data set number `seed`.

    Args:
        n: Number of images.
        seed: Number of the data set, 0 or more.
        correlation: Probability that the background is the shape's partner; otherwise it is one of the seven others,
            each equally often. None or 0 draws shape and background independently (they then agree in 1 of 8).
        group: Draw only scenes whose shape and background agree ("consistent") or disagree ("conflicting").
        start: Number of the first image.

    Returns:
        One row per image.

    Raises:
        BadData: If a number is out of range, or both `correlation` and `group` are given.
        UnknownName: If `group` is neither of the two.

    Example:
        >>> factors = sample_factors(4, seed=1, correlation=1.0)
        >>> bool(factors.consistent.all())
        True
    """
    if n < 0 or start < 0 or seed < 0:
        raise BadData(f"n, start and seed must be 0 or more, got n={n}, start={start}, seed={seed}")
    if correlation is not None and not 0 <= correlation <= 1:
        raise BadData(f"correlation must lie in [0, 1], got {correlation}")
    if group not in (None, "consistent", "conflicting"):
        raise unknown("group", group, ("consistent", "conflicting"))
    if group is not None and correlation is not None:
        raise BadData("give correlation or group, not both")

    image = _mix(np.arange(start, start + n, dtype=np.uint64) + _mix(np.uint64(seed) + _mix(np.uint64(VERSION))))

    def uniform(stream: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return low + (high - low) * _uniform(image, _STREAMS[stream])

    def choice(stream: str, count: int) -> np.ndarray:
        return np.floor(uniform(stream, 0, count)).astype(np.int64)

    def channels(stream: str, count: int, reach: float) -> np.ndarray:
        return np.stack([uniform_of(stream, k, -reach, reach) for k in range(count)], axis=-1)

    def uniform_of(stream: str, part: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * _uniform(image, _STREAMS[stream] + 64 * (part + 1))

    shape = choice("shape", len(SHAPES))
    other = (shape + 1 + choice("background", len(BACKGROUNDS) - 1)) % len(BACKGROUNDS)
    if group is not None:
        background = shape if group == "consistent" else other
    elif correlation:
        background = np.where(uniform("agree") < correlation, shape, other)
    else:
        background = choice("background", len(BACKGROUNDS))

    size = uniform("size", 15, 22)
    room = IMAGE_SIZE / 2 - size
    base, contrast = uniform("base", 0.3, 0.7), uniform("contrast", 0.2, 0.32)
    sign = np.where(uniform("polarity") < 0.5, 0.5, -0.5)
    tone_level = np.stack([base + sign * contrast, base - sign * contrast], axis=-1)
    tint = channels("tint", 6, 0.08).reshape(n, 2, 3)
    return SceneFactors(
        key=_mix(image + np.uint64(_STREAMS["pixel"])),
        shape=shape,
        background=background,
        colour=choice("colour", len(COLOURS)),
        template=choice("template", len(TEMPLATES)),
        size=size.astype(np.float32),
        x=(IMAGE_SIZE / 2 + uniform("x", -1, 1) * room).astype(np.float32),
        y=(IMAGE_SIZE / 2 + uniform("y", -1, 1) * room).astype(np.float32),
        angle=np.floor(uniform("angle", -20, 21)).astype(np.int64),
        period=uniform("period", 7, 10).astype(np.float32),
        phase_x=uniform("phase_x", 0, 64).astype(np.float32),
        phase_y=uniform("phase_y", 0, 64).astype(np.float32),
        tones=np.clip(tone_level[:, :, None] + tint, 0, 1).astype(np.float32),
        colour_jitter=channels("colour_jitter", 3, 0.06).astype(np.float32),
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
        >>> render_masks(sample_factors(2, seed=0)).shape
        (2, 64, 64)
    """
    return np.concatenate([_object_masks(factors[begin : begin + 64]) for begin in range(0, len(factors), 64)])


def captions(factors: SceneFactors) -> tuple[str, ...]:
    """Name shape, colour and background of each scene in one sentence, by its own template.

    Example:
        >>> captions(sample_factors(1, seed=0))[0].endswith(".")
        False
    """
    return tuple(
        TEMPLATES[t].format(shape=SHAPES[s], background=BACKGROUNDS[b], colour=COLOURS[c])
        for t, s, b, c in zip(factors.template, factors.shape, factors.background, factors.colour, strict=True)
    )


def swap(factors: SceneFactors, change: Change, *, seed: int = 0) -> SceneFactors:
    """Replace one factor of every scene by another value, each other value equally likely; all else stays.

    Args:
        factors: One row per image.
        change: "object" (another shape), "background" (another texture, same tones) or "colour" (another object colour).
        seed: Draws the new values.

    Raises:
        UnknownName: If `change` is none of the three.

    Example:
        >>> clean = sample_factors(3, seed=0)
        >>> bool((swap(clean, "object").shape != clean.shape).all())
        True
    """
    names = {"object": ("shape", SHAPES), "background": ("background", BACKGROUNDS), "colour": ("colour", COLOURS)}
    if change not in names:
        raise unknown("change", change, names)
    name, values = names[change]
    step = _uniform(_mix(factors.key + _mix(np.uint64(seed))), _STREAMS["swap"]) * (len(values) - 1)
    return replace(factors, **{name: (getattr(factors, name) + 1 + np.floor(step).astype(np.int64)) % len(values)})


def scenes(
    n: int = 256,
    *,
    seed: int = 0,
    correlation: float | None = None,
    group: Group | None = None,
    show: Show = "both",
    start: int = 0,
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """The bundled data set: shapes on textures, labelled by shape, grouped by whether the background agrees.

    Images are drawn when read. The ids are `scenes/<seed>/<number>`, so image sets with disjoint numbers of one seed,
    or with different seeds, share no image.

    Args:
        n: Number of images.
        seed: Number of the data set, 0 or more.
        correlation: Probability that the background is the shape's partner texture; None or 0 is independent.
        group: Draw only "consistent" or only "conflicting" scenes.
        show: "both", "object" (on flat grey) or "background" (no object; then the set has no masks).
        start: Number of the first image.
        preprocess: Kept as the set's own preprocessing.

    Returns:
        Images, labels (shape), masks, groups ("consistent" or "conflicting"), captions and the factors as columns.

    Raises:
        BadData: If a setting is out of range.

    Example:
        >>> images = scenes(8, seed=7)
        >>> images.read(0).shape, images.groups[0] in ("consistent", "conflicting")
        ((64, 64, 3), True)
    """
    factors = sample_factors(n, seed=seed, correlation=correlation, group=group, start=start)
    settings = f"seed={seed} start={start} correlation={correlation or 0} group={group}"
    ids = tuple(f"scenes/{seed}/{number:06d}" for number in range(start, start + n))
    return scene_set(factors, name="scenes", ids=ids, recipe=f"scenes version={VERSION} {settings}", show=show, preprocess=preprocess)


def scene_set(
    factors: SceneFactors,
    *,
    name: str,
    ids: tuple[str, ...],
    recipe: str,
    show: Show = "both",
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """An image set of exactly these scenes, for factors that were chosen by hand.

    Args:
        factors: One row per image.
        name: Name of the set.
        ids: One name per image.
        recipe: Text that fixes the images; it stands in for the pixels in the set's hash.
        show: What to draw, see `render`.
        preprocess: Kept as the set's own preprocessing.

    Example:
        >>> factors = sample_factors(2, seed=0)
        >>> len(scene_set(factors, name="mine", ids=("a", "b"), recipe="two scenes of seed 0"))
        2
    """
    if show not in ("both", "object", "background"):
        raise unknown("rendering", show, ("both", "object", "background"))

    def read(row: int) -> np.ndarray:
        return render(factors[row : row + 1], show=show)[0][0]

    def read_mask(row: int) -> np.ndarray:
        return render_masks(factors[row : row + 1])[0]

    names = {"background": BACKGROUNDS, "colour": COLOURS}
    columns = {name: np.array(values)[getattr(factors, name)] for name, values in names.items()}
    columns |= {name: getattr(factors, name) for name in ("size", "x", "y", "angle")}
    return ImageSet(
        name=name,
        ids=ids,
        read=read,
        rows=np.arange(len(factors), dtype=np.int64),
        labels=factors.shape,
        class_names=SHAPES,
        read_mask=None if show == "background" else read_mask,
        groups=np.where(factors.consistent, "consistent", "conflicting"),
        captions=captions(factors),
        columns=columns,
        preprocess=preprocess,
        recipe=f"{recipe} show={show}",
    )


@dataclass(frozen=True, kw_only=True)
class ScenePairs:
    """Aligned images that differ in one factor: row ``i`` of both sets is the same scene but for `change`."""

    clean: ImageSet
    """The scenes as drawn."""
    corrupt: ImageSet
    """The same scenes with one factor replaced."""
    change: Change
    """Which factor: "object", "background" or "colour"."""

    def __len__(self) -> int:
        return len(self.clean)


def scene_pairs(
    n: int = 256,
    *,
    seed: int = 0,
    change: Change = "object",
    correlation: float | None = None,
    group: Group | None = None,
    start: int = 0,
    preprocess: Preprocess | None = None,
) -> ScenePairs:
    """Clean and corrupt scenes that are equal pixel for pixel outside the edited factor.

    An object swap draws another shape in the same place, size and colour (pixels outside both objects are equal); a
    background swap another texture in the same tones (pixels of the object are equal); a colour edit another object colour
    (pixels outside the object are equal).

    Args:
        n: Number of pairs.
        seed: Number of the data set, 0 or more.
        change: "object", "background" or "colour".
        correlation: See `scenes`; holds for the clean images.
        group: See `scenes`; holds for the clean images.
        start: Number of the first pair.
        preprocess: Kept as both sets' own preprocessing.

    Raises:
        BadData: If a setting is out of range.
        UnknownName: If `change` is none of the three.

    Example:
        >>> pairs = scene_pairs(4, seed=0, change="background")
        >>> bool((pairs.clean.labels == pairs.corrupt.labels).all())
        True
    """
    factors = sample_factors(n, seed=seed, correlation=correlation, group=group, start=start)
    numbers = range(start, start + n)
    recipe = f"scenes version={VERSION} seed={seed} start={start} correlation={correlation or 0} group={group}"
    clean_ids = tuple(f"scenes/{seed}/{number:06d}" for number in numbers)
    return ScenePairs(
        clean=scene_set(factors, name="scenes", ids=clean_ids, recipe=recipe, preprocess=preprocess),
        corrupt=scene_set(
            swap(factors, change, seed=seed),
            name=f"scenes, {change} swapped",
            ids=tuple(f"{name}/{change}" for name in clean_ids),
            recipe=f"{recipe} swap={change}",
            preprocess=preprocess,
        ),
        change=change,
    )


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64's output function: a bijection of 64-bit integers whose results look random."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _uniform(key: np.ndarray, stream: int) -> Float[np.ndarray, "image"]:
    """Uniform numbers in [0, 1) with 53 bits, one per key."""
    with np.errstate(over="ignore"):
        bits = _mix(key ^ _mix(np.uint64(stream)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


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
    cell = np.floor(x * np.float32(0.4)).astype(np.uint32) + np.floor(y * np.float32(0.4)).astype(np.uint32) * np.uint32(64)
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
