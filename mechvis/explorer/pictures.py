"""Small pictures of what a model sees, each as a JPEG or PNG file in few bytes."""

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

QUALITY = 80
"""Of JPEG files."""


def colours(pixels: Tensor, preprocess: Any = None) -> UInt8[np.ndarray, "image height width channel"]:
    """Pixels as pictures: what the model sees, resized and cropped, so that patches lie where they belong.

    Without a preprocessing nothing says what the numbers mean, and each image is stretched from its least to its
    largest value.
    """
    if preprocess is not None:
        shown = preprocess.unnormalise(pixels)
    else:
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        shown = (pixels - low) / (high - low).clamp_min(1e-12)
    return (shown * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()


def picture(image: UInt8[np.ndarray, "height width channel"], longest: int) -> bytes:
    """A small picture: PNG or JPEG, whichever has fewer bytes.

    Args:
        image: one or three channels.
        longest: its longest side, in pixels; smaller images stay as they are.
    """
    from PIL import Image

    drawn = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image[..., :3]))
    if max(drawn.size) > longest:
        scale = longest / max(drawn.size)
        size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
        drawn = drawn.resize(size, Image.Resampling.LANCZOS)
    files = []
    for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": QUALITY, "optimize": True})):
        buffer = io.BytesIO()
        drawn.save(buffer, form, **options)
        files.append(buffer.getvalue())
    return min(files, key=len)
