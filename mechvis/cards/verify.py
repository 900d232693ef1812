"""Is a card what it says? Everything that follows from what is stored, computed again.

1. per-example values against their hash; 2. every mean, ratio and interval from them; 3. every gate from its number
and threshold; 4. with a model or images: their hashes against the card's. A card whose weights, data or definitions
have changed is void.
"""

from typing import Any

import numpy as np
import polars as pl

from mechvis import stats
from mechvis.cards.draft import RULES, ratio_of_sums
from mechvis.cards.faithfulness_card import CARD_VERSION, FaithfulnessCard, hash_examples
from mechvis.cards.parts import Measure
from mechvis.data.images import ImageSet
from mechvis.errors import FailedCheck, ResultMismatch

TOLERANCE = 1e-9
"""Relative: the same numbers on another machine may round differently."""


def verify(card: FaithfulnessCard, model: Any = None, images: Any = None) -> FaithfulnessCard:
    """The card, if it is what it says.

    Args:
        card: to check.
        model: the wrapped model that it should be of; None: not compared.
        images: the image set that it should be on.

    Raises:
        FailedCheck: a number does not follow from what is stored; says which.
        ResultMismatch: made of other weights, other images, or by another version of the card.

    Example:
        >>> verify(FaithfulnessCard.load("cards/rollout"), model=model)    # doctest: +SKIP
    """
    if card.content["card_version"] != CARD_VERSION:
        raise ResultMismatch(
            f"the card is of version {card.content['card_version']}, this mechvis makes {CARD_VERSION}."
        )
    if model is not None and model.fingerprint != card.content["subject"].get("fingerprint"):
        raise ResultMismatch("the card is void for this model: its weights are not those that were judged.")
    if isinstance(images, ImageSet) and images.fingerprint != card.content["data"].get("fingerprint"):
        raise ResultMismatch("the card is void for these images: they are not those that it was judged on.")
    if hash_examples(card.examples) != card.content["examples"]:
        raise FailedCheck("the per-example values are not those that the card was made from.")
    for measure in card.measures:
        _check_measure(card, measure)
    for gate in card.gates:
        if gate.rule:
            passed = gate.statistic is not None and RULES[gate.rule](gate.statistic, gate.threshold)
            if (gate.status == "pass") != passed:
                raise FailedCheck(
                    f"{gate.id} says {gate.status}, but {gate.statistic} {gate.rule} {gate.threshold} is {passed}."
                )
    return card


def _check_measure(card: FaithfulnessCard, measure: Measure) -> None:
    seed = card.content["seed"]
    if measure.statistic == "given":
        return
    if measure.statistic == "ratio":
        above, below = (_values(card, f"{measure.key}:{half}") for half in ("numerator", "denominator"))
        known = ~(np.isnan(above) | np.isnan(below))
        found = stats.interval_of(ratio_of_sums, above[known], below[known], seed=seed)
    else:
        estimate = stats.bootstrap(_values(card, measure.key)[: measure.n + measure.excluded], seed=seed)
        found = float(estimate.effect[0]), float(estimate.low[0]), float(estimate.high[0])
    for word, stated, computed in zip(
        ("value", "low", "high"), (measure.value, measure.low, measure.high), found, strict=True
    ):
        same = (stated is None) == (not np.isfinite(computed))
        if same and stated is not None:
            same = abs(stated - computed) <= TOLERANCE * max(1.0, abs(stated))
        if not same:
            raise FailedCheck(f"{measure.key}: the card says {word} {stated}, its examples give {computed}.")


def _values(card: FaithfulnessCard, column: str) -> np.ndarray:
    if column not in card.examples.columns:
        raise FailedCheck(f"the card has no per-example values of {column!r}.")
    return card.examples[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
