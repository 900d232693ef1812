"""What comes out of a model as scores of labels: cosines with texts, or logits of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData

Scores = Float[Tensor, "row label"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A model, and how its output is read."""

    model: Any
    """The wrapped tower that is run."""
    labels: tuple[str, ...]
    """What scores are about."""
    scores: Callable[[Float[Tensor, "row out"]], Scores]
    """Output to scores, larger where a label fits better."""
    kind: Literal["text", "class"]
    """Cosines with texts, or centred logits."""

    def explain(self, change: Float[Tensor, "row label"], top: int) -> list[list[str]]:
        """The labels whose score rises most, per row."""
        order = change.topk(min(top, len(self.labels)), dim=1).indices.tolist()
        return [[self.labels[j] for j in row] for row in order]


def text_reader(clip: Any, texts: Sequence[str]) -> Reader:
    """Cosines of the image embedding with texts.

    Args:
        clip: a `HookedCLIP`.
        texts: the vocabulary.

    Raises:
        BadData: fewer than two texts, or one twice.
    """
    texts = tuple(texts)
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise BadData(f"a vocabulary has at least two different texts, got {len(texts)} ({len(set(texts))} different).")
    anchors = clip.encode_text(list(texts)).detach()

    def scores(output: Tensor) -> Tensor:
        return torch.nn.functional.normalize(output, dim=-1) @ anchors.to(output).T

    return Reader(model=clip.vision, labels=texts, scores=scores, kind="text")


def class_reader(model: Any) -> Reader:
    """Logits of a classifier, minus their mean over classes.

    Raises:
        BadData: no head, or fewer than two classes.
    """
    if model.parts.head is None:
        raise BadData("this model has no head to read classes from. For CLIP: text_reader(clip, texts).")
    names = model.parts.class_names or tuple(str(i) for i in range(_n_classes(model)))
    if len(names) < 2:
        raise BadData("a read-out by classes needs at least two.")
    return Reader(model=model, labels=names, scores=lambda out: out - out.mean(-1, keepdim=True), kind="class")


def _n_classes(model: Any) -> int:
    pixels = torch.zeros(1, model.parts.channels, *model.parts.image_size, dtype=model.dtype, device=model.device)
    return model.run(pixels).output.shape[-1]


def reader_of(model: Any, texts: Sequence[str] | None) -> Reader:
    """The reader that fits: texts for a CLIP model, classes for a classifier.

    Raises:
        BadData: texts without CLIP, or CLIP without texts.
    """
    if hasattr(model, "encode_text"):
        if texts is None:
            raise BadData("a CLIP model is read by texts; pass texts=, its vocabulary.")
        return text_reader(model, texts)
    if texts is not None:
        raise BadData("texts= are for a CLIP model; this one is read by its classes.")
    return class_reader(model)
