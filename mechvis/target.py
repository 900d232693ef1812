"""Which number of the output is explained: one score per image, fixed before anything is removed or changed.

The classes are settled once, from the clean run or the labels, and stay what they are while patches disappear: a metric
that follows whatever class is largest at the moment measures something else. What is read of them (`form`) is explicit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.metrics import classes_of

Form = Literal["logit", "logit_diff", "prob", "logprob"]
"""What is read: the logit of the class, that minus the contrast's, its probability, or its log-probability (nats)."""

Classes = str | int | Sequence[str | int] | Tensor
"""`"predicted"`, `"true"` (the labels), `"runner_up"` (contrasts only), or classes by name or index: one, or one per
image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """One score per image."""

    classes: Int[Tensor, " image"]
    """The explained class of each image."""
    contrast: Int[Tensor, " image"] | None = None
    """The class that is subtracted, for `logit_diff`."""
    form: Form = "logit"
    """What is read."""
    rule: str = "given"
    """How the classes were chosen: `predicted`, `true` or `given`."""
    contrast_rule: str = ""
    """How the contrasts were chosen: `runner_up`, `given`, or empty."""

    def __post_init__(self):
        if self.form not in get_args(Form):
            raise unknown("form of a score", self.form, get_args(Form))
        if (self.form == "logit_diff") != (self.contrast is not None):
            raise BadData("a contrast class belongs to form='logit_diff', and to nothing else.")

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: Any) -> "Target":
        """The target of some of the images."""
        contrast = None if self.contrast is None else self.contrast[index]
        return replace(self, classes=self.classes[index], contrast=contrast)

    def read(
        self, logits: Float[Tensor, "row class"], images: Int[Tensor, " row"] | None = None
    ) -> Float[Tensor, " row"]:
        """The score of each row.

        Args:
            logits: outputs.
            images: which image each row is a variant of; None: row i is image i.

        Raises:
            OutOfRange: a class that these logits lack.
        """
        classes = self.classes if images is None else self.classes[images]
        if len(classes) != len(logits):
            raise ShapeMismatch(f"{len(logits)} rows of logits for {len(classes)} images.")
        if int(classes.max()) >= logits.shape[1]:
            raise OutOfRange(f"class {int(classes.max())} does not exist: the head has {logits.shape[1]}.")
        values = logits
        if self.form in ("prob", "logprob"):
            values = logits.log_softmax(-1)
        found = values.gather(1, classes[:, None])[:, 0]
        if self.form == "prob":
            return found.exp()
        if self.contrast is None:
            return found
        contrast = self.contrast if images is None else self.contrast[images]
        return found - values.gather(1, contrast[:, None])[:, 0]

    def reading(self, form: Form) -> "Target":
        """The same classes, read in another form (`logit_diff` only where there is a contrast)."""
        return replace(self, form=form, contrast=self.contrast if form == "logit_diff" else None)


def target_of(
    model: Any,
    logits: Float[Tensor, "image class"],
    labels: Int[Tensor, " image"] | None = None,
    target: Classes = "predicted",
    *,
    contrast: Classes | None = None,
    form: Form | None = None,
) -> Target:
    """Settle which score is explained.

    Args:
        model: a wrapped model; its class names resolve names.
        logits: of the clean images.
        labels: for `target="true"`.
        target: see :data:`Classes`.
        contrast: likewise, or `"runner_up"` (the best other class of the clean run); None: none.
        form: default: `logit_diff` with a contrast, else `logit`.

    Raises:
        BadData: labels are needed and there are none, or target and contrast are the same.
        UnknownName, OutOfRange: a class that does not exist.
        ShapeMismatch: not one class per image.

    Example:
        >>> target = target_of(model, model.run(pixels).logits, contrast="runner_up")     # doctest: +SKIP
        >>> target.read(model.run(pixels).logits)                                        # doctest: +SKIP
    """
    if logits.ndim != 2:
        raise ShapeMismatch(f"a target needs logits [image class], got {list(logits.shape)}: has the model a head?")
    classes, rule = _classes(model, logits, labels, target)
    other, other_rule = None, ""
    if contrast is not None:
        if isinstance(contrast, str) and contrast == "runner_up":
            other, other_rule = classes_of(logits, classes)[1], "runner_up"
        else:
            other, other_rule = _classes(model, logits, labels, contrast)
        if bool((other == classes).any()):
            image = int((other == classes).nonzero()[0])
            raise BadData(f"target and contrast of image {image} are the same class: their difference is zero.")
    form = form or ("logit" if other is None else "logit_diff")
    if other is None and form == "logit_diff":
        other, other_rule = classes_of(logits, classes)[1], "runner_up"
    return Target(classes=classes, contrast=other, form=form, rule=rule, contrast_rule=other_rule)


def _classes(model: Any, logits: Tensor, labels: Tensor | None, given: Classes) -> tuple[Tensor, str]:
    n, n_classes = logits.shape
    if isinstance(given, str) and given == "predicted":
        return logits.argmax(1), "predicted"
    if isinstance(given, str) and given == "true":
        if labels is None:
            raise BadData('target="true" needs labels, and these images have none; use target="predicted".')
        return classes_of(logits, labels)[0], "true"
    if isinstance(given, (list, tuple)):
        index = torch.stack([model.class_index(one, n_classes) for one in given])
    else:
        index = model.class_index(given, n_classes)
    index = index.to(logits.device)
    if index.ndim == 0:
        return index.expand(n).clone(), "given"
    if index.shape != (n,):
        raise ShapeMismatch(f"{len(index)} classes for {n} images; give one class, or one per image.")
    return index, "given"
