"""Matched images: for each the most similar one of another class, by the features of an early layer.

The general pair when nothing can be cut or edited. Two images that look alike to the first blocks differ in more than
their class, so an effect over such pairs is about everything that differs; the more candidates, the closer the match.

Features are the patches' part of the stream before a block, token by token, so that likeness includes the layout; the
distance is Euclidean. Source: methods.md 5.8, 5 (**X**).
"""

from typing import Any

import torch
from torch import Tensor

from circuits.pairs.halves import half_of, pairs_of
from circuits.pairs.pairs import Pairs
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, BadImages, OutOfRange


@torch.no_grad()
def nearest_other_class(
    model: Any,
    images: ImageSet,
    *,
    candidates: ImageSet | None = None,
    layer: int | None = None,
    batch_size: int = 64,
) -> Pairs:
    """Pairs of each image and its nearest neighbour of another class.

    Args:
        model: a wrapped model.
        images: with labels. Their features are kept: tokens x d_model numbers per image.
        candidates: where neighbours are looked for, with labels; default: the images themselves.
        layer: features are taken before this block; default: after a quarter of the blocks, at least one.
        batch_size: images per forward.

    Raises:
        BadData: no labels, or a single class.
        OutOfRange: no such layer.

    Example:
        >>> pairs = nearest_other_class(model, test_images, candidates=train_images)               # doctest: +SKIP
    """
    for given in (images, images if candidates is None else candidates):
        if not isinstance(given, ImageSet):
            raise BadImages(f"matched images are looked for in an ImageSet, got {type(given).__name__}.")
        if given.labels is None:
            raise BadData(f"matched images need labels, and {given.name!r} has none.")
    n_layers = len(model.parts.blocks)
    layer = max(1, n_layers // 4) if layer is None else layer
    if not 0 <= layer <= n_layers:
        raise OutOfRange(f"layer {layer}: features are taken before a block, 0 to {n_layers}.")
    half = half_of(model, images)
    other = half if candidates is None else half_of(model, candidates)
    labels, other_labels = (torch.as_tensor(part.labels) for part in (half, other))
    nearest = torch.full((len(labels),), -1)
    smallest = torch.full((len(labels),), float("inf"), dtype=torch.float64)
    features = torch.cat([_features(model, part, layer) for part in half.pixels.split(batch_size)])
    for start in range(0, len(other_labels), batch_size):
        lot = slice(start, start + batch_size)
        theirs = features[lot] if candidates is None else _features(model, other.pixels[lot], layer)
        distance = torch.cdist(features.double(), theirs.double()).cpu()
        distance[labels[:, None] == other_labels[lot]] = float("inf")
        least, at = distance.min(1)
        closer = least < smallest
        nearest[closer], smallest[closer] = at[closer] + start, least[closer]
    if (nearest < 0).any():
        alone = int(labels[nearest < 0][0])
        raise BadData(f"all candidates are of class {alone}, so images of that class have no neighbour of another.")
    return pairs_of(
        model,
        "nearest image of another class",
        half.pixels,
        other.pixels[nearest],
        ids=half.ids,
        clean_labels=half.labels,
        corrupt_labels=other_labels[nearest],
        masks=half.masks,
        corrupt_masks=None if other.masks is None else other.masks[nearest],
    )


def _features(model: Any, pixels: Tensor, layer: int) -> Tensor:
    stream = model.run(pixels.to(model.device, model.dtype), stop_at_layer=layer).output
    return stream[:, len(model.parts.prefix) :].flatten(1)
