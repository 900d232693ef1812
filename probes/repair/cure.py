"""The cure: learn the head again on features that were moved along unstable concepts (DISC, methods2.md 17.8).

The release mixes images of *other* classes with images of a concept that is unstable for class c, keeping their
labels (**C**). On frozen features the same is a move along the concept vector (port **X**):

    h' = h + sign * lam * margin_q * v_q     for images with y != c,   lam ~ U(0, amplitude)

so that the concept is seen with every class and no longer tells c. The sign is the side on which the concept speaks
for c in the head (`signed`, **X**): if going along v raises logit c against the mean of the others, the others are
pushed along v, else against it.

Each step draws one concept per class by its instability and moves as many images of other classes as a class has on
average (**X**: all of them would cost as much as there are classes, times the plain step); the gradient is that of the
moved images and of all images as they are. Instabilities are computed anew every `refresh` steps.
"""

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import OutOfRange, ShapeMismatch
from probes.repair.instability import Scores, above, instability
from probes.repair.linear_head import LinearHead, checked, safe_rate
from probes.repair.vectors import Vectors


def cure(
    head: LinearHead,
    features: Float[np.ndarray, "image d"],
    labels: Int[np.ndarray, " image"],
    vectors: Vectors,
    scores: Scores,
    *,
    start: LinearHead | None = None,
    steps: int = 300,
    rate: float | None = None,
    amplitude: float = 1.0,
    weight: float = 0.5,
    threshold: float = 0.5,
    refresh: int = 0,
    signed: bool = True,
    seed: int = 0,
) -> LinearHead:
    """A head that was trained while unstable concepts are mixed into the other classes.

    Args:
        head: the head whose instabilities choose the concepts, and whose weights give the signs.
        features, labels: training images.
        vectors: the concepts.
        scores: head -> concept tendency scores, e.g. `functools.partial(tendencies, ...)` over fixed environments.
        start: the head to go on from; None: from zero, as a new head.
        steps: of gradient descent.
        rate: length of a step; None: :func:`probes.repair.linear_head.safe_rate` of the features.
        amplitude: largest lam; 1 as in the port, 4 in its known answer.
        weight: share of the moved images' loss (**X**: the release adds both losses, a share of one half).
        threshold: concepts with less than this share of the largest instability of a class are not drawn (**X**).
        refresh: compute instabilities (and signs) anew after so many steps, for the head as it is then; 0: once.
        signed: see the module; False: always along v.
        seed: of the draws.

    Raises:
        ShapeMismatch: vectors of another width.
        OutOfRange: a setting outside its range.

    Example:
        >>> cure(head, x, y, vectors, lambda h: tendencies(h, x, y, environment, vectors))      # doctest: +SKIP
    """
    features, labels = checked(features, labels)
    rate = safe_rate(features) if rate is None else rate
    if vectors.directions.shape[1] != features.shape[1]:
        raise ShapeMismatch(
            f"concept vectors of {vectors.directions.shape[1]} dimensions, features of {features.shape[1]}."
        )
    if steps < 1 or not rate > 0 or not amplitude >= 0 or not 0 <= weight <= 1 or refresh < 0:
        raise OutOfRange(
            f"steps={steps}, rate={rate}, amplitude={amplitude}, weight={weight}, refresh={refresh}: at least one "
            "step, a positive rate, an amplitude and a refresh of 0 or more, a weight in [0, 1]."
        )
    generator = np.random.default_rng(seed)
    n_classes = len(head.bias)
    present = np.unique(labels)
    new = start or LinearHead(weight=np.zeros_like(head.weight), bias=np.zeros(n_classes))
    chances, sign = _plan(head, vectors, scores, threshold, signed)
    share = -(-len(labels) // len(present))
    others = {int(c): np.flatnonzero(labels != c) for c in present}
    for step in range(steps):
        if refresh and step and step % refresh == 0:
            chances, sign = _plan(new, vectors, scores, threshold, signed)
        moved, kept = [], []
        for c, rows in others.items():
            if len(rows) > share:
                rows = rows[generator.permutation(len(rows))[:share]]
            q = generator.choice(len(vectors), p=chances[:, c])
            lam = amplitude * generator.random((len(rows), 1))
            moved.append(features[rows] + sign[q, c] * lam * vectors.scaled[q])
            kept.append(labels[rows])
        plain = new.gradient(features, labels)
        mixed = new.gradient(np.concatenate(moved), np.concatenate(kept))
        both = tuple((1 - weight) * a + weight * b for a, b in zip(plain, mixed, strict=True))
        new = new.step(both, rate)
    return new


def _plan(
    head: LinearHead, vectors: Vectors, scores: Scores, threshold: float, signed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Chance and sign of every concept for every class, both `[concept class]`."""
    chances = above(instability(scores(head)), threshold)
    if not signed:
        return chances, np.ones_like(chances)
    effect = vectors.directions @ (head.weight - head.weight.mean(0)).T
    return chances, np.where(effect >= 0, 1.0, -1.0)
