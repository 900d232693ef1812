"""What a model answers on images, as numbers per image: what every row of a before/after table is made of."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.head_scores import views_of
from circuits.information import ORIGINAL, Fill, information
from mechvis import metrics
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, EffectlessEdit, NotFinite
from mechvis.labels import with_model_classes

Run = Callable[[Tensor], Tensor]
PerImage = Float[np.ndarray, " image"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known about the images, and what they are measured against."""

    images: ImageSet
    """Labelled images, labels counted as the model counts its classes."""
    target: Tensor
    """The label of each image."""
    contrast: Tensor
    """The best other class before the edit."""
    clean: Float[Tensor, "image class"]
    """Logits before the edit, float64."""
    metric_name: str
    """Name of the metric."""
    metric: Callable
    """See `mechvis.metrics`."""

    @property
    def labels(self) -> np.ndarray:
        """The label of each image."""
        return np.asarray(self.images.labels)

    @property
    def groups(self) -> np.ndarray | None:
        """Group of each image, where known."""
        return None if self.images.groups is None else np.asarray(self.images.groups).astype(str)

    def class_name(self, index: int) -> str:
        """Name of a class."""
        names = self.images.class_names
        return names[index] if index < len(names) else str(index)


@torch.no_grad()
def answers(
    run: Run, model: Any, images: ImageSet, *, masks: bool, fill: Fill = "mean", batch_size: int = 32
) -> Float[Tensor, "view image class"]:
    """Logits of the images; with masks of their three views (original, without context, without object), float64.

    Args:
        run: pixels to logits.
        model: the wrapped model whose preprocessing, device and type count.
        images: with masks, if `masks`.
        masks: look at the three views.
        fill: what removed pixels become.
        batch_size: images per batch.

    Raises:
        BadData: a model without image preprocessing.
        NotFinite: the output is NaN or Inf.
    """
    if model.preprocess is None:
        raise BadData("this model has no image preprocessing; pass preprocess= to mechvis.load.")
    views = views_of(model, images, images.masks_for(model.preprocess), fill) if masks else None
    found = []
    for start in range(0, len(images), batch_size):
        part = range(start, min(start + batch_size, len(images)))
        if views is None:
            seen = images[part.start : part.stop].pixels_for(model.preprocess)[None]
        else:
            seen = views(part)
        pixels = model.inputs(seen.flatten(0, 1).to(model.device, model.dtype))
        with warnings.catch_warnings():
            # Random edits meet heads that do nothing, and so may the edit itself: the table says it.
            warnings.simplefilter("ignore", EffectlessEdit)
            logits = run(pixels)
        if not torch.isfinite(logits).all():
            raise NotFinite(f"the output is NaN or Inf on one of the images {part.start} to {part.stop - 1}.")
        found.append(logits.double().cpu().unflatten(0, (len(seen), len(part))))
    return torch.cat(found, dim=1)


def known_of(images: Any, model: Any, clean: Float[Tensor, "view image class"], metric: str | Callable) -> Known:
    """What is known about images, with the classes that they are measured against.

    Args:
        images: labelled.
        model: whose classes count.
        clean: the answers of the unedited model.
        metric: name or function.
    """
    target, contrast = metrics.classes_of(clean[ORIGINAL], images.label_tensor)
    name, function = metrics.get(metric)
    return Known(
        images=images,
        target=target,
        contrast=contrast,
        clean=clean[ORIGINAL],
        metric_name=name,
        metric=function,
    )


def checked_images(images: Any, model: Any) -> ImageSet:
    """Labelled images, with the labels counted as the model counts its classes.

    Raises:
        BadData: no `ImageSet`, no labels, a class that the model does not know, or a model without a head.
    """
    if model.parts.head is None:
        raise BadData(
            "an edit is judged by what the model answers, and this one has no head. For CLIP: "
            "clip.classifier(class_names)."
        )
    if not isinstance(images, ImageSet):
        raise BadData(f"an edit is judged on an ImageSet with labels, got {type(images).__name__}.")
    if images.labels is None:
        raise BadData(f"{images.name!r} has no labels, so there is no accuracy to compare.")
    return with_model_classes(images, model)


def columns(logits: Float[Tensor, "view image class"], known: Known) -> dict[str, PerImage]:
    """Numbers per image by name; those of the views only where there are views."""
    own = logits[ORIGINAL]
    log_q = own.log_softmax(-1)
    found = {
        "correct": (own.argmax(-1) == known.target).double(),
        "metric": known.metric(own, known.target, known.contrast, known.clean).double(),
        "nll": -log_q.gather(-1, known.target[:, None])[:, 0],
        "confidence": log_q.max(-1).values.exp(),
        "kl": -metrics.kl(own, known.target, known.contrast, known.clean),
    }
    if len(logits) > 1:
        seen = information(logits, known.target)
        found |= {name: getattr(seen, name) for name in ("big", "fig", "object_only", "context_only")}
    values = {name: value.cpu().numpy() for name, value in found.items()}
    for name, value in values.items():
        if not np.isfinite(value).all():
            image = known.images.ids[int(np.argmin(np.isfinite(value)))]
            raise NotFinite(f"{known.metric_name if name == 'metric' else name} is NaN or Inf on image {image!r}.")
    return values
