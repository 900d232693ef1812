"""The gates of an attribution map: what it must pass before its measures mean anything (faithfulness.md 3.1).

Each gate asks the method again under a change whose effect is known: other weights and another class must change a map,
another batch and another order must not. `GateFor` holds what they share.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.attribution.method import Method
from mechvis.attribution.question import Question
from mechvis.cards import asking, thresholds
from mechvis.cards.draft import Draft
from mechvis.errors import MechvisError
from mechvis.models.random_copy import random_copy
from mechvis.removal.game import Game

FEW = 24
"""Images that gates ask again, at the most: a failure is large, so few show it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A method, its question, and what it answered."""

    method: Method
    """The method."""
    ask: Question
    """All images of the card."""
    maps: Tensor
    """Its maps `[image patch]`."""
    gap: Tensor | None = None
    """Gap of completeness per image."""

    @property
    def few(self) -> Question:
        """The question about the first images."""
        return asking.part_of(self.ask, torch.arange(min(FEW, len(self.ask.pixels))))


def no_op(draft: Draft, of: Asked, games: dict[str, Game]) -> None:
    """G1: keeping every patch changes no score."""
    clean = of.ask.scores().double()
    spread = float(clean.std()) if len(clean) > 1 else 0.0
    worst = max(float((game.full().double() - clean).abs().max()) for game in games.values())
    scale = max(spread, 1e-3 * float(clean.abs().max()), 1e-12)
    why = "largest change of a score with every patch kept, relative to the spread of scores"
    draft.gate("G1", worst / scale, "<=", thresholds.NO_OP * (1 if of.ask.pixels.dtype == torch.float64 else 100), why)


def complete(draft: Draft, of: Asked) -> None:
    """G2: maps add up to what they should."""
    if not of.method.CLAIMS.complete:
        draft.no_gate("G2", "not applicable", "the method does not claim that its maps add up to anything")
    elif of.gap is None:
        draft.no_gate("G2", "fail", "the method claims completeness and does not say what its maps should add up to")
    else:
        why = "median over images of |sum of the map - difference of scores| / |difference|"
        draft.gate("G2", float(of.gap.median()), "<=", thresholds.COMPLETE, why)


def random_weights(draft: Draft, of: Asked, copies: int) -> None:
    """G3: a model with random weights gets another map."""
    found = []
    try:
        for copy in range(copies):
            other = random_copy(of.ask.model, seed=draft.seed + copy)
            found.append(
                asking.rank_agreement(_first(of), asking.ask_in_batches(of.method, replace(of.few, model=other)))
            )
    except (MechvisError, RuntimeError) as error:
        draft.no_gate("G3", "not run", f"the method fails on the model with random weights: {error}")
        return
    draft.columns["G3: rank correlation with random weights"] = _filled(np.nanmean(np.stack(found), 0), len(of.maps))
    why = f"mean rank correlation of maps with those of the same architecture with random weights ({copies} draws)"
    draft.gate("G3", _mean(np.concatenate(found)), "<", thresholds.RANDOM_WEIGHTS, why)


def target(draft: Draft, of: Asked) -> None:
    """G4: another class gets another map."""
    n_classes = asking.n_classes_of(of.ask.model, of.few)
    if n_classes < 2:
        draft.no_gate("G4", "not applicable", "the model has one output")
        return
    if n_classes == 2 and of.ask.target.contrast is not None and not of.method.CLAIMS.signed:
        draft.no_gate(
            "G4", "not applicable", "two classes: the other difference is minus this one, and maps are unsigned"
        )
        return
    other = asking.ask_in_batches(of.method, replace(of.few, target=asking.other_classes(of.few, n_classes)))
    found = asking.rank_agreement(_first(of), other)
    draft.columns["G4: rank correlation with another class"] = _filled(found, len(of.maps))
    why = "mean rank correlation of maps with those of another class, drawn for each image"
    draft.gate("G4", _mean(found), "<", thresholds.OTHER_TARGET, why)


def invariance(draft: Draft, of: Asked) -> None:
    """G5: each image alone and in another order gives the same map; another seed nearly the same order of patches."""
    few = of.few
    n = min(8, len(few.pixels))
    backwards = [asking.ask_in_batches(of.method, asking.part_of(few, [place]), 1) for place in range(n - 1, -1, -1)]
    alone = torch.cat(backwards[::-1])
    worst = asking.relative_difference(alone, of.maps[:n].to(alone))
    why = "largest change of a map when images are explained alone and in reverse, relative to the largest value"
    draft.gate("G5a", worst, "<=", thresholds.BATCH, why)
    another = asking.ask_in_batches(of.method, replace(few, seed=few.seed + 1))
    if of.method.CLAIMS.random:
        # By size, not by rank: patches that do nothing are in another order with every seed.
        found = asking.agreement(_first(of), another)
        draft.columns["G5: correlation with another seed"] = _filled(found, len(of.maps))
        why = "mean correlation of maps between two seeds of the method"
        draft.gate("G5b", _mean(found), ">=", thresholds.SEEDS, why)
    else:
        worst = asking.relative_difference(another, _first(of).to(another))
        why = "largest change of a map with another seed, of a method that claims to draw nothing"
        draft.gate("G5b", worst, "<=", thresholds.BATCH, why)


def finite(draft: Draft, of: Asked) -> None:
    """G8: numbers, and not the same one everywhere."""
    bad = ~torch.isfinite(of.maps).all(1) | (of.maps.max(1).values == of.maps.min(1).values)
    why = "share of maps with NaN or Inf, or with the same number everywhere"
    draft.gate("G8", float(bad.double().mean()), "<=", thresholds.EXCLUDED, why)


def as_stored(draft: Draft, of: Asked, stored: Tensor | None) -> None:
    """G9: the stored maps are what the method gives when it is asked again."""
    if stored is None:
        draft.no_gate("G9", "not applicable", "no stored maps of these images: the method was asked for this card")
        return
    worst = asking.relative_difference(of.maps, stored.to(of.maps))
    if of.method.CLAIMS.random:
        agreement = _mean(asking.agreement(of.maps, stored.to(of.maps)))
        draft.gate("G9", agreement, ">=", thresholds.SEEDS, "mean correlation of stored maps with new ones")
    else:
        draft.gate("G9", worst, "<=", thresholds.BATCH, "largest difference of stored maps and new ones, relative")


def _first(of: Asked) -> Tensor:
    return of.maps[: len(of.few.pixels)]


def _mean(values: Any) -> float:
    """Mean over images with a value; NaN, which fails, where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _filled(values: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([values, np.full(n - len(values), np.nan)])
