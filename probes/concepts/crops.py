"""Crops of images, enlarged to the model's size: the pieces that CRAFT factors (methods.md 12, **C**).

Crops of a side of 64 pixels of 224 on a grid of steps of 80 % of that, so that they overlap. For a ViT the patches of
a layer are the natural pieces; crops are for sites after pooling, where an image has one row only.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange

SIDE = 64 / 224
"""A crop's side as a share of the image's."""


def crops(
    pixels: Float[Tensor, "image channel height width"], side: float = SIDE, step: float = 0.8
) -> tuple[Float[Tensor, "image place channel height width"], tuple[int, int]]:
    """Overlapping crops of each image, enlarged to the size of the image.

    Args:
        pixels: as the model takes them.
        side: side of a crop, as a share of the image's.
        step: of the grid, as a share of the crop's side.

    Returns:
        The crops, row by row, and their grid (down, across). The grid is spread evenly from edge to edge, with steps
        of at most the size asked for.

    Raises:
        OutOfRange: shares outside (0, 1], or a crop smaller than two pixels.

    Example:
        >>> pieces, grid = crops(torch.zeros(2, 3, 64, 64))
        >>> pieces.shape, grid
        (torch.Size([2, 25, 3, 64, 64]), (5, 5))
    """
    if not 0 < side <= 1 or not 0 < step <= 1:
        raise OutOfRange(f"side={side} and step={step} are shares: above 0, at most 1.")
    places = [_places(length, side, step) for length in pixels.shape[2:]]
    found = [
        torch.nn.functional.interpolate(
            pixels[:, :, y : y + places[0][1], x : x + places[1][1]],
            size=pixels.shape[2:],
            mode="bilinear",
            align_corners=False,
        )
        for y in places[0][0]
        for x in places[1][0]
    ]
    return torch.stack(found, dim=1), (len(places[0][0]), len(places[1][0]))


def _places(length: int, side: float, step: float) -> tuple[list[int], int]:
    """Where crops begin along one axis, and how long they are."""
    size = round(side * length)
    if size < 2:
        raise OutOfRange(f"crops of {size} pixels of {length}: side={side} is too small.")
    count = 1 + int(np.ceil((length - size) / (step * size) - 1e-9))
    return [round(i * (length - size) / max(count - 1, 1)) for i in range(count)], size
