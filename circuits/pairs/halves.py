"""From two halves to `Pairs`: the last step of every constructor.

Pixels go to the model's device and type and are checked as the model checks them; pairs of which every one is the same
image twice are refused, because every effect over them is 0 / 0.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.pairs.pairs import Pairs
from mechvis.axes import Mask, Pixels
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, BadImages, OutOfRange, ShapeMismatch
from mechvis.labels import with_model_classes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Half:
    """Preprocessed images with what is known of them."""

    pixels: Pixels
    """As the model takes them."""
    labels: Any = None
    """Class index per image."""
    masks: Mask | None = None
    """Object masks at the size that the model sees."""
    ids: tuple[str, ...]
    """One name per image."""


def half_of(model: Any, images: Any, labels: Any = None, masks: Mask | None = None, what: str = "images") -> Half:
    """One half from an `ImageSet` or pixels; what is given beside a set goes before what the set says.

    Raises:
        BadImages: neither of them, or a set and a model without preprocessing.
        BadData: labels that the model does not know.
    """
    if isinstance(images, Tensor):
        return Half(pixels=images, labels=labels, masks=masks, ids=tuple(f"pair {i}" for i in range(len(images))))
    if not isinstance(images, ImageSet):
        kind = type(images).__name__
        raise BadImages(f"{what}: expected an ImageSet or pixels [image channel height width], got {kind}.")
    preprocess = preprocess_of(model)
    labels = with_model_classes(images, model).labels if labels is None else labels
    masks = images.masks_for(preprocess) if masks is None and images.read_mask is not None else masks
    return Half(pixels=images.pixels_for(preprocess), labels=labels, masks=masks, ids=images.ids)


def pairs_of(
    model: Any,
    name: str,
    clean: Pixels,
    corrupt: Pixels,
    *,
    ids: Sequence[str],
    clean_labels: Any = None,
    corrupt_labels: Any = None,
    masks: Any = None,
    corrupt_masks: Any = None,
) -> Pairs:
    """Checked `Pairs` of preprocessed halves, on the model's device and in its type.

    Raises:
        BadData: every pair is the same image twice.
        BadImages, ShapeMismatch, OutOfRange: what does not fit the model or the other half.
    """
    halves = []
    for what, pixels in (("clean", clean), ("corrupt", corrupt)):
        if not isinstance(pixels, Tensor):
            raise BadImages(f"{what}: expected pixels [image channel height width], got {type(pixels).__name__}.")
        halves.append(model.inputs(pixels.to(model.device, model.dtype)))
    made = Pairs(
        name=name,
        clean=halves[0],
        corrupt=halves[1],
        ids=tuple(ids),
        clean_labels=_labels(model, "clean_labels", clean_labels),
        corrupt_labels=_labels(model, "corrupt_labels", corrupt_labels),
        masks=_masks("masks", masks, halves[0]),
        corrupt_masks=_masks("corrupt_masks", corrupt_masks, halves[1]),
        class_names=tuple(model.parts.class_names),
    )
    same = (made.clean == made.corrupt).flatten(1).all(1)
    if bool(same.all()):
        raise BadData(
            f"{name}: all {len(made)} corrupt images are equal to their clean ones, so there is nothing to patch. Is "
            "the edit one that these images do not show (the hue of grey objects), or were the same images given twice?"
        )
    if count := int(same.sum()):
        logger.warning("%s: %d of %d corrupt images are equal to their clean ones.", name, count, len(made))
    return made


def preprocess_of(model: Any) -> Any:
    """The model's preprocessing.

    Raises:
        BadImages: it has none.
    """
    if model.preprocess is None:
        raise BadImages("this model has no image preprocessing; pass preprocess= to mechvis.load, or pixels.")
    return model.preprocess


def _labels(model: Any, what: str, labels: Any) -> Tensor | None:
    if labels is None:
        return None
    values = torch.as_tensor(np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels))
    if values.is_floating_point() or values.dtype == torch.bool or values.ndim != 1:
        raise ShapeMismatch(f"{what} are class indices [image], got {values.dtype} {list(values.shape)}.")
    values, n = values.to(model.device, torch.int64), len(model.parts.class_names)
    outside = values[(values < 0) | (values >= n)] if n else values[values < 0]
    if len(outside):
        raise OutOfRange(f"{what} hold {int(outside[0])}; the model's classes are 0 to {n - 1}.")
    return values


def _masks(what: str, masks: Any, pixels: Tensor) -> Tensor | None:
    if masks is None:
        return None
    masks = torch.as_tensor(masks)
    expected = (len(pixels), *pixels.shape[2:])
    if masks.dtype != torch.bool or tuple(masks.shape) != expected:
        raise ShapeMismatch(
            f"{what} are bool [image height width] = {list(expected)}, at the size that the model sees "
            f"(model.preprocess.masks); got {masks.dtype} {list(masks.shape)}."
        )
    return masks.to(pixels.device)
