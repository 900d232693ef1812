"""Concept activation vectors: the direction that tells images with a concept from random ones (TCAV; **K**).

A linear classifier between the activations of two sets of images; its normal, of length one, is the vector. How well it
tells images that it was not fitted on says whether there is a concept to speak of: at chance, there is none.

* `logistic`: logistic regression with a ridge, on activations scaled to unit mean square (**X**).
* `difference`: the difference of the two means. It is the direction along which activations move when the concept
  comes; the classifier's normal is the one that tells best, and leans away from what both sets share.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite

Classifier = Literal["logistic", "difference"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CAV:
    """A direction and how well it tells."""

    vector: Float[np.ndarray, " d"]
    """Of length one; towards the concept."""
    accuracy: float
    """Share of held-out rows on the right side, both sets equally weighted."""


def cav(
    concept: Float[np.ndarray, "row d"],
    random: Float[np.ndarray, "other d"],
    *,
    classifier: Classifier = "logistic",
    ridge: float = 0.01,
    held_out: float = 1 / 3,
    seed: int = 0,
) -> CAV:
    """The concept activation vector of two sets of activations (Kim et al. 2018; **K**).

    Args:
        concept: activations of images with the concept.
        random: activations of other images.
        classifier: see the module.
        ridge: of the logistic regression, per row (**X**).
        held_out: share of each set that only measures the accuracy; the vector is fitted on the rest.
        seed: of that choice.

    Returns:
        CAV.

    Raises:
        BadData: fewer than 4 rows in a set, or two sets that are the same.
        UnknownName, ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(40, 5))
        >>> bool(cav(rows[:20] + [3, 0, 0, 0, 0], rows[20:]).vector[0] > 0.8)
        True
    """
    if classifier not in ("logistic", "difference"):
        raise unknown("classifier", classifier, ("logistic", "difference"))
    sets = [finite("activations", np.asarray(rows, np.float64)) for rows in (concept, random)]
    if any(rows.ndim != 2 for rows in sets) or sets[0].shape[1] != sets[1].shape[1]:
        raise ShapeMismatch(f"two sets of rows of one width are wanted, got {[list(rows.shape) for rows in sets]}.")
    if min(len(rows) for rows in sets) < 4:
        raise BadData(f"sets of {len(sets[0])} and {len(sets[1])} images: a vector needs at least 4 of each.")
    if not 0 < held_out < 1:
        raise OutOfRange(f"held_out={held_out} is a share between 0 and 1.")
    generator = np.random.default_rng(seed)
    fit, rest = [], []
    for rows in sets:
        order = generator.permutation(len(rows))
        cut = min(max(round(held_out * len(rows)), 1), len(rows) - 2)
        rest.append(rows[order[:cut]])
        fit.append(rows[order[cut:]])
    centre = np.mean([rows.mean(0) for rows in fit], axis=0)
    towards = fit[0].mean(0) - fit[1].mean(0)
    offset = 0.0
    if classifier == "logistic":
        towards, offset = _logistic(fit[0] - centre, fit[1] - centre, ridge)
    length = np.linalg.norm(towards)
    if length <= 1e-12 * max(float(np.abs(centre).max()), 1e-300) or not np.isfinite(length):
        raise BadData("the two sets cannot be told apart at all: are they the same images?")
    sides = [((rows - centre) @ towards + offset) for rows in rest]
    accuracy = ((sides[0] > 0).mean() + (sides[1] <= 0).mean()) / 2
    return CAV(vector=towards / length, accuracy=float(accuracy))


def _logistic(concept: np.ndarray, random: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([concept, random])
    scale = max(float(np.sqrt((rows**2).sum(1).mean())), 1e-300)
    labels = np.repeat([1, 0], [len(concept), len(random)])
    model = LogisticRegression(C=1 / (ridge * len(rows)), class_weight="balanced", max_iter=500)
    model.fit(rows / scale, labels)
    return model.coef_[0] / scale, float(model.intercept_[0])
