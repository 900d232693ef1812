"""What is known of a model's answers without looking inside: the baselines that a circuit score must beat.

Average confidence and negative entropy need no labels; accuracy does. ATC (average thresholded confidence) transfers
labels: the confidence above which as many reference images lie as are classified correctly, and then the share of the
new images above it, an estimate of their accuracy. All are per image, higher = better, with the mean over images as
the score (methods.md 4.2 **N**; ATC's rule **K**).
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, NotFinite
from mechvis.labels import with_model_classes

Answers = dict[str, Float[np.ndarray, " image"]]


@torch.no_grad()
def answers(model: Any, images: Any, batch_size: int = 64) -> Answers:
    """What the model answers: `confidence` (probability of the predicted class), `negative_entropy` (nats, at most 0)
    and, where the images have labels, `accuracy` (1 or 0), per image.

    Args:
        model: a wrapped model with a head.
        images: an `ImageSet` or pixels.
        batch_size: images per forward.

    Raises:
        BadData: the model has no head, or an image's class is none of the model's.
        NotFinite: logits with NaN or Inf.

    Example:
        >>> answers(model, images)["confidence"].mean()                                            # doctest: +SKIP
    """
    if model.parts.head is None:
        raise BadData("this model has no head, so it gives no answers. For CLIP use clip.classifier(names).")
    labels = None
    if isinstance(images, ImageSet) and images.labels is not None:
        labels = np.asarray(with_model_classes(images, model).labels)
    found: dict[str, list[np.ndarray]] = {"confidence": [], "negative_entropy": [], "accuracy": []}
    pixels = None if isinstance(images, ImageSet) else model.inputs(images)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        some = model.inputs(images[rows]) if pixels is None else pixels[rows]
        logits = model.run(some).output
        if not torch.isfinite(logits).all():
            raise NotFinite(
                f"the model's logits hold NaN or Inf on one of the images {start} to {start + len(some) - 1}."
            )
        log_p = logits.double().log_softmax(-1)
        p = log_p.exp()
        found["confidence"].append(p.amax(-1).cpu().numpy())
        # A class of probability 0 adds nothing, where 0 times -inf would be NaN.
        found["negative_entropy"].append(torch.xlogy(p, p).sum(-1).cpu().numpy())
        if labels is not None:
            found["accuracy"].append((logits.argmax(-1).cpu().numpy() == labels[rows]).astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


def thresholded_confidence(reference: Answers, other: Answers) -> Float[np.ndarray, " image"]:
    """ATC: 1 for each new image whose confidence reaches the threshold of the reference images.

    Args:
        reference: answers on labelled images.
        other: answers on the new ones.

    Raises:
        BadData: the reference has no labels.

    Example:
        >>> known = {"confidence": np.array([0.9, 0.8, 0.6, 0.5]), "accuracy": np.array([1.0, 1.0, 1.0, 0.0])}
        >>> thresholded_confidence(known, {"confidence": np.array([0.7, 0.55])})
        array([1., 0.])
    """
    if "accuracy" not in reference:
        raise BadData("ATC sets its threshold by labelled images, and the reference set has no labels.")
    known = np.sort(reference["confidence"])
    wrong = round((1 - reference["accuracy"].mean()) * len(known))
    threshold = known[wrong] if wrong < len(known) else np.inf
    return (other["confidence"] >= threshold).astype(np.float64)
