"""Decide gates from the numbers that a row keeps, by the rules of the card as they are now.

Gates that compare with controls (G6) and with planted evidence (G7) are decided here, so that a change of a rule or a
threshold needs no new run; the others are as they were decided when they were measured.
"""

from typing import Any

import numpy as np

from mechvis.cards import thresholds

CONTROLS = {"random": "a", "centre": "b", "input_norm": "c"}


MARGIN = getattr(thresholds, "PRIOR_MARGIN", 0.0)
"""By which share of its advantage over a random map a prior may be better than an explanation."""


def failed_gates(row: dict[str, Any], margin: float = MARGIN, planted: tuple[float, float] | None = None) -> list[str]:
    """Gates that a row fails.

    Args:
        row: as `benchmarks.gates` keeps it.
        margin: see :data:`MARGIN`.
        planted: bounds of G7a and G7b; None: the card's.
    """
    found = {id for id, (status, _) in row["gates"].items() if status == "fail"}
    if "better" in row:
        found = {id for id in found if not id.startswith("G6")} | _controls(row["better"], margin)
    if "planted" in row:
        found = {id for id in found if not id.startswith("G7")} | _planted(row["planted"], planted)
    return sorted(found)


def _controls(better: dict[str, list[float]], margin: float) -> set[str]:
    """A random map must be beaten; a prior must not be better, by more than the margin, under any operator."""
    found = set()
    for key, (low, high) in better.items():
        control, used = key.split("/")
        if control == "random":
            wrong = low <= 0
        else:
            advantage = np.mean(better[f"random/{used}"]) - np.mean(better[key])
            wrong = high < -margin * max(0.0, float(advantage))
        if wrong:
            found.add(f"G6{CONTROLS[control]}")
    return found


def _planted(planted: dict[str, list[float]], bounds: tuple[float, float] | None) -> set[str]:
    """Mean AUROC and mean contest over the planted models that the method can be asked of."""
    scores = np.array(list(planted.values()), dtype=float).reshape(-1, 2)
    scores = scores[~np.isnan(scores).any(1)]
    if not len(scores):
        return set()
    bounds = bounds or (thresholds.PLANTED, thresholds.CONTEST)
    return {id for id, bound, mean in zip(("G7a", "G7b"), bounds, scores.mean(0), strict=True) if mean < bound}
