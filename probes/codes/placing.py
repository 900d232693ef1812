"""Where the concepts of a hierarchy lie: by images that show them, or by texts that say them.

By images: a concept's embedding is the mean of the embeddings of the images below it. The root's is the mean of all,
and becomes the origin. By texts: the embeddings of the texts, relative to their mean; vectors to explain are then
centred by a mean of images (`images=`), since texts and images lie apart.

Source: methods.md 2.6 (**N**: mean image embedding of few-shot images, or text). Embeddings are taken at unit length
first (**X**).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite
from probes.codes.hierarchy import Hierarchy, digests
from probes.codes.words import unit


def place_by_images(
    hierarchy: Hierarchy,
    embeddings: Float[np.ndarray, "image d"],
    concepts: Int[np.ndarray, " image"],
    *,
    normalise: bool = True,
    balanced: bool = False,
) -> Hierarchy:
    """Every concept at the mean of the images below it.

    Args:
        hierarchy: the concepts.
        embeddings: of labelled images.
        concepts: the lowest known concept of each image, mostly a leaf.
        normalise: embeddings at unit length first.
        balanced: a concept above the leaves is the mean of its children instead of its images, so that a child with
            many images does not pull it.

    Raises:
        BadData: a concept without an image below it; names it.
        OutOfRange: a concept that does not exist.
        ShapeMismatch, NotFinite.

    Example:
        >>> tree = place_by_images(hierarchy, clip.encode_image(images), concepts)             # doctest: +SKIP
    """
    embeddings = finite("the embeddings", np.asarray(embeddings, dtype=np.float64))
    concepts = np.asarray(concepts)
    if embeddings.ndim != 2 or concepts.shape != (len(embeddings),):
        raise ShapeMismatch(
            f"one concept per image is needed: embeddings {list(embeddings.shape)}, concepts {list(concepts.shape)}."
        )
    n = len(hierarchy.names)
    if concepts.dtype.kind not in "iu" or concepts.min() < 0 or concepts.max() >= n:
        raise OutOfRange(f"concepts are numbers 0 to {n - 1}; use hierarchy.index(name).")
    rows = unit(embeddings, "embedding") if normalise else embeddings
    total, count = np.zeros((n, rows.shape[1])), np.zeros(n)
    for node in range(n):
        below = np.isin(concepts, [node, *hierarchy.descendants(node)])
        if not below.any():
            raise BadData(f"no image shows {hierarchy.names[node]!r} or anything below it: it cannot be placed.")
        total[node], count[node] = rows[below].sum(0), below.sum()
    means = total / count[:, None]
    if balanced:
        for node in reversed(range(n)):
            if below := hierarchy.children(node):
                means[node] = means[list(below)].mean(0)
    return replace(hierarchy.placed(means), placed_by=np.unique(digests(embeddings)))


def place_by_texts(
    hierarchy: Hierarchy,
    clip: Any,
    *,
    texts: Sequence[str] | None = None,
    templates: Any = ("a photo of a {}",),
    images: Float[np.ndarray, "image d"] | None = None,
) -> Hierarchy:
    """Every concept at its text; the root at the mean of the leaves.

    Args:
        hierarchy: the concepts.
        clip: a `HookedCLIP`.
        texts: one per concept after the root, in order; default: the names.
        templates: prompts with {} for a text.
        images: embeddings of some images; their mean direction is then what is taken off vectors (`centre`), while the
            concepts stay relative to the texts' mean. None: the texts' mean is taken off both, which is right for
            explaining texts and wrong across the modality gap.

    Raises:
        ShapeMismatch: not one text per concept, or images of another width.
        BadData: a child and its parent have one embedding: the text tower does not tell them apart.

    Example:
        >>> tree = place_by_texts(hierarchy, clip, images=clip.encode_image(others))           # doctest: +SKIP
    """
    texts = list(hierarchy.names[1:] if texts is None else texts)
    if len(texts) != len(hierarchy.names) - 1:
        raise ShapeMismatch(f"{len(hierarchy.names) - 1} concepts below the root need as many texts, got {len(texts)}.")
    found = clip.prompts(texts, templates).detach().cpu().double().numpy()
    root = found[[leaf - 1 for leaf in hierarchy.leaves]].mean(0)
    placed = hierarchy.placed(np.concatenate([root[None], found]))
    if images is None:
        return placed
    images = finite("the images", np.asarray(images, dtype=np.float64))
    if images.ndim != 2 or images.shape[1] != found.shape[1]:
        raise ShapeMismatch(f"images should be [image {found.shape[1]}], got {list(images.shape)}.")
    # The differences do not depend on the origin; only what is taken off vectors does.
    return replace(placed, centre=unit(images, "image embedding").mean(0))
