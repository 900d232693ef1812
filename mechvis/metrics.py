"""What is measured on outputs: one number per image, higher = behaviour kept.

Every metric is a function of logits `[... image class]`, a target class and a contrast class per image (both fixed by
the clean run or the labels, never by the edited run), and the clean logits. The *effect* of an edit is
metric(clean) - metric(edited), so a positive effect means that the ablated unit supported the behaviour.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch, unknown

Logits = Float[Tensor, "*rows image class"]
Clean = Float[Tensor, "*clean_rows image class"]
"""The clean run's logits: one row per image where `logits` has one per edit and image."""
PerImage = Float[Tensor, "*rows image"]
Classes = Int[Tensor, " image"]
Metric = Callable[[Logits, Classes, Classes, Clean], PerImage]


def _of(logits: Logits, classes: Classes) -> PerImage:
    index = classes.expand(logits.shape[:-1])[..., None]
    return logits.gather(-1, index)[..., 0]


def logit(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """Logit of the target class, in logits."""
    return _of(logits, target)


def logit_diff(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """Logit of the target minus that of the contrast class (the clean run's runner-up), in logits."""
    return _of(logits, target) - _of(logits, contrast)


def log_odds(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """Logit of the target minus logsumexp of all others, in nats."""
    others = logits.masked_fill(F.one_hot(target, logits.shape[-1]).bool(), float("-inf"))
    return _of(logits, target) - others.logsumexp(-1)


def logprob(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """Log-probability of the target class, in nats."""
    return _of(logits.log_softmax(-1), target)


def prob(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """Probability of the target class."""
    return _of(logits.softmax(-1), target)


def accuracy(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """1 where the target class has the largest logit."""
    return (logits.argmax(-1) == target).to(logits.dtype)


def kl(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """-KL(clean || edited), summed over classes, in nats (0 = unchanged).

    Some circuit code averages over classes instead (methods.md 0.4); divide by the number of classes to compare.
    """
    log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)
    return -(log_p.exp() * (log_p - log_q)).sum(-1)


def js(logits: Logits, target: Classes, contrast: Classes, clean: Clean) -> PerImage:
    """-JS(clean, edited), in nats (0 = unchanged, -ln 2 = disjoint)."""
    return -jensen_shannon(clean.softmax(-1), logits.softmax(-1))


def jensen_shannon(p: Float[Tensor, "*p_rows class"], q: Float[Tensor, "*rows class"]) -> Float[Tensor, "*rows"]:
    """Jensen-Shannon divergence of two distributions, in nats: symmetric, between 0 and ln 2; `p` may lack leading axes
    that `q` has.

    Computed in float64, since it is a difference of nearly equal numbers when p and q are close.

    Example:
        >>> p = torch.tensor([1., 0.]); round(float(jensen_shannon(p, 1 - p)), 4)
        0.6931
    """
    p, q = p.double(), q.double()
    middle = (p + q) / 2

    def to_middle(a: Tensor) -> Tensor:
        return (torch.special.xlogy(a, a) - torch.special.xlogy(a, middle)).sum(-1)

    return ((to_middle(p) + to_middle(q)) / 2).clamp(min=0)


METRICS: dict[str, Metric] = {f.__name__: f for f in (logit, logit_diff, log_odds, logprob, prob, accuracy, kl, js)}


WITHOUT_TARGET = frozenset({"kl", "js"})
"""Metrics that compare whole distributions: the same number whatever the target class."""


def for_target(metric: Metric, target: int, contrast: int | None = None) -> Metric:
    """The metric against one class for every image, whatever the labels or predictions are.

    Args:
        metric: a metric.
        target: class index.
        contrast: class index; None: the best other class of each clean image.

    Raises:
        OutOfRange: when it is called with logits that lack the class.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 2.0]])
        >>> for_target(logit_diff, 1)(logits, None, None, logits)
        tensor([-2.])
    """

    def fixed(logits: Logits, _target: Classes | None, _contrast: Classes | None, clean: Clean) -> PerImage:
        n_classes = clean.shape[-1]
        for chosen in (target, contrast):
            if chosen is not None and not 0 <= chosen < n_classes:
                raise OutOfRange(
                    f"target class {chosen} does not exist: the head has {n_classes} (0 to {n_classes - 1})."
                )
        first = torch.full(clean.shape[:-1], target, dtype=torch.int64, device=clean.device)
        first, second = classes_of(clean, first)
        return metric(logits, first, second if contrast is None else torch.full_like(first, contrast), clean)

    return fixed


def get(metric: str | Metric) -> tuple[str, Metric]:
    """Name and function of a metric.

    Raises:
        UnknownName: with the nearest names.
    """
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    return metric, METRICS[metric]


def classes_of(clean: Float[Tensor, "image class"], labels: Classes | None) -> tuple[Classes, Classes]:
    """Target and contrast class per image: the label (or the clean prediction) and the best other class.

    Raises:
        OutOfRange: a label that the head does not have.
        ShapeMismatch: fewer than two classes.
    """
    n_classes = clean.shape[-1]
    if n_classes < 2:
        raise ShapeMismatch(f"a contrast needs at least two classes, the head has {n_classes}.")
    target = clean.argmax(-1) if labels is None else labels.to(clean.device)
    outside = target[(target < 0) | (target >= n_classes)]
    if len(outside):
        raise OutOfRange(
            f"label {int(outside[0])} is outside the head's {n_classes} classes. Are the images' classes the model's? "
            "Map them, or pass labels=None to measure against the model's own predictions."
        )
    contrast = clean.masked_fill(F.one_hot(target, n_classes).bool(), float("-inf")).argmax(-1)
    return target, contrast
