"""How many heads to remove, decided on the validation images.

Heads that share a cue hardly count one by one and much together. So sets of heads are judged as sets:

1. A set is *validated* if it lowers BIR, costs no group more accuracy than allowed, and is reliably good: its joint
   guarded score (as in `circuits.head_scores`, with all its heads removed), or its gain in the worst group, has an
   interval above zero. The intervals cover 99 %, since several sets are tried.
2. Among validated sets of recommended heads the best worst group wins; at a tie the smaller set, unless a larger one
   lowers BIR noticeably.
3. Heads that are not recommended alone join only if the worst group is reliably better with them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from circuits.outcome import Outcome, outcomes
from circuits.study_inputs import Split
from mechvis import stats
from mechvis.units import Unit

SET_LEVEL = 0.99
"""Coverage of the intervals that validate a set of heads."""
EQUAL_BIR = 0.01
"""Sets whose BIR differs by less count as equal; the smaller one is taken."""


def choose(
    model: Any,
    validate: Split,
    recommended: list[Unit],
    others: list[Unit],
    k: int | str,
    candidates: Sequence[int],
    max_cost: float,
    options: dict,
    seed: int,
) -> tuple[pl.DataFrame, list[Unit]]:
    """Try numbers of heads on the validation images, and take the best worst group among the sets that are validated.

    A set is validated if it lowers BIR, costs no group more than `max_cost`, and is reliably good: its joint guarded
    score, or its gain in the worst group, has an interval above zero (99 %, since several sets are tried). Heads that
    are not recommended join only if the worst group is reliably better with them than with the recommended ones.
    """
    heads = [*recommended, *others]
    all_recommended = min(len(recommended), max(candidates))
    tried = sorted(
        {0, all_recommended, *(int(c) for c in candidates if c <= len(heads)), *([] if k == "auto" else [int(k)])}
    )
    sets = [(heads[:c], options["mode"]) for c in tried]
    shared = {name: options[name] for name in ("fill", "tau", "means")}
    found = dict(zip(tried, outcomes(model, validate.images, validate.masks.masks, sets, **shared), strict=True))
    rows = {
        c: {
            "K": c,
            "heads": " ".join(unit.name for unit in heads[:c]),
            **result.row(),
            **_validation(found[0], result, max_cost, seed),
        }
        for c, result in found.items()
    }
    curve = pl.DataFrame(list(rows.values()), infer_schema_length=None)
    if k != "auto":
        return curve, sorted(heads[: int(k)])
    allowed = [c for c in tried if rows[c]["validated"]]
    best = _best([c for c in allowed if c <= len(recommended)], rows)
    better = [c for c in allowed if c > len(recommended) and _gain(found[best], found[c], 0.95, seed) > 0]
    return curve, sorted(heads[: _best(better, rows) if better else best])


def _best(sizes: list[int], rows: dict[int, dict[str, Any]]) -> int:
    """The best worst group; then fewer heads, unless more of them lower BIR by an amount that anybody would notice."""
    most = max(rows[c]["worst group"] for c in sizes)
    equal = [c for c in sizes if rows[c]["worst group"] == most]
    lowest = min((rows[c]["BIR"] for c in equal if np.isfinite(rows[c]["BIR"])), default=np.inf)
    return min(c for c in equal if not np.isfinite(lowest) or rows[c]["BIR"] <= lowest + EQUAL_BIR)


def _gain(before: Outcome, after: Outcome, level: float, seed: int) -> float:
    """Lower end of the interval of the gain in what was the worst group (all images, where there are no groups)."""
    groups = before.group_accuracy
    worst = before.groups == min(groups, key=groups.__getitem__) if groups else np.ones(len(before.correct), bool)
    return float(stats.bootstrap((after.correct - before.correct)[worst], level=level, seed=seed).low[0])


def _validation(whole: Outcome, found: Outcome, max_cost: float, seed: int) -> dict[str, Any]:
    """What decides whether a set of heads may be removed, on the validation images."""
    cost = float(whole.correct.mean() - found.correct.mean())
    if whole.group_accuracy:
        cost = max(before - found.group_accuracy[group] for group, before in whole.group_accuracy.items())
    guarded = stats.bootstrap(whole.big - found.big - found.damage, level=SET_LEVEL, seed=seed)
    gain = _gain(whole, found, SET_LEVEL, seed)
    reliable = bool(guarded.low[0] > 0 or gain > 0)
    return {
        "joint guarded": float(guarded.effect[0]),
        "joint guarded, low": float(guarded.low[0]),
        "worst group gain, low": gain,
        "largest cost": cost,
        "validated": not found.heads or (found.bir < whole.bir and cost <= max_cost + 1e-12 and reliable),
    }
