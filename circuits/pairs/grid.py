"""Moving whole patches of preprocessed images: the same pixels at other places of the grid."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from mechvis.errors import BadData, BadImages

Order = Int[Tensor, "image patch"]
"""For each place of the grid (row by row) the patch that goes there."""


def grid_of(model: Any, pixels: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Patches (down, across), and (height, width) of one, for images of this size.

    Raises:
        BadData: the model reads no patches.
        BadImages: no pixels.
    """
    if model.parts.grid is None:
        raise BadData("patches can be moved for a vision model only; this tower reads text.")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4:
        raise BadImages(f"expected pixels [image channel height width], got {getattr(pixels, 'shape', type(pixels))}.")
    return model.parts.at_size(tuple(pixels.shape[2:])).grid, model.parts.patch_size


def moved(values: Tensor, order: Order, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Images or masks `[image ... height width]` with their patches in another order; pixels beyond the last whole
    patch, which no token reads, stay."""
    (down, across), (high, wide) = grid, patch
    flat = values.reshape(len(values), -1, *values.shape[-2:])
    used = flat[..., : down * high, : across * wide]
    cells = rearrange(used, "image rest (down h) (across w) -> image (down across) (rest h w)", h=high, w=wide)
    order = order.to(values.device)
    cells = cells[torch.arange(len(cells), device=values.device)[:, None], order]
    out = flat.clone()
    out[..., : down * high, : across * wide] = rearrange(
        cells,
        "image (down across) (rest h w) -> image rest (down h) (across w)",
        down=down,
        rest=flat.shape[1],
        h=high,
    )
    return out.reshape(values.shape)


def object_patches(model: Any, pixels: Tensor, masks: Tensor | None, what: str, least: int) -> list[Tensor]:
    """Patches (numbered row by row from 0) of each image's object: those most of whose pixels are the object's.

    Raises:
        BadData: no masks, or an object of too few patches.
    """
    from mechvis.patches import patch_groups

    if masks is None:
        raise BadData(f"{what} needs object masks: load the images with masks=, or pass masks= [image height width].")
    found = patch_groups(model, pixels, torch.as_tensor(masks))
    inside = found.members[:, 0, found.n_prefix :]
    patches = [row.nonzero().flatten() for row in inside.expand(len(pixels), -1)]
    if small := [i for i, own in enumerate(patches) if len(own) < least]:
        raise BadData(
            f"{what} needs objects of at least {least} patches; those of {len(small)} of {len(pixels)} images have "
            f"fewer (the first is image {small[0]}, with {len(patches[small[0]])}). Leave these images out."
        )
    return patches
