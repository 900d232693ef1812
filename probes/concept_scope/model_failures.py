"""Failure modes of a wrapped classifier: its answers to one class's images, searched by tags, confirmed on others."""

from typing import Any

import numpy as np

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.labels import with_model_classes
from probes.concept_scope.failure_modes import FailureModes, failure_modes
from probes.concept_scope.tags import Tags


def failure_modes_of_model(
    model: Any,
    images: ImageSet,
    tags: Tags,
    of_class: str,
    *,
    held_out: tuple[ImageSet, Tags] | None = None,
    batch_size: int = 64,
    **settings: Any,
) -> FailureModes:
    """Failure modes of one class of a wrapped classifier.

    Args:
        model: a wrapped classifier.
        images: labelled images of any classes; those of the class are used.
        tags: of all of them, from `column_tags` or `clip_tags`.
        of_class: name of the class.
        held_out: other images with the same tags, on which the modes are confirmed.
        batch_size: images per forward.
        settings: of :func:`failure_modes` (`a`, `b`, `support`, ...).

    Raises:
        UnknownName: no such class.
        BadData: no labels, no image of the class, or other tags on the held-out images.
        ShapeMismatch: not one row of tags per image.
        SplitOverlap: held-out images that the modes were found on.

    Example:
        >>> failure_modes_of_model(model, images, column_tags(images, ["background"]), "circle")   # doctest: +SKIP
    """
    correct, of = _answers(model, images, tags, of_class, batch_size)
    confirmed = None
    if held_out is not None:
        others, other_tags = held_out
        refuse_overlap(images, others, what="images that modes are found on and confirmed on")
        if other_tags.names != tags.names:
            raise BadData("the held-out images have other tags than the images: make both in the same way.")
        right, where = _answers(model, others, other_tags, of_class, batch_size)
        confirmed = (right, other_tags[where].true)
    return failure_modes(correct, tags[of].true, tags.names, held_out=confirmed, **settings)


def _answers(model: Any, images: ImageSet, tags: Tags, of_class: str, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Is the model right about the images of a class, and which images are they?"""
    if len(tags.true) != len(images):
        raise ShapeMismatch(f"{len(images)} images but {len(tags.true)} rows of tags.")
    if images.labels is None:
        raise BadData("the images have no labels. Give class folders or a metadata table with a label column.")
    images = with_model_classes(images, model)
    if of_class not in images.class_names:
        raise unknown("class", of_class, images.class_names)
    of = np.flatnonzero(np.asarray(images.labels) == images.class_names.index(of_class))
    if not len(of):
        raise BadData(f"no image is of the class {of_class!r}.")
    guessed = []
    for start in range(0, len(of), batch_size):
        logits = model.run(images[of[start : start + batch_size]]).logits
        guessed.append(logits.argmax(-1).cpu().numpy())
    return np.concatenate(guessed) == images.class_names.index(of_class), of
