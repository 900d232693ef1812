"""What a probe must beat: the commonest answer, the raw pixels, and the same architecture with random weights.

Accuracy at a layer is evidence about the *trained* model only as far as it exceeds these. An untrained transformer is a
random feature map of the image and is often far above chance; raw pixels know colours and places.

Random weights are :func:`mechvis.models.random_copy.random_copy`.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from mechvis.errors import BadData, OutOfRange
from mechvis.store.forward import reader

PIXEL_SIDE = 32


def majority_accuracy(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Whether the commonest training class is right, per test image: 0 or 1 `[image]`.

    Example:
        >>> majority_accuracy(np.array([0, 0, 1]), np.array([0, 1])).tolist()
        [1.0, 0.0]
    """
    values, counts = np.unique(train, return_counts=True)
    return (np.asarray(test) == values[counts.argmax()]).astype(np.float64)


def pixel_features(
    model: Any, images: Any, *, side: int = PIXEL_SIDE, batch: int = 256
) -> Float[np.ndarray, "image d"]:
    """Raw pixels as the model sees them (resized, cropped, scaled), averaged to at most `side` pixels a side.

    Args:
        model: a wrapped image tower, for its preprocessing.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        side: largest side (**X**); more columns than images make the probe slow, not better.
        batch: images at once.

    Raises:
        OutOfRange: a side below 1.
        BadData: no image.

    Example:
        >>> pixel_features(model, images).shape                                                    # doctest: +SKIP
        (256, 3072)
    """
    if side < 1:
        raise OutOfRange(f"side={side}: at least 1 pixel.")
    if not len(images):
        raise BadData("there are no images.")
    read, found = reader(model, images), []
    for start in range(0, len(images), batch):
        pixels = read(np.arange(start, min(start + batch, len(images)))).float()
        height, width = pixels.shape[2:]
        if max(height, width) > side:
            share = side / max(height, width)
            size = (max(1, round(height * share)), max(1, round(width * share)))
            pixels = nn.functional.adaptive_avg_pool2d(pixels, size)
        found.append(pixels.flatten(1).cpu().numpy())
    return np.concatenate(found)
