"""What is known of the images that are looked at, from whatever they came as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of the images."""

    n: int
    """How many."""
    ids: tuple[str, ...]
    """Names."""
    labels: Int[np.ndarray, " image"] | None
    """Class of each."""
    classes: tuple[str, ...]
    """Names of classes."""
    groups: Int[np.ndarray, " image"] | None
    """Group of each."""
    group_names: tuple[str, ...]
    """Names of groups."""
    pixels_of: Callable[[np.ndarray], Tensor] = field(repr=False)
    """Pixels of some of them."""


def known_of(images: Any, groups: str | None, model: Any) -> Known:
    """What is known of an `ImageSet`, or of pixels.

    Args:
        images: which.
        groups: a column of the set in place of its groups.
        model: that makes pixels of them.

    Raises:
        BadData: no image, or a column of pixels.
        UnknownName: no such column.
    """
    if len(images) == 0:
        raise BadData("there are no images to look at.")
    if not isinstance(images, ImageSet):
        if groups is not None:
            raise BadData(f"groups={groups!r} is a column of an ImageSet; pixels have none.")
        return Known(
            n=len(images), ids=tuple(map(str, range(len(images)))), labels=None, classes=(), groups=None,
            group_names=(), pixels_of=lambda which: model.inputs(images[torch.as_tensor(which)]),
        )  # fmt: skip
    labels, classes = images.labels, _whole(images.class_names)
    if labels is not None and not classes:
        classes = tuple(str(i) for i in range(int(np.max(labels)) + 1))
    if groups is not None and groups not in images.columns:
        raise unknown("column of the images", groups, images.columns)
    column = images.groups if groups is None else images.columns[groups]
    names, numbers = (None, None) if column is None else np.unique(np.asarray(column).astype(str), return_inverse=True)
    return Known(
        n=len(images), ids=_whole(images.ids), labels=None if labels is None else np.asarray(labels), classes=classes,
        groups=numbers, group_names=() if names is None else _whole(names.tolist()),
        pixels_of=lambda which: model.inputs(images[which]),
    )  # fmt: skip


def _whole(names: Sequence[str]) -> tuple[str, ...]:
    """Names without half characters, as file names may have them: tables and JSON hold whole ones."""
    return tuple(str(name).encode("utf-8", "replace").decode() for name in names)
