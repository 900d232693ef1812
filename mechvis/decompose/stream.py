"""Terms of many images, batch by batch: nothing is kept but what the caller keeps.

A ViT-L/14 has 384 heads of 768 numbers per image: 59 GB for 50,000 images (methods.md 2.1). Covariances, means and
sums of terms need one batch in memory.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mechvis.decompose.readout import Of
from mechvis.decompose.terms import Convention, Pooling, Terms, fix, terms
from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.store.forward import reader


def stream(
    model: Any,
    images: Any,
    *,
    layers: int | Iterable[int] | None = None,
    of: Of = "output",
    convention: Convention = "linear",
    pooling: Pooling = "heads",
    tokens: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[tuple[np.ndarray, Terms]]:
    """Split the output of many images, a batch at a time.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        layers: see :func:`mechvis.decompose.terms`; likewise `of`, `convention`, `pooling`, `tokens`.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Yields:
        Positions of the images of a batch, and their :class:`~mechvis.decompose.terms.Terms`.

    Raises:
        OutOfRange: no image per batch.
        BadData: no images.
        And what :func:`mechvis.decompose.terms` raises.

    Example:
        >>> for where, found in stream(model, images, layers=-2):                      # doctest: +SKIP
        ...     total[where] = found["L3H1"]
    """
    if batch_size < 1:
        raise OutOfRange(f"batch_size={batch_size}: give at least 1.")
    if len(images) == 0:
        raise BadData("no images to decompose.")
    fixed = fix(model, layers=layers, of=of, convention=convention, pooling=pooling, tokens=tokens)
    read = reader(model, images)
    with track(len(images), "decompose", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = np.arange(start, min(start + batch_size, len(images)))
            yield part, terms(model, read(part), fixed=fixed)
            bar.update(len(part))
