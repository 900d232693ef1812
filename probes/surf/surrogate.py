"""The surrogate that an explanation amounts to, and how far it is from the model (SURF, CVPR 2026; methods.md 7).

    yhat_i = sum_j sum_k alpha_ik Proj(h_j; V_i)_k       no parameters, all classes, importances used     [N] [A]
    SURF_MAE = mean_x mean_i |y_i - yhat_i|              in logits
    SURF_EMD = 1/2 mean_x sum_i |softmax(y)_i - softmax(yhat)_i|      total variation, 0 to 1

`h_j` are the tokens that the model pools (their mean is what the head reads), or one embedding. Both sides get the
head's bias (**X**), and the logits of the offset where the method takes one off: the errors in logits are as if it were
subtracted from both, and probabilities are those that the model really gives.

Only the last linear layer is covered. For CLIP, `temperature` is what the logits are divided by before the softmax.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from probes.null_space.head import LinearHead
from probes.surf.explanation import Explanation

MEASURES = ("mae", "emd", "top1", "rank")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an explanation is judged on: a head, embeddings, and others for metrics that train something."""

    head: LinearHead
    """The classifier's last layer."""
    embeddings: Float[np.ndarray, "image *token d"]
    """What it reads, `[image d]`; or the tokens whose mean it reads, `[image token d]`."""
    fit: Float[np.ndarray, "fit_image *token d"] | None = None
    """Embeddings of other images, for metrics that fit a surrogate of their own."""

    def __post_init__(self):
        width = self.head.weight.shape[1]
        for name in ("embeddings", "fit"):
            rows = getattr(self, name)
            if rows is None:
                continue
            rows = np.asarray(rows, np.float64)
            if rows.ndim not in (2, 3) or 0 in rows.shape or rows.shape[-1] != width:
                raise ShapeMismatch(f"{name} must be [image {width}] or [image token {width}], got {list(rows.shape)}.")
            if not np.isfinite(rows).all():
                bad = int((~np.isfinite(rows)).reshape(len(rows), -1).any(1).argmax())
                raise NotFinite(f"{name} hold NaN or Inf, first at image {bad}.")
            object.__setattr__(self, name, rows)

    @property
    def logits(self) -> Float[np.ndarray, "image class"]:
        """What the model says of the images."""
        return self.head(pooled(self.embeddings))


def pooled(embeddings: Float[np.ndarray, "image *token d"]) -> Float[np.ndarray, "image d"]:
    """What the head reads: the embedding, or the mean of the tokens."""
    return embeddings if embeddings.ndim == 2 else embeddings.mean(1)


def surrogate(
    explanation: Explanation, head: LinearHead, embeddings: Float[np.ndarray, "image *token d"], *, bias: bool = True
) -> Float[np.ndarray, "image class"]:
    """The logits that the explanation predicts.

    Args:
        explanation: concepts and importances of every class.
        head: for the bias, and the logits of the offset.
        embeddings: `[image d]`, or `[image token d]` for a model that pools by the mean.
        bias: add the head's bias.

    Raises:
        ShapeMismatch: other classes or another width than the head's, or a projection of the wrong shape.
        NotFinite: the method's projection gives NaN or Inf.

    Example:
        >>> from probes.surf import shared
        >>> head = LinearHead(weight=np.eye(2, 3), bias=np.zeros(2))
        >>> surrogate(shared("axes", np.eye(3), head), head, np.array([[1.0, 2.0, 3.0]]))
        array([[1., 2.]])
    """
    _fits(explanation, head)
    tokens = embeddings[:, None] if embeddings.ndim == 2 else embeddings
    n_images, n_tokens, width = tokens.shape
    rows = tokens.reshape(-1, width)
    found = np.empty((n_images, len(head.weight)))
    codes = None
    for index, alpha in enumerate(explanation.importances):
        if codes is None or not explanation.one_dictionary:
            codes = explanation.codes(rows, index).reshape(n_images, n_tokens, -1).mean(1)
        constant = 0.0 if explanation.offset is None else explanation.offset[index] @ head.weight[index]
        found[:, index] = codes @ alpha + constant
    return found + head.bias if bias else found


def errors(
    true: Float[np.ndarray, "image class"],
    guessed: Float[np.ndarray, "image class"],
    *,
    temperature: float = 1.0,
) -> dict[str, Float[np.ndarray, " image"]]:
    """How far two sets of logits are apart, per image.

    Args:
        true: the model's logits.
        guessed: the surrogate's.
        temperature: logits are divided by it before the softmax.

    Returns:
        `mae` (logits), `emd` (total variation of the probabilities, 0 to 1), `top1` (1 where both name the same class),
        `rank` (Spearman's correlation across classes; NaN where one side gives all classes the same logit).

    Raises:
        ShapeMismatch, NotFinite.
        OutOfRange: a temperature that is not positive.

    Example:
        >>> found = errors(np.array([[1.0, 0.0]]), np.array([[0.0, 0.5]]))
        >>> found["mae"], found["top1"], found["rank"]
        (array([0.75]), array([0.]), array([-1.]))
    """
    from scipy.special import softmax
    from scipy.stats import rankdata

    true, guessed = np.asarray(true, np.float64), np.asarray(guessed, np.float64)
    if true.shape != guessed.shape or true.ndim != 2 or 0 in true.shape:
        raise ShapeMismatch(f"logits must be two [image class], got {list(true.shape)} and {list(guessed.shape)}.")
    if not (np.isfinite(true).all() and np.isfinite(guessed).all()):
        raise NotFinite("logits hold NaN or Inf.")
    if not temperature > 0:
        raise OutOfRange(f"temperature={temperature}: what the logits are divided by, a positive number.")
    p, q = softmax(true / temperature, axis=1), softmax(guessed / temperature, axis=1)
    ranks = [rankdata(side, axis=1) for side in (true, guessed)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    size = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    return {
        "mae": np.abs(true - guessed).mean(1),
        "emd": 0.5 * np.abs(p - q).sum(1),
        "top1": (true.argmax(1) == guessed.argmax(1)).astype(np.float64),
        "rank": np.where(size > 0, (centred[0] * centred[1]).sum(1) / np.where(size > 0, size, 1.0), np.nan),
    }


def _fits(explanation: Explanation, head: LinearHead) -> None:
    n_classes, width = head.weight.shape
    seen = (len(explanation.concepts), explanation.concepts[0].shape[1])
    if seen != (n_classes, width):
        raise ShapeMismatch(
            f"{explanation.name!r} explains {seen[0]} classes in {seen[1]} dimensions; the head has {n_classes} "
            f"classes and reads {width}."
        )
