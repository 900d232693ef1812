"""Names that images cannot change: a hash of the pixels.

Two tasks share an image if they share its hash, whatever the images are called and whatever is measured on them.
"""

import hashlib

import torch

from mechvis.axes import Pixels


def image_hashes(pixels: Pixels) -> tuple[str, ...]:
    """One hash per image, of its preprocessed pixels in single precision.

    Args:
        pixels: `[image channel height width]`.

    Example:
        >>> a, b = image_hashes(torch.zeros(2, 3, 4, 4))
        >>> a == b
        True
    """
    rows = pixels.detach().cpu().float().contiguous().flatten(1).view(torch.uint8).numpy()
    return tuple(hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows)
