"""Shape edit: the object's patches in another order. Every patch keeps its content, so colours and local texture stay,
and the shape goes.

The patches are those most of whose pixels are the object's. They are moved on a random cycle through all of them, so
that none stays where it was. Source: methods.md 5.8, 3 (**X**).
"""

from typing import Any

import torch

from circuits.pairs.grid import grid_of, moved, object_patches
from circuits.pairs.halves import half_of, pairs_of
from circuits.pairs.pairs import Pairs
from mechvis.axes import Mask, Pixels
from mechvis.data.images import ImageSet


def patch_shuffle(
    model: Any, images: ImageSet | Pixels, *, labels: Any = None, masks: Mask | None = None, seed: int = 0
) -> Pairs:
    """Pairs whose corrupt half has the patches of its object shuffled.

    Args:
        model: a wrapped model.
        images: an `ImageSet` with masks, or preprocessed pixels.
        labels: class index per image, for pixels.
        masks: object masks at the size that the model sees, for pixels.
        seed: of the order.

    Returns:
        Pairs: the corrupt half has no label; the model's prediction counts. Its masks have moved along.

    Raises:
        BadData: no masks, or an object of a single patch.

    Example:
        >>> pairs = patch_shuffle(model, images, seed=1)                                           # doctest: +SKIP
    """
    half = half_of(model, images, labels, masks)
    grid, patch = grid_of(model, half.pixels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(grid[0] * grid[1]).repeat(len(half.pixels), 1)
    for row, own in zip(order, object_patches(model, half.pixels, half.masks, "patch shuffle", 2), strict=True):
        cycle = own[torch.randperm(len(own), generator=generator)]
        row[cycle] = cycle.roll(1)
    masks = torch.as_tensor(half.masks)
    return pairs_of(
        model,
        "patch shuffle of the object",
        half.pixels,
        moved(half.pixels, order, grid, patch),
        ids=half.ids,
        clean_labels=half.labels,
        masks=masks,
        corrupt_masks=moved(masks, order, grid, patch),
    )
