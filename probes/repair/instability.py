"""Which concepts does a head lean on in one environment and not in another? (DISC; methods2.md 17.8 **C**)

For every environment `e` one gradient step of the last layer is looked at: `G_W [class d]`, `G_b [class]` of the mean
loss. Along the concept vector `v_q` that step would move the classes by

    CTS_e(q, c) = softmax_c( -( lr v_q G_W^T + lr G_b ) ),    lr = min(10, number of batches) x base rate

the *concept tendency score*. A concept that belongs to a class pulls alike in all environments. A spurious one pulls
towards the class where it agrees with it and away where it does not, so its score varies:

    instability(q, c) = std over e of CTS_e(q, c),   normalised over the concepts of c to probabilities.

A causal direction gets a share too (a quarter in the known answer): use a threshold, never "all that is not zero". A
cure that also pushes along it takes away what the class is told by (accuracy .98 -> .90 there).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.repair.linear_head import LinearHead, checked, softmax
from probes.repair.vectors import Vectors


def tendencies(
    head: LinearHead,
    features: Float[np.ndarray, "image d"],
    labels: Int[np.ndarray, " image"],
    environment: Int[np.ndarray, " image"],
    vectors: Vectors,
    *,
    rate: float = 1.0,
    use_margins: bool = True,
) -> Float[np.ndarray, "environment concept class"]:
    """Concept tendency scores of every environment; they sum to one over the classes.

    Args:
        head: the last layer.
        features, labels: training images.
        environment: of each, from 0.
        vectors: the concepts.
        rate: `lr` above: the length of the step that is looked at.
        use_margins: take directions times margins, as the release does; False: unit directions.

    Raises:
        ShapeMismatch: environments that do not fit.
        BadData: fewer than two environments, or one without images.
        OutOfRange: no rate.

    Example:
        >>> x, y, e = np.eye(4), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
        >>> vectors = Vectors(names=("a",), directions=np.eye(1, 4), margins=np.ones(1), accuracy=np.ones(1))
        >>> tendencies(fit_head(x, y), x, y, e, vectors).shape                               # doctest: +SKIP
        (2, 1, 2)
    """
    features, labels = checked(features, labels)
    environment = np.asarray(environment)
    if environment.shape != labels.shape or not np.issubdtype(environment.dtype, np.integer):
        raise ShapeMismatch(
            f"environments are one whole number per image, got {environment.dtype} {environment.shape}."
        )
    n = int(environment.max()) + 1
    counts = np.bincount(environment, minlength=n)
    if n < 2 or not counts.all():
        raise BadData(f"instability compares environments: at least two, all with images; they hold {counts.tolist()}.")
    if not rate > 0:
        raise OutOfRange(f"rate={rate}: the step that is looked at has a positive length.")
    if vectors.directions.shape[1] != features.shape[1]:
        raise ShapeMismatch(
            f"concept vectors of {vectors.directions.shape[1]} dimensions, features of {features.shape[1]}."
        )
    v = vectors.scaled if use_margins else vectors.directions
    scores = []
    for e in range(n):
        own = environment == e
        g_weight, g_bias = head.gradient(features[own], labels[own])
        scores.append(softmax(-rate * (v @ g_weight.T + g_bias)))
    return np.stack(scores)


def instability(
    scores: Float[np.ndarray, "environment concept class"],
) -> Float[np.ndarray, "concept class"]:
    """Standard deviation over environments, normalised over the concepts of each class to sum to one.

    A class for which nothing varies gets equal shares: there is nothing to choose.

    Raises:
        ShapeMismatch: not three axes, or one environment.

    Example:
        >>> instability(np.array([[[0.1, 0.9], [0.5, 0.5]], [[0.9, 0.1], [0.5, 0.5]]]))[:, 0].tolist()
        [1.0, 0.0]
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 3 or len(scores) < 2:
        raise ShapeMismatch(f"tendencies are [environment concept class] of two or more, got {list(scores.shape)}.")
    std = scores.std(0)
    total = std.sum(0)
    return np.where(total > 0, std / np.where(total > 0, total, 1.0), 1.0 / scores.shape[1])


def above(probabilities: Float[np.ndarray, "concept class"], threshold: float) -> Float[np.ndarray, "concept class"]:
    """Probabilities without those below `threshold` times the largest of their class, normalised again.

    Example:
        >>> above(np.array([[0.7], [0.3]]), 0.5)[:, 0].tolist()
        [1.0, 0.0]
    """
    if not 0 <= threshold <= 1:
        raise OutOfRange(f"threshold={threshold} lies in [0, 1].")
    kept = np.where(probabilities >= threshold * probabilities.max(0), probabilities, 0.0)
    return kept / kept.sum(0)


Scores = Callable[[LinearHead], Float[np.ndarray, "environment concept class"]]
