"""A linear head on fixed features, and its plain training: what DISC looks at and what it changes.

Full-batch gradient steps, as few or as many as asked: how far a shortcut is learned depends on them, so they are an
argument and not a solver's business.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """Features to logits."""

    weight: Float[np.ndarray, "class d"]
    """One row per class."""
    bias: Float[np.ndarray, " class"]
    """One per class."""

    def __post_init__(self):
        weight, bias = np.asarray(self.weight, dtype=np.float64), np.asarray(self.bias, dtype=np.float64)
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(weight) < 2:
            raise ShapeMismatch(f"a head has weight [class d] and bias [class], got {weight.shape} and {bias.shape}.")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise NotFinite("the head's weights hold NaN or Inf.")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias)

    def logits(self, features: Float[np.ndarray, "image d"]) -> Float[np.ndarray, "image class"]:
        """Logits of some features.

        Raises:
            ShapeMismatch: features of another width.
        """
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise ShapeMismatch(f"the head reads {self.weight.shape[1]} dimensions, got {list(features.shape)}.")
        return features @ self.weight.T + self.bias

    def gradient(
        self, features: Float[np.ndarray, "image d"], labels: Int[np.ndarray, " image"]
    ) -> tuple[Float[np.ndarray, "class d"], Float[np.ndarray, " class"]]:
        """Gradient of the mean cross-entropy with respect to weight and bias."""
        pull = softmax(self.logits(features))
        pull[np.arange(len(labels)), labels] -= 1.0
        pull /= len(labels)
        return pull.T @ features, pull.sum(0)

    def step(self, gradient: tuple[np.ndarray, np.ndarray], rate: float) -> "LinearHead":
        """One step downhill."""
        return LinearHead(weight=self.weight - rate * gradient[0], bias=self.bias - rate * gradient[1])


def fit_head(
    features: Float[np.ndarray, "image d"],
    labels: Int[np.ndarray, " image"],
    *,
    n_classes: int | None = None,
    steps: int = 300,
    rate: float | None = None,
    start: LinearHead | None = None,
) -> LinearHead:
    """Plain training: full-batch gradient descent on the cross-entropy, from zero or from a given head.

    Args:
        features: `[image d]`.
        labels: class indices.
        n_classes: number of classes; None: from the labels (or `start`).
        steps: of the descent.
        rate: length of a step; None: :func:`safe_rate` of the features. Longer ones may diverge without a word: the
            head then swings from one side to the other.
        start: a head to go on from.

    Raises:
        ShapeMismatch, NotFinite, BadData: features and labels that do not fit.
        OutOfRange: no rate.

    Example:
        >>> x = np.array([[-1.0], [1.0]])
        >>> fit_head(x, np.array([0, 1])).logits(x).argmax(1).tolist()
        [0, 1]
    """
    features, labels = checked(features, labels)
    rate = safe_rate(features) if rate is None else rate
    if steps < 0 or not rate > 0:
        raise OutOfRange(f"steps={steps}, rate={rate}: steps are 0 or more, the rate is positive.")
    classes = n_classes or (len(start.bias) if start is not None else int(labels.max()) + 1)
    if labels.max() >= classes:
        raise BadData(f"a label is {labels.max()}, the head has {classes} classes.")
    head = start or LinearHead(weight=np.zeros((classes, features.shape[1])), bias=np.zeros(classes))
    for _ in range(steps):
        head = head.step(head.gradient(features, labels), rate)
    return head


def safe_rate(features: Float[np.ndarray, "image d"]) -> float:
    """The longest step with which plain descent on the cross-entropy is sure to go down: 1 over its curvature, which is
    at most half the largest eigenvalue of the features' second moments (with the constant of the bias)."""
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    return float(2 * len(rows) / np.linalg.norm(rows, 2) ** 2)


def checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features float64 `[image d]` and labels int64 `[image]`.

    Raises:
        ShapeMismatch, NotFinite, BadData.
    """
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if features.ndim != 2 or not features.size or labels.shape != features.shape[:1]:
        raise ShapeMismatch(
            f"features {list(features.shape)} and labels {list(labels.shape)}: give [image d], [image]."
        )
    if not np.isfinite(features).all():
        raise NotFinite("the features hold NaN or Inf.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise BadData(f"labels are class indices from 0, got {labels.dtype} from {labels.min()}.")
    return features, labels.astype(np.int64)


def softmax(y: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
