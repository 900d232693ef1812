"""CLIP-Dissect: which text fits the images that make a unit active. Five scores, one signature.

All take activations `[image unit]` and similarities `[image concept]` (cosines of images with texts, or presences),
and return `[unit concept]`, larger is better. Constants are those of the released code (methods.md 9.1, **C**; those of
rank-reorder are **K**).

* `soft_wpmi` (default): softmax over concepts per image, sharpened by a = 10. Of the unit's top 100 images, the one of
  rank r belongs to its set with a probability that falls linearly from 0.998 to 0.97. The score is how likely these
  images are to show the concept, beside how likely the sets of *all units given* are: **the prior depends on the units
  that are analysed together**, so fix them.
* `wpmi`: hard sets of 28 images, a = 2, lam = 0.6.
* `rank_reorder`: how much the top activations change when they are sorted by the concept instead. Where all of the top
  images have a concept (the top 5 % of a clean detector) their order says nothing of it: raise `share`.
* `cosine`, `cosine_cubed`: of columns; the second centres and cubes both, so that large values count.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite

Values = Float[np.ndarray, "image unit"]
Similarity = Float[np.ndarray, "image concept"]
Scores = Float[np.ndarray, "unit concept"]


def soft_wpmi(
    activations: Values,
    similarity: Similarity,
    *,
    top: int = 100,
    sharpness: float = 10.0,
    weight: float | int = 1.0,
    first: float = 0.998,
    last: float = 0.97,
    floor: float = 1e-7,
) -> Scores:
    """Soft weighted pointwise mutual information (**C**).

    Args:
        activations: `[image unit]`; the prior is over these units.
        similarity: `[image concept]`.
        top: images per unit.
        sharpness: a, on the similarities before the softmax over concepts.
        weight: lam, of the prior.
        first: probability that the most active image belongs to the unit's set.
        last: what it falls to, linearly with rank.
        floor: added inside the logarithm.

    Raises:
        ShapeMismatch: other numbers of images.
        OutOfRange: top below 1 or above the number of images.

    Example:
        >>> labels = np.repeat(np.eye(2), 8, axis=0)
        >>> soft_wpmi(labels, labels, top=8).argmax(1)
        array([0, 1])
    """
    activations, similarity = checked(activations, similarity)
    _check_top(top, len(activations))
    chance = np.exp(log_softmax(sharpness * similarity, axis=1))
    inside = first - np.arange(top) / top * (first - last)
    order = np.argsort(-activations, axis=0, kind="stable")[:top]
    likely = np.stack(
        [np.log(1 + inside[:, None] * (chance[rows] - 1) + floor).sum(0) for rows in order.T]
    )  # [unit concept]
    return likely - weight * _prior(likely)


def wpmi(
    activations: Values,
    similarity: Similarity,
    *,
    top: int = 28,
    sharpness: float = 2.0,
    weight: float = 0.6,
    floor: float = 1e-7,
) -> Scores:
    """Weighted pointwise mutual information with hard sets (**C**); arguments as in :func:`soft_wpmi`."""
    activations, similarity = checked(activations, similarity)
    _check_top(top, len(activations))
    chance = np.log(np.exp(log_softmax(sharpness * similarity, axis=1)) + floor)
    order = np.argsort(-activations, axis=0, kind="stable")[:top]
    likely = np.stack([chance[rows].sum(0) for rows in order.T])
    return likely - weight * _prior(likely)


def _prior(likely: Scores) -> Float[np.ndarray, "1 concept"]:
    """log of the mean over units."""
    return logsumexp(likely, axis=0, keepdims=True) - np.log(len(likely))


def rank_reorder(
    activations: Values,
    similarity: Similarity,
    *,
    share: float = 0.05,
    power: float = 3.0,
    scale_power: float = 0.5,
    draws: int = 5,
    floor: float = 1e-6,
    seed: int = 0,
) -> Scores:
    """Minus the change of the top activations when sorted by the concept, relative to random orders, times the mean
    similarity to the power -1/2 (**C** that it exists, **K** for the constants).

    Args:
        share: of the images that count as top.
        power: of the differences.
        scale_power: of the mean similarity.
        draws: random orders for the baseline.
        floor: least mean similarity; labels of none of the top images would divide by zero (**X**).
        seed: of the random orders.

    Raises:
        ShapeMismatch: other numbers of images.
        OutOfRange: fewer than two top images.
    """
    activations, similarity = checked(activations, similarity)
    top = int(share * len(activations))
    if not 2 <= top <= len(activations):
        raise OutOfRange(f"share={share} of {len(activations)} images is {top}; rank-reorder compares two or more.")
    generator = np.random.default_rng(seed)
    order = np.argsort(-activations, axis=0, kind="stable")[:top]
    found = np.empty((activations.shape[1], similarity.shape[1]))
    for unit, rows in enumerate(order.T):
        values = activations[rows, unit]
        rising = values[::-1]
        shuffled = np.stack([generator.permutation(rising) for _ in range(draws)], axis=1)
        baseline = (np.abs(rising[:, None] - shuffled) ** power).mean()
        there = similarity[rows]
        ranks = np.argsort(np.argsort(there, axis=0, kind="stable"), axis=0, kind="stable")
        change = (np.abs(values[:, None] - rising[ranks]) ** power).mean(0)
        error = change / baseline if baseline > 0 else np.zeros_like(change)
        found[unit] = -error * (1 / np.maximum(there.mean(0), floor)) ** scale_power
    return found


def cosine(activations: Values, similarity: Similarity) -> Scores:
    """Cosine of the unit's values with the concept's, over images (**C**)."""
    activations, similarity = checked(activations, similarity)
    return _columns(activations).T @ _columns(similarity)


def cosine_cubed(activations: Values, similarity: Similarity) -> Scores:
    """Cosine of both centred and cubed (**C**)."""
    activations, similarity = checked(activations, similarity)
    return _columns((activations - activations.mean(0)) ** 3).T @ _columns((similarity - similarity.mean(0)) ** 3)


METHODS: dict[str, Callable[..., Scores]] = {
    "soft_wpmi": soft_wpmi,
    "wpmi": wpmi,
    "rank_reorder": rank_reorder,
    "cosine": cosine,
    "cosine_cubed": cosine_cubed,
}


def clip_dissect(activations: Values, similarity: Similarity, *, method: str = "soft_wpmi", **settings: Any) -> Scores:
    """Any of the five scores by name.

    Raises:
        UnknownName: no such score.
    """
    if method not in METHODS:
        raise unknown("score", method, METHODS)
    return METHODS[method](activations, similarity, **settings)


def _columns(values: np.ndarray) -> np.ndarray:
    """Columns of length one; a column of zeros stays."""
    lengths = np.linalg.norm(values, axis=0)
    return values / np.where(lengths > 0, lengths, 1)


def checked(activations: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 with one row per image.

    Raises:
        ShapeMismatch: not two axes, or other numbers of images.
        BadData: no image, unit or concept.
        NotFinite: NaN or Inf.
    """
    activations, similarity = np.asarray(activations, np.float64), np.asarray(similarity, np.float64)
    if activations.ndim != 2 or similarity.ndim != 2 or len(activations) != len(similarity):
        raise ShapeMismatch(
            f"activations [image unit] and similarities [image concept] of the same images are needed, got "
            f"{list(activations.shape)} and {list(similarity.shape)}."
        )
    if 0 in activations.shape or 0 in similarity.shape:
        raise BadData(f"nothing to compare: {list(activations.shape)} and {list(similarity.shape)}.")
    return finite("activations", activations), finite("similarities", similarity)


def _check_top(top: int, n: int) -> None:
    if not 1 <= top <= n:
        raise OutOfRange(f"top={top} of {n} images: give 1 to {n}, or more images.")
