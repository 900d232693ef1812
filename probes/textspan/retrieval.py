"""Which images are alike by one head? Retrieval by a property, beside the whole embedding and chance. (methods.md 2.3)

Two images are compared by the cosine of what a head writes for them, each minus the mean over the images (without it,
what all images share decides). If a head is about colour, an image's neighbours by that head have its colour, whatever
else they show.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mechvis import stats
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from probes.textspan.reading import LAYERS, Layers, chosen, read, tower_of
from probes.textspan.tasks import Task, check_tasks

WHOLE = "whole embedding"

WORDS = {
    "by": "what images are compared by",
    "task": "the property that neighbours should share",
    "precision": "share of the k nearest images that have the property of the image, mean over images",
    "low": "lower end of the 95 % interval over images",
    "high": "upper end of the interval",
    "chance": "the same for neighbours drawn at random",
    "n": "images",
}


def neighbours(
    vectors: Float[np.ndarray, "image d"], k: int, *, center: bool = True, chunk: int = 1024
) -> Int[np.ndarray, "image k"]:
    """The `k` images with the largest cosine to each image, nearest first; never the image itself.

    Args:
        vectors: one per image.
        k: how many.
        center: take the mean over images off first.
        chunk: images compared at once; bounds the memory.

    Raises:
        OutOfRange: not between 1 and the number of other images.
        ShapeMismatch, NotFinite.

    Example:
        >>> neighbours(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]]), 1).ravel()
        array([1, 0, 3, 2])
    """
    vectors = np.asarray(vectors, float)
    if vectors.ndim != 2:
        raise ShapeMismatch(f"vectors need the axes [image d], got the shape {list(vectors.shape)}.")
    if not 1 <= k < len(vectors):
        raise OutOfRange(f"k={k}: there are {len(vectors) - 1} other images.")
    vectors = finite("the vectors", vectors - vectors.mean(0) if center else vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    found = np.empty((len(unit), k), dtype=np.int64)
    for start in range(0, len(unit), chunk):
        cosine = unit[start : start + chunk] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        best = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(-cosine, best, axis=1).argsort(axis=1, kind="stable")
        found[start : start + chunk] = np.take_along_axis(best, order, axis=1)
    return found


def retrieval(
    clip: Any,
    images: ImageSet,
    tasks: Mapping[str, Task],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    k: int = 10,
    center: bool = True,
    layers: Layers = LAYERS,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Record:
    """Precision of the nearest neighbours by each head, by groups of heads, and by the whole embedding.

    Args:
        clip: a wrapped CLIP model.
        images: the images to look through; each is a query among the others.
        tasks: properties of these images.
        groups: name -> heads whose writes are added up; besides every head of the layers.
        k: neighbours.
        center: take the mean over images off first.
        layers: whose heads.
        batch_size: images per forward pass.
        seed: of the intervals.
        progress: show a progress bar.

    Returns:
        Record: one row per head (or group, or the whole embedding) and property.

    Raises:
        OutOfRange, UnknownName, ShapeMismatch, BadData.

    Example:
        >>> retrieval(clip, images, tasks, groups=found.labels()).pick(by="colour", task="colour")  # doctest: +SKIP
    """
    tower = tower_of(clip)
    if not isinstance(images, ImageSet):
        raise BadData("retrieval needs an ImageSet: it is judged by what is known of the images.")
    heads, whole, names = [], [], ()
    for batch in read(clip, images, layers=layers, batch_size=batch_size, progress=progress):
        heads.append(batch.heads)
        whole.append(batch.whole)
        names = batch.names
    values, embedding = np.concatenate(heads), np.concatenate(whole)
    check_tasks(tasks, len(images), embedding.shape[1])
    vectors = {name: values[:, [place]].sum(1) for place, name in enumerate(names)}
    vectors |= {group: values[:, chosen(names, these)].sum(1) for group, these in (groups or {}).items()}
    vectors[WHOLE] = embedding
    rows = []
    for name, each in vectors.items():
        near = neighbours(each, k, center=center)
        for task_name, task in tasks.items():
            same = (task.target[near] == task.target[:, None]).mean(1)
            found = stats.bootstrap(same, seed=seed)
            rows.append(
                {"by": name, "task": task_name, "precision": found.effect[0], "low": found.low[0]}
                | {"high": found.high[0], "chance": chance(task), "n": len(images)}
            )
    return Record(
        kind="retrieval",
        title=f"Nearest images by head, {k} of {len(images)}",
        tables={"heads": pl.DataFrame(rows)},
        facts={"n": len(images), "k": k, "center": center},
        words=WORDS,
        caveats=(
            "Images are queries among themselves: intervals are over queries, with the other images as they are.",
        ),
        provenance=provenance(model=tower, images=images, seed=seed),
    )


def chance(task: Task) -> float:
    """Share of other images that have the property of an image, mean over images."""
    counts = np.bincount(task.target)
    n = len(task.target)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))
