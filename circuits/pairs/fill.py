"""Closing the hole that an object leaves: every pixel of it takes the colour of something around it."""

from typing import Literal

import numpy as np

from mechvis.errors import unknown

Fill = Literal["nearest", "mean"]
FILLS = ("nearest", "mean")


def without(image: np.ndarray, hole: np.ndarray, fill: Fill = "nearest") -> np.ndarray:
    """An image without the pixels of a hole.

    Args:
        image: uint8 `[height width channel]`.
        hole: bool `[height width]`; something must be left around it.
        fill: `nearest`: the nearest pixel outside (keeps local colours, makes streaks of a texture); `mean`: the mean
            colour outside (no streaks, but a patch that no photo has).

    Raises:
        UnknownName: another fill.

    Example:
        >>> image = np.array([[[10], [20], [30]]], np.uint8)
        >>> without(image, np.array([[False, True, True]])).ravel().tolist()
        [10, 10, 10]
    """
    from scipy.ndimage import distance_transform_edt

    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)
    filled = image.copy()
    if not hole.any():
        return filled
    if fill == "mean":
        filled[hole] = np.round(image[~hole].mean(0)).astype(np.uint8)
    else:
        nearest = distance_transform_edt(hole, return_distances=False, return_indices=True)
        filled[hole] = image[tuple(nearest[:, hole])]
    return filled
