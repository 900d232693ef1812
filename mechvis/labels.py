"""Labels of images and classes of a model, matched by name.

Folders number their classes alphabetically, models as they were trained. A wrong numbering gives plausible numbers
about nothing, so studies and sweeps renumber labels by name, and refuse a class that the model does not know.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.errors import BadData


def with_model_classes(images: ImageSet, model: Any) -> ImageSet:
    """The same images with labels counted as the model counts its classes.

    Nothing is done where the names are not known: images without labels or class names, models without class names (or
    with Hugging Face's stand-ins `LABEL_0`, `LABEL_1`, ...). Labels then count as they are.

    Args:
        images: with or without labels.
        model: a wrapped model with a head.

    Raises:
        BadData: the model has named classes, and an image's class is none of them.

    Example:
        >>> with_model_classes(folder_images, model).class_names == model.parts.class_names       # doctest: +SKIP
        True
    """
    classes = tuple(model.parts.class_names)
    unnamed = not classes or all(name == f"LABEL_{i}" for i, name in enumerate(classes))
    if images.labels is None or unnamed or not images.class_names or images.class_names == classes:
        return images
    if len(set(classes)) != len(classes):
        raise BadData("the model has two classes of one name, so labels cannot be matched by name.")
    known = {name: i for i, name in enumerate(classes)}
    used = [images.class_names[i] for i in np.unique(images.labels)]
    if strange := [name for name in used if name not in known]:
        raise BadData(
            f"{images.name!r} has the class {strange[0]!r} ({len(strange)} of {len(used)} are unknown to the model). "
            f"The model's classes: {', '.join(classes[:20])}{' ...' if len(classes) > 20 else ''}. Rename the classes, "
            "or measure against the model's own predictions with labels='predicted' (--labels predicted)."
        )
    place = np.array([known.get(name, -1) for name in images.class_names])
    return replace(images, labels=place[images.labels], class_names=classes)
