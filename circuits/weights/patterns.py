"""Attention patterns of a data set as a stream: one pass over the images, one layer's patterns in memory at a time.

The forward runs layer by layer from the stream that the layer before left, so nothing is computed twice. A layer whose
pattern is asked for computes it explicitly; the others run as the user's model does (fused attention), and after the
last layer that is asked for nothing runs at all.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.weights.exact import model_of_one_tower
from mechvis.axes import Pattern, Residual
from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track

PATTERN_BYTES = 2**28
"""Largest pattern of one layer that is held by default, in bytes: what decides the size of a batch."""


@torch.no_grad()
def layer_patterns(model: Any, pixels: Tensor, layers: Sequence[int]) -> Iterator[tuple[int, Pattern, Residual]]:
    """Layer, pattern and the stream before the layer, for each of some layers (sorted) of one batch.

    Example:
        >>> for layer, pattern, stream in layer_patterns(model, pixels, [0, 2]):                   # doctest: +SKIP
        ...     print(layer, pattern.shape)
    """
    x, start, size = pixels, 0, tuple(pixels.shape[2:])
    for layer in layers:
        if layer > start:
            x = model.run(x, start_at_layer=start, stop_at_layer=layer, size=size).output
        sites = [f"blocks.{layer}.attn.hook_pattern", f"blocks.{layer}.hook_resid_pre"]
        run = model.run(
            x,
            start_at_layer=layer,
            stop_at_layer=layer + 1,
            capture=sites,
            size=size,
            stop_when_captured=layer == layers[-1],
        )
        yield layer, run.cache[sites[0]], run.cache[sites[1]]
        x, start = run.output, layer + 1


def each_pattern(
    model: Any,
    images: Any,
    layers: Sequence[int],
    *,
    batch_size: int | None = None,
    what: str = "patterns",
    progress: bool = True,
) -> Iterator[tuple[slice, int, Pattern, Residual]]:
    """Which images, layer, pattern and stream before the layer, batch by batch over a data set.

    Args:
        model: a wrapped vision tower.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        layers: sorted.
        batch_size: images per forward; by default as many as keep a layer's pattern below :data:`PATTERN_BYTES`.
        what: for the progress bar.
        progress: show it.

    Raises:
        BadData: no image, or a tower that reads text.
        OutOfRange: batch_size below 1.
        NotFinite: NaN or Inf in a pattern.
    """
    if model_of_one_tower(model).parts.grid is None:
        raise BadData("roles and positions are of patches; this tower reads text.")
    if len(images) == 0:
        raise BadData("there is no image to look at.")
    if batch_size is None:
        n_tokens = n_tokens_of(model, images)
        heads = max(block.attn.n_heads for block in model.parts.blocks)
        batch_size = int(np.clip(PATTERN_BYTES // (4 * heads * n_tokens**2), 1, 64))
    if batch_size < 1:
        raise OutOfRange(f"batch_size must be at least 1, got {batch_size}.")
    with track(len(images), what, " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = model.inputs(images[start : start + batch_size])
            at = slice(start, start + len(part))
            for layer, pattern, stream in layer_patterns(model, part, layers):
                yield at, layer, pattern.to(torch.promote_types(pattern.dtype, torch.float32)), stream
            bar.update(len(part))


def n_tokens_of(model: Any, images: Any) -> int:
    """Tokens per image: the model's own, or those of the pixels' size."""
    return parts_for(model, images).n_tokens


def parts_for(model: Any, images: Any) -> Any:
    """The model's parts at the size of the images that will come."""
    size = tuple(images.shape[2:]) if isinstance(images, Tensor) and images.ndim == 4 else model.parts.image_size
    return model.parts.at_size(size)
