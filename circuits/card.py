"""The card of a circuit: `circuits.evaluate`, with gates, as a document that can be checked.

1. Gates: all edges give the model and none the empty one, exactly (G1); rows of other circuits in the batch change
   nothing (G5); more faithful than random circuits of its size and layer profile, under two kinds of ablation (G6); the
   way it was found finds a planted circuit (G7); neither empty nor everything (G8); faithful on these images, which are
   not those that it was found on (G9).
2. Measures with per-image values: faithfulness, necessity (ratios of sums over images, and both beside the mean of
   ratios); CPR, CMD, completeness, minimality as `evaluate` gives them. 3. Sensitivity over ablations and metrics.
"""

from typing import Any

import numpy as np
import polars as pl

from circuits.circuit import Circuit
from circuits.evaluation.evaluate import evaluate
from circuits.evaluation.measured import measured, without
from circuits.evaluation.random_control import random_control
from circuits.evaluation.variants import with_ablation
from circuits.task import Task
from mechvis.cards import thresholds
from mechvis.cards.data import CardData, subject
from mechvis.cards.draft import Draft
from mechvis.cards.faithfulness_card import FaithfulnessCard
from mechvis.cards.parts import LEVELS
from mechvis.cards.scope import scope_of
from mechvis.errors import BadData, MechvisError, unknown
from mechvis.files import canonical_json, checksum

DRAWS = {"smoke": 40, "standard": 100, "full": 200}
"""Random circuits of each control."""
BY_CHANCE = 0.05
"""G6: largest p-value of "a random circuit"."""


def circuit_card(
    circuit: Circuit, data: CardData | Task, *, level: str = "smoke", seed: int = 0, allow_overlap: bool = False
) -> FaithfulnessCard:
    """How far to believe a circuit.

    Args:
        circuit: what is judged.
        data: a task on images that it was not found on, or `CardData` whose `extra` is one.
        level: `smoke`, `standard` or `full`.
        seed: of every draw.
        allow_overlap: accept images that the circuit was found on; flagged.

    Raises:
        BadData: no task, no edge is left, a constant metric.
        SplitOverlap: images that the circuit was found on.
        ResultMismatch: a task on a model of another architecture.

    Example:
        >>> first, second = task.halves()                                                          # doctest: +SKIP
        >>> circuits.select(circuits.eap(first), 50).card(second)                                  # doctest: +SKIP
    """
    if level not in LEVELS:
        raise unknown("level of a card", level, LEVELS)
    task = data if isinstance(data, Task) else data.extra
    if not isinstance(task, Task):
        raise BadData("a circuit is judged on a task: circuit.card(circuits.task(model, pairs)).")
    task = task[: LEVELS[level]]
    found = evaluate(
        circuit,
        task,
        level="quick" if level == "smoke" else "full",
        n_random=DRAWS[level],
        seed=seed,
        allow_overlap=allow_overlap,
        progress=False,
    )
    judged = circuit.pruned()
    draft = _draft(circuit, judged, task, level, seed)
    draft.warnings.extend(found.flags)
    alone, rest = measured(task, [judged.kept, without(task.graph, judged.kept)])
    _gates(draft, task, judged, alone, seed)
    _chance(draft, task, judged, found, level, seed)
    _planted(draft, circuit, seed)
    gain = task.full - task.empty
    for name, above, text in (
        ("faithfulness", alone - task.empty, "(m(C) - m(empty)) / (m(M) - m(empty))"),
        ("necessity", task.full - rest, "(m(M) - m(M without C)) / (m(M) - m(empty))"),
    ):
        draft.ratio(name, above, gain, formula=f"{text}, ratio of sums over images; v1", direction="high", unit="share")
    low = draft.measures[0].low
    why = "lower end of the 95 % interval of faithfulness on images that the circuit was not found on"
    draft.gate("G9", float("nan") if low is None else low, ">", 0.0, why)
    for row in found.measures.iter_rows(named=True):
        if row["measure"] not in ("faithfulness", "necessity"):
            better = {"higher": "high", "lower": "low"}.get(row["better"], "none")
            given = {"n": row["n"], "formula": f"{row['about']}; circuits.evaluate v1", "direction": better}
            draft.given(row["measure"], row["value"], row["low"], row["high"], **given)
    if found.sensitivity is not None:
        draft.tables["sensitivity"] = found.sensitivity
    draft.gates.sort(key=lambda gate: gate.id)
    silent = ["other images", "other classes", "other ablations and metrics than those named", "other models"]
    scope = scope_of(f"a circuit of {len(judged)} edges", draft.subject, draft.data, silent)
    return draft.done(scope=scope, forwards=int(found.facts["rows"]))


