"""What a procedural scene consists of, and how its factors are drawn.

Every factor of image ``i`` comes from an integer hash of ``(version, seed, i, factor)``: a counter, not a stream. So
image ``i`` is the same whatever the number of images, the batch or the machine, and changing one factor's distribution
(the background's correlation with the shape) leaves the other factors as they were.

Background colours are drawn independently of the texture, so that the texture alone names the background.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

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

_STREAMS = {
    name: number
    for number, name in enumerate(
        (
            *("shape", "background", "agree", "colour", "size", "x", "y", "angle", "period", "phase_x", "phase_y"),
            *("base", "contrast", "polarity", "tint", "colour_jitter", "template", "pixel", "swap"),
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

    def __getitem__(self, rows: slice | np.ndarray) -> "SceneFactors":
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
    training: bool = False,
) -> SceneFactors:
    """Draw the factors of images ``start .. start + n - 1`` of the endless data set number `seed`.

    Args:
        n: Number of images.
        seed: Number of the data set, 0 or more.
        correlation: Probability that the background is the shape's partner; otherwise it is one of the seven others,
            each equally often. None or 0 draws shape and background independently (they then agree in 1 of 8).
        group: Draw only scenes whose shape and background agree ("consistent") or disagree ("conflicting").
        start: Number of the first image.
        training: Draw from the data sets that the bundled models were trained on. No image of theirs occurs in any
            other data set, so that every seed is held out for everybody else.

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

    domain = _mix(np.uint64(VERSION if training else VERSION + 2**32))
    with np.errstate(over="ignore"):
        image = _mix(np.arange(start, start + n, dtype=np.uint64) + _mix(np.uint64(seed) + domain))

    def uniform(stream: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return low + (high - low) * _uniform(image, _STREAMS[stream])

    def choice(stream: str, count: int) -> np.ndarray:
        return np.floor(uniform(stream, 0.0, float(count))).astype(np.int64)

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

    size = uniform("size", 15.0, 22.0)
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
        x=(IMAGE_SIZE / 2 + uniform("x", -1.0, 1.0) * room).astype(np.float32),
        y=(IMAGE_SIZE / 2 + uniform("y", -1.0, 1.0) * room).astype(np.float32),
        angle=np.floor(uniform("angle", -20.0, 21.0)).astype(np.int64),
        period=uniform("period", 7.0, 10.0).astype(np.float32),
        phase_x=uniform("phase_x", 0.0, 64.0).astype(np.float32),
        phase_y=uniform("phase_y", 0.0, 64.0).astype(np.float32),
        tones=np.clip(tone_level[:, :, None] + tint, 0, 1).astype(np.float32),
        colour_jitter=channels("colour_jitter", 3, 0.06).astype(np.float32),
    )


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
        change: "object" (another shape), "background" (another texture, same tones) or "colour" (of the object).
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


def _mix(value: UInt64[np.ndarray, "*batch"] | np.uint64) -> UInt64[np.ndarray, "*batch"] | np.uint64:
    """SplitMix64's output function: a bijection of 64-bit integers whose results look random."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _uniform(key: np.ndarray, stream: int) -> Float64[np.ndarray, "image"]:
    """Uniform numbers in [0, 1) with 53 bits, one per key."""
    with np.errstate(over="ignore"):
        bits = _mix(key ^ _mix(np.uint64(stream)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
