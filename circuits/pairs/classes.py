"""The two classes that a pair is about, and what the model says on both halves.

Target is the class of the clean image, contrast that of the corrupt one: the given labels, or what the model predicts
where there are none. Where both are one class (the edit did not change the class, or not the prediction), the contrast
is the best other class of the clean run, and the pair is counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.pairs.pairs import Pairs
from mechvis import metrics
from mechvis.axes import Labels
from mechvis.errors import BadData, NotFinite


@dataclass(frozen=True, kw_only=True, eq=False)
class PairClasses:
    """Logits of both halves, and the classes to measure against."""

    clean: Float[Tensor, "image class"]
    """Logits of the clean images."""
    corrupt: Float[Tensor, "image class"]
    """Logits of the corrupt images."""
    target: Labels
    """Class of each clean image."""
    contrast: Labels
    """Class of each corrupt image, never the target."""
    one_class: Bool[Tensor, " image"]
    """Both halves are of one class, so that the contrast is the clean run's best other class."""

    @property
    def undistinguished(self) -> Bool[Tensor, " image"]:
        """The model predicts one class for both halves."""
        return self.clean.argmax(-1) == self.corrupt.argmax(-1)


@torch.no_grad()
def pair_classes(model: Any, pairs: Pairs, *, batch_size: int = 64) -> PairClasses:
    """Run both halves, and settle the classes of each pair.

    Args:
        model: a wrapped model with a head.
        pairs: made for this model.
        batch_size: images per forward.

    Raises:
        BadData: no head, no `Pairs`, or labels counted by other classes than the model's.
        NotFinite: a logit is NaN or Inf.
        OutOfRange: a label that the head does not have.
    """
    if not isinstance(pairs, Pairs):
        raise BadData(
            f"pairs are made by circuits.pairs (scene_swap, object_swap, aligned, ...), got {type(pairs).__name__}."
        )
    if model.parts.head is None:
        raise BadData("pairs are judged by logits, and this model has no head. For CLIP: clip.classifier(class_names).")
    own, theirs = tuple(model.parts.class_names), pairs.class_names
    labelled = pairs.clean_labels is not None or pairs.corrupt_labels is not None
    if labelled and own and theirs and own != theirs:
        raise BadData(
            f"the labels of {pairs.name!r} count the classes {', '.join(theirs[:3])}, ...; this model's are "
            f"{', '.join(own[:3])}, .... Make the pairs for this model."
        )
    halves = []
    for what, pixels in (("clean", pairs.clean), ("corrupt", pairs.corrupt)):
        lots = (lot.to(model.device, model.dtype) for lot in pixels.split(batch_size))
        logits = torch.cat([model.run(lot).logits for lot in lots])
        bad = (~torch.isfinite(logits)).any(1)
        if bad.any():
            first = pairs.ids[int(bad.nonzero()[0])]
            raise NotFinite(f"{pairs.name}: logits of {int(bad.sum())} {what} images are NaN or Inf, first {first!r}.")
        halves.append(logits)
    clean, corrupt = halves
    target, runner_up = metrics.classes_of(clean, pairs.clean_labels)
    other, _ = metrics.classes_of(corrupt, pairs.corrupt_labels)
    one_class = other == target
    contrast = torch.where(one_class, runner_up, other)
    return PairClasses(clean=clean, corrupt=corrupt, target=target, contrast=contrast, one_class=one_class)
