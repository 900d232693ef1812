"""Draw small images fast: hard-edged objects on textured ground, all images of a batch at once.

Training sees fresh images at every step, so drawing must cost little beside a step of a 48,000 parameter model: all is
broadcasting over `[image height width]`. Values are rounded to bytes, so that an image saved as PNG and read again
gives the very pixels a model was trained on.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.axes import Pixels

SIZE, PATCH = 32, 8
"""Pixels of an image's and of a patch's side."""

COLOURS = torch.tensor([[0.85, 0.15, 0.15], [0.15, 0.70, 0.15], [0.15, 0.25, 0.90], [0.85, 0.75, 0.10]])
"""Red, green, blue, yellow."""
COLOUR_NAMES = ("red", "green", "blue", "yellow")

Plane = Float[Tensor, "image height width"]
PerImage = Float[Tensor, " image"]


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> PerImage:
    """One number per image, uniform in [low, high)."""
    return low + (high - low) * torch.rand(n, generator=generator)


def _axes(*values: PerImage) -> list[Tensor]:
    """Per-image numbers, ready to broadcast over pixels."""
    return [value[:, None, None] for value in values]


def _centres() -> tuple[Tensor, Tensor]:
    """(row, column) of pixel centres, `[height 1]` and `[1 width]`."""
    at = torch.arange(SIZE, dtype=torch.float32)
    return at[:, None], at[None, :]


def disc(down: PerImage, across: PerImage, radius: PerImage) -> Bool[Tensor, "image height width"]:
    """Discs around (down, across), in pixels."""
    rows, columns = _centres()
    down, across, radius = _axes(down, across, radius)
    return (rows - down) ** 2 + (columns - across) ** 2 <= radius**2


def cross(down: PerImage, across: PerImage, radius: PerImage, width: PerImage) -> Bool[Tensor, "image height width"]:
    """Upright crosses whose arms reach `radius` and are `2 width` wide."""
    rows, columns = _centres()
    down, across, radius, width = _axes(down, across, radius, width)
    y, x = (rows - down).abs(), (columns - across).abs()
    return ((y <= radius) & (x <= width)) | ((x <= radius) & (y <= width))


def stripes(kind: Int[Tensor, " image"], phase: Float[Tensor, "image 2"], period: PerImage) -> Plane:
    """Textures in {-1, 1}: 0 horizontal stripes, 1 vertical stripes, 2 a checkerboard of the two."""
    rows, columns = _centres()
    period, down, across = _axes(period, phase[:, 0], phase[:, 1])
    horizontal = torch.where(((rows / period + down) % 1) < 0.5, 1.0, -1.0)
    vertical = torch.where(((columns / period + across) % 1) < 0.5, 1.0, -1.0)
    which = kind[:, None, None]
    return torch.where(which == 0, horizontal, torch.where(which == 1, vertical, horizontal * vertical))


def paint(
    ground: Plane,
    objects: list[tuple[Bool[Tensor, "image height width"], Float[Tensor, "image channel"]]],
    noise: Plane,
) -> Pixels:
    """Coloured objects on grey ground, with noise that is the same in all channels.

    Args:
        ground: grey values in [0, 1].
        objects: masks and colours in [0, 1]; later ones lie above earlier ones.
        noise: added everywhere.

    Returns:
        What a model reads: bytes, minus 127.5, over 127.5.
    """
    image = ground[:, None].expand(-1, 3, -1, -1)
    for mask, colour in objects:
        image = torch.where(mask[:, None], colour[:, :, None, None], image)
    return ((image + noise[:, None]).clamp(0, 1) * 255).round() / 127.5 - 1
