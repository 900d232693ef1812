"""Tags of images for a search of failure modes: from known columns, or from a CLIP model's text scores.

A text is true of an image if its score lies above a threshold of its own (methods2.md 17.9): Otsu's, which splits the
scores of one text into two groups that are as even inside as possible. A text that is true of no image, or of all,
still gets a threshold, so `separation` says how far the two groups lie apart: compare it with what one group alone
gives (0.64 of the variance for a normal distribution).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, NotFinite, unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class Tags:
    """What is true of each image."""

    names: tuple[str, ...]
    """Name of each tag."""
    true: Bool[np.ndarray, "image tag"]
    """Is it true of the image?"""
    separation: Float[np.ndarray, " tag"] | None = None
    """For tags from scores: share of the variance between the two groups; 0.64 for one normal group."""

    def __getitem__(self, images: np.ndarray | slice) -> "Tags":
        """The tags of some images."""
        return Tags(names=self.names, true=self.true[images], separation=self.separation)


def column_tags(images: ImageSet, columns: Sequence[str]) -> Tags:
    """One tag per value of known columns, e.g. `background=striped`.

    Args:
        images: with columns of few different values.
        columns: their names.

    Raises:
        UnknownName: no such column.
        BadData: no column, or one of numbers that differ from image to image.

    Example:
        >>> import mechvis
        >>> column_tags(mechvis.data.scenes(n=64, seed=0), ["colour"]).names[0]
        'colour=blue'
    """
    if not columns:
        raise BadData("no column is named: there are no tags.")
    names, true = [], []
    for column in columns:
        if column not in images.columns:
            raise unknown("column", column, images.columns)
        values = np.asarray(images.columns[column])
        kinds = np.unique(values)
        if len(kinds) > 64:
            raise BadData(f"the column {column!r} has {len(kinds)} different values: bin it before it becomes tags.")
        names += [f"{column}={kind}" for kind in kinds]
        true += [values == kind for kind in kinds]
    return Tags(names=tuple(names), true=np.stack(true, axis=1))


def clip_tags(clip: Any, images: ImageSet, texts: Sequence[str], *, batch_size: int = 256) -> Tags:
    """Tags from a CLIP model: texts whose cosine with the image lies above the text's own Otsu threshold.

    Args:
        clip: a `HookedCLIP`.
        images: what is tagged; thresholds are made on these images.
        texts: one per tag, as the model knows texts ("a striped background").
        batch_size: images that go through the model together.

    Raises:
        BadData: no text, or scores that are the same for all images.

    Example:
        >>> clip_tags(clip, images, ["a striped background", "a red object"])                      # doctest: +SKIP
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise BadData("no texts: there are no tags.")
    scores = clip.encode_image(images, batch_size=batch_size) @ clip.encode_text(texts).T
    scores = scores.double().cpu().numpy()
    found = [otsu(column) for column in scores.T]
    true = scores > np.array([threshold for threshold, _ in found])
    return Tags(names=tuple(texts), true=true, separation=np.array([separation for _, separation in found]))


def otsu(values: Float[np.ndarray, " value"]) -> tuple[float, float]:
    """Otsu's threshold (1979, **K**) by all splits of the sorted values, and the share of the variance between groups.

    Raises:
        NotFinite: NaN or Inf.
        BadData: fewer than two different values.

    Example:
        >>> threshold, separation = otsu(np.array([0.0, 0.1, 0.9, 1.0]))
        >>> round(threshold, 6), separation > 0.9
        (0.5, True)
    """
    ordered = np.sort(np.asarray(values, np.float64))
    if not np.isfinite(ordered).all():
        raise NotFinite("scores hold NaN or Inf.")
    if not len(ordered) or ordered[0] == ordered[-1]:
        raise BadData("the scores are the same for all images: there is no threshold between them.")
    n = len(ordered)
    below = np.arange(1, n)
    sums = np.cumsum(ordered)[:-1]
    between = below * (n - below) * (sums / below - (ordered.sum() - sums) / (n - below)) ** 2 / n**2
    # Equal values cannot be split.
    between = np.where(ordered[1:] > ordered[:-1], between, -1.0)
    place = int(between.argmax())
    return float((ordered[place] + ordered[place + 1]) / 2), float(between[place] / ordered.var())
