"""Latents as detectors: the F1 of every latent for a concept, with the threshold that is best on training images.

A latent says "yes" where it is above its threshold. Thresholds are chosen on some images and judged on others. One sort
per latent serves all concepts: at each cut of the sorted values the counts above it are cumulative sums.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechvis.errors import BadData, NotFinite, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Detectors:
    """How well each latent finds one concept on the images that thresholds were chosen on."""

    f1: Float[np.ndarray, " latent"]
    """Best F1 of each latent."""
    threshold: Float[np.ndarray, " latent"]
    """Where: the latent says yes above it."""


class Sorted:
    """Activations of latents, sorted once.

    Example:
        >>> found = Sorted(np.array([[3.0], [2.0], [0.0]])).detectors(np.array([True, True, False]))
        >>> float(found.f1[0]), float(found.threshold[0])
        (1.0, 1.0)
    """

    def __init__(self, activations: Float[np.ndarray, "image latent"]):
        """Args:
        activations: one number per image and latent.

        Raises:
            ShapeMismatch: not a matrix, or empty.
            NotFinite: NaN or Inf.
        """
        a = np.asarray(activations)
        if a.ndim != 2 or 0 in a.shape:
            raise ShapeMismatch(f"activations are [image latent]; got {list(a.shape)}.")
        if not np.isfinite(a).all():
            raise NotFinite("activations hold NaN or Inf.")
        self._order: Int[np.ndarray, "image latent"] = np.argsort(-a, axis=0, kind="stable")
        self._values = np.take_along_axis(a, self._order, axis=0)
        # Values that are equal cannot be parted: a cut lies where the next one is smaller.
        self._cut = np.ones(a.shape, dtype=bool)
        self._cut[:-1] = self._values[:-1] > self._values[1:]

    def detectors(self, positive: Bool[np.ndarray, " image"]) -> Detectors:
        """The best F1 of each latent for a concept.

        Raises:
            ShapeMismatch: another number of images.
            BadData: no image has the concept, or all have it.
        """
        positive = np.asarray(positive)
        if positive.dtype != bool or positive.shape != self._values.shape[:1]:
            raise ShapeMismatch(f"a concept is bool [image], {len(self._values)} long; got {list(positive.shape)}.")
        if positive.all() or not positive.any():
            raise BadData("a concept needs images that have it and images that do not.")
        hits = np.cumsum(positive[self._order], axis=0, dtype=np.float64)
        said = np.arange(1, len(positive) + 1)[:, None]
        f1 = np.where(self._cut, 2 * hits / (said + positive.sum()), -1)
        # The last cut says yes to every image: that is no detector.
        f1[-1] = 0
        best = f1.argmax(0)
        latents = np.arange(f1.shape[1])
        after = self._values[np.minimum(best + 1, len(f1) - 1), latents]
        threshold = np.where(best + 1 < len(f1), (self._values[best, latents] + after) / 2, np.inf)
        return Detectors(f1=f1[best, latents], threshold=threshold)


def scores(said: Bool[np.ndarray, " image"], positive: Bool[np.ndarray, " image"]) -> dict[str, float]:
    """F1, precision and recall of a detector on other images; precision is 0 where it never says yes."""
    hits = float((said & positive).sum())
    precision = hits / said.sum() if said.any() else 0.0
    recall = hits / positive.sum() if positive.any() else float("nan")
    total = said.sum() + positive.sum()
    return {"f1": 2 * hits / total if total else 0.0, "precision": float(precision), "recall": float(recall)}


def chance_f1(positive: Bool[np.ndarray, " image"]) -> float:
    """F1 of saying yes to every image."""
    share = float(np.mean(positive))
    return 2 * share / (1 + share)
