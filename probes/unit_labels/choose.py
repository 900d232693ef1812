"""The methods of labelling behind one door: activations and presences of some images in, a label per unit out.

A label here is something that predicts presence-like values on *other* images, so that all methods can be judged alike:
one concept, a weighted sum of concepts, or a logical combination.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, unknown
from probes.unit_labels.concepts import Concepts
from probes.unit_labels.dissect import METHODS, clip_dissect
from probes.unit_labels.dissection import iou
from probes.unit_labels.linear import linear_explanation
from probes.unit_labels.logical import logical_explanation

CHOICES = (*METHODS, "correlation", "linear", "logical", "network_dissection")

Values = Float[np.ndarray, "image unit"]
Presence = Float[np.ndarray, "image concept"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """A label for every unit."""

    labels: Sequence[str]
    """In words."""
    sources: Sequence[str]
    """Columns that the concepts of the label come from."""
    scores: Float[np.ndarray, " unit"]
    """The method's own score."""
    predict: Callable[[Presence], Values]
    """Presences of any images to what each unit's label says of them."""


def choose(method: str, values: Values, presence: Presence, concepts: Concepts, **settings: Any) -> Chosen:
    """Labels by a method.

    Args:
        method: one of `CHOICES`.
        values: activations of the images to choose on.
        presence: of the same images.
        concepts: names and sources of the concepts.
        settings: of the method; for `network_dissection` also `maps` `[image unit down across]` and `masks`.

    Raises:
        UnknownName: no such method.
    """
    if method not in CHOICES:
        raise unknown("method", method, CHOICES)
    if method == "linear":
        return _linear(values, presence, concepts, **settings)
    if method == "logical":
        return _logical(values, presence, concepts, **settings)
    if method == "network_dissection":
        scores = iou(settings.pop("maps"), settings.pop("masks"), **settings)[0]
    else:
        scores = scores_of(values, presence, method, **settings)
    best = scores.argmax(1)
    kinds = _kinds(concepts)
    return Chosen(
        labels=[concepts.names[i] for i in best],
        sources=[kinds[i] for i in best],
        scores=scores[np.arange(len(best)), best],
        predict=lambda there: there[:, best],
    )


def scores_of(values: Values, presence: Presence, method: str, **settings: Any) -> Float[np.ndarray, "unit concept"]:
    """Scores of a CLIP-Dissect method by name; `correlation` is Pearson's, where a constant unit or concept scores 0.

    Raises:
        UnknownName: no such method.
    """
    if method != "correlation":
        return clip_dissect(values, presence, method=method, **settings)
    a = values - values.mean(0, dtype=np.float64)
    c = presence - presence.mean(0)
    lengths = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(c, axis=0)
    return np.where(lengths > 0, a.T @ c / np.where(lengths > 0, lengths, 1), 0.0)


def _linear(values: Values, presence: Presence, concepts: Concepts, **settings: Any) -> Chosen:
    """Fitted on two thirds of the images, concepts chosen on the last third."""
    fit = np.arange(len(values)) % 3 < 2
    found = []
    for column in values.T.astype(np.float64):
        try:
            other = (column[~fit], presence[~fit])
            found.append(linear_explanation(column[fit], presence[fit], concepts.names, other, **settings))
        except BadData:  # a unit that is constant on one of the parts has nothing to explain
            found.append(None)

    def predict(there: Presence) -> Values:
        columns = [np.zeros(len(there)) if one is None else one.predict(there) for one in found]
        return np.stack(columns, axis=1)

    kinds = _kinds(concepts)
    return Chosen(
        labels=["" if one is None else _sum_in_words(one) for one in found],
        sources=[_join(kinds[i] for i in (() if one is None else one.places)) for one in found],
        scores=np.array([0.0 if one is None else one.correlation for one in found]),
        predict=predict,
    )


def _logical(values: Values, presence: Presence, concepts: Concepts, **settings: Any) -> Chosen:
    found = []
    for column in values.T.astype(np.float64):
        constant = column.std() == 0
        found.append(None if constant else logical_explanation(column, presence, concepts.names, **settings))
    kinds = _kinds(concepts)
    return Chosen(
        labels=["" if one is None else str(one) for one in found],
        sources=[_join(kinds[p] for _, p, _ in (() if one is None else one.steps)) for one in found],
        scores=np.array([0.5 if one is None else one.auc for one in found]),
        predict=lambda there: np.stack(
            [np.zeros(len(there)) if one is None else one(there).astype(np.float64) for one in found], axis=1
        ),
    )


def _sum_in_words(one: Any) -> str:
    return " ".join(f"{weight:+.2g} {name}" for weight, name in zip(one.weights, one.concepts, strict=True))


def _kinds(concepts: Concepts) -> tuple[str, ...]:
    return concepts.kinds or ("concept",) * len(concepts)


def _join(kinds: Any) -> str:
    return ", ".join(sorted(set(kinds)))