def _draft(circuit: Circuit, judged: Circuit, task: Task, level: str, seed: int) -> Draft:
    identity = checksum(canonical_json({"edges": list(judged.edges), "heads": list(circuit.graph.n_heads)}).encode())
    data = {
        "name": task.name,
        "fingerprint": task.fingerprint,
        "n": len(task),
        "n_reference": 0,
        "chosen_on": str(circuit.provenance.get("task", {}).get("fingerprint", "not given")),
        "selection": "the first of the task",
    }
    return Draft(
        kind="circuit",
        object_id=identity,
        subject=subject(task.model),
        method={
            "name": circuit.title,
            "settings": {"edges": len(judged), "of": task.graph.n_edges},
            "claims": {"complete": False, "class_specific": True, "signed": True, "linear": False},
        },
        data=data,
        task={
            "score": task.metric_name,
            "target": "task",
            "contrast": "task",
            "unit": "edge",
            "ablation": task.ablation,
        },
        level=level,
        seed=seed,
    )


def _gates(draft: Draft, task: Task, judged: Circuit, alone: np.ndarray, seed: int) -> None:
    everything, nothing = measured(task, [task.graph.allowed, np.zeros_like(task.graph.allowed)])
    worst = max(float(abs(everything - task.full).max()), float(abs(nothing - task.empty).max()))
    draft.gate(
        "G1", worst, "<=", 0.0, "largest difference of all edges and the model, and of no edge and the empty model"
    )
    few = task[: min(7, len(task))]
    again = measured(few, [judged.kept])[0]
    worst = float(abs(again - alone[: len(again)]).max() / max(abs(alone).max(), 1e-12))
    why = "largest change of the metric when a few images are run on their own, relative"
    draft.gate("G5", worst, "<=", thresholds.BATCH, why)
    share = len(judged) / task.graph.n_edges
    why = "share of all edges; everything is no explanation"
    draft.gate("G8", share if share > 0 else float("nan"), "<", 0.95, why)
    draft.no_gate("G2", "not applicable", "edges need not add up")
    draft.no_gate("G3", "not applicable", "the circuit is measured in this model; random circuits are its control (G6)")
    draft.no_gate("G4", "not applicable", "the task says which output is explained")


def _chance(draft: Draft, task: Task, judged: Circuit, found: Any, level: str, seed: int) -> None:
    """G6 under the task's ablation and under zero ablation."""
    rows = []
    for name, one in ((task.ablation, task), ("zero", with_ablation(task, "zero"))):
        if name in [row["ablation"] for row in rows]:
            one, name = with_ablation(task, "resample", seed=seed), "resample"
        try:
            control = (
                found.control("edges")
                if one is task
                else random_control(one, judged, n=DRAWS[level], seed=seed, progress=False)
            )
        except (BadData, MechvisError) as error:
            draft.warnings.append(f"No random circuits under {name}: {error}")
            continue
        rows.append({"ablation": name, **control.row()})
    if not rows:
        draft.no_gate("G6", "not run", "there are no other circuits of this size and layer profile")
        return
    draft.tables["random circuits"] = pl.DataFrame(rows)
    why = f"largest p-value among random circuits of equal size and layer profile, under {len(rows)} ablations"
    draft.gate("G6", max(row["p"] for row in rows), "<=", BY_CHANCE, why)


def _planted(draft: Draft, circuit: Circuit, seed: int) -> None:
    """G7: the method that found it, on the wired cue-lookup model."""
    from circuits.planted import method_of, recover

    name = method_of(circuit.provenance)
    if not name:
        draft.no_gate("G7", "not run", "the way it was found is not recorded, or cannot be repeated on a planted model")
        return
    found = recover(name, seed=seed)
    draft.tables["planted"] = pl.DataFrame(
        {
            "suite": ["cue-lookup (wired)"],
            "method": [name],
            "auroc": [found.auroc],
            "ap": [found.ap],
            "edges": [found.n],
        }
    )
    why = "AUROC of the method's scores for the edges of a wired model whose circuit is known; 0.5 is chance"
    draft.gate("G7", found.auroc, ">=", thresholds.PLANTED, why)
