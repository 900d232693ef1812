"""What a reading should find: a class index per image, from labels, a column, names or numbers; and CLIP with texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.labels import with_model_classes


def with_texts(model: Any, texts: Sequence[str] | None, templates: Any) -> Any:
    """The model itself, or a CLIP's image tower with these texts as its classes.

    Raises:
        BadData: texts for a model that is no CLIP, or a CLIP (or a tower without a head) without texts.
    """
    if hasattr(model, "classifier"):
        if texts is None:
            raise BadData("a lens on CLIP needs texts=, which become the classes (or pass clip.classifier(names)).")
        return model.classifier(list(texts), templates)
    if texts is not None:
        raise BadData(f"texts= are for CLIP; {type(model).__name__} has its own classes.")
    if model.parts.head is None:
        raise BadData(
            f"{model.parts.family} has no head, so there is no answer to read. For CLIP: clip.classifier(texts)."
        )
    return model


def targets_of(
    model: Any, images: Any, target: str | Sequence[Any] | np.ndarray | Tensor | None, n_classes: int
) -> Int[Tensor, " image"] | None:
    """Class index per image.

    Args:
        model: a wrapped image tower with a head.
        images: an `ImageSet` or pixels.
        target: None: the labels, where there are any; the name of a column of the images; or one entry per image. Names
            are looked up in the model's classes; where a column's names are none of them, an error says so.
        n_classes: of the head.

    Returns:
        Indices, or None without labels.

    Raises:
        BadData: pixels and the name of a column, or names for a model whose classes have none.
        UnknownName: no such column, or a name that is no class of the model.
        ShapeMismatch: not one target per image.
        OutOfRange: an index that is no class.
    """
    if target is None or (isinstance(target, str) and target == "label"):
        known = images.labels if isinstance(images, ImageSet) else None
        if known is None:
            if target is None:
                return None
            raise BadData("target='label': the images have no labels.")
        target = with_model_classes(images, model).labels
    elif isinstance(target, str):
        if not isinstance(images, ImageSet):
            raise BadData(f"target={target!r} names a column; pixels have none. Give an ImageSet, or the targets.")
        columns = {**images.columns, **({} if images.groups is None else {"group": images.groups})}
        if target not in columns:
            raise unknown("column", target, ["label", *columns])
        target = columns[target]
    values = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
    if values.shape != (len(images),):
        raise ShapeMismatch(f"{len(images)} images need as many targets, got {list(values.shape)}.")
    if values.dtype.kind in "US":
        values = _by_name(values, tuple(model.parts.class_names))
    if values.dtype.kind not in "iu":
        raise BadData(f"targets are class indices or names, got {values.dtype} values.")
    if values.min() < 0 or values.max() >= n_classes:
        raise OutOfRange(f"targets from {values.min()} to {values.max()}: the model has {n_classes} classes.")
    return torch.from_numpy(values.astype(np.int64))


def _by_name(values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    if not names:
        raise BadData("targets by name need a model whose classes have names; give class indices.")
    place = {name: i for i, name in enumerate(names)}
    strange = sorted(set(values.tolist()) - set(place))
    if strange:
        raise unknown("class", strange[0], names)
    return np.array([place[value] for value in values.tolist()])
