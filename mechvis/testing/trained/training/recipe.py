"""From a task and a seed to two folders: a planted model with its certificate, and its twin.

1. Train the planted model, save it, open it again as a user would, certify it on images of its own.
2. The same for the twin: same architecture, images and seed, behaviour alone.
3. Write `truth.json` (places), `certificate.json` (figures, gates, curve, plan) and a card with both side by side.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mechvis
from mechvis.testing.trained.certificate import Subject, certify
from mechvis.testing.trained.gates import gates, require
from mechvis.testing.trained.task import PlantedTask
from mechvis.testing.trained.tasks import task_of
from mechvis.testing.trained.training.card import write_card
from mechvis.testing.trained.training.decoys import DecoyWeights
from mechvis.testing.trained.training.fit import Curve, FitPlan, fit
from mechvis.testing.trained.training.model import new_model, save_model

PLANS = {
    "colour-if-shape": FitPlan(steps=4000),
    "same-different": FitPlan(steps=4000),
}
TWIN_STEPS = {"colour-if-shape": 1500, "same-different": 2000}


def build(
    name: str,
    out: Path | str,
    *,
    seed: int = 0,
    decoys: bool = True,
    steps: int | None = None,
    n: int = 1000,
    strict: bool = True,
) -> tuple[Path, Path]:
    """Train, certify and write a planted model and its twin.

    Args:
        name: the task; underscores are as good as hyphens.
        out: where the folders `<task>-<seed>` and `<task>-<seed>-twin` go.
        seed: of heads, weights, images and interchanges.
        decoys: make unused heads loud and informative.
        steps: optimiser steps instead of the recipe's, for both models.
        n: images of the certificate.
        strict: refuse a planted model that misses a gate (its folder remains, for study).

    Returns:
        Both folders.

    Raises:
        UnknownName: no such task.
        FailedCheck: a gate does not hold.

    Example:
        >>> build("colour-if-shape", "models")                                            # doctest: +SKIP
    """
    task = task_of(name)
    plan = replace(PLANS[task.name], seed=seed, decoys=DecoyWeights() if decoys else None)
    twin = replace(plan, planted=False, decoys=None, steps=TWIN_STEPS[task.name])
    if steps is not None:
        plan, twin = replace(plan, steps=steps), replace(twin, steps=steps)
    folders, records = [], []
    for part in (plan, twin):
        folder = Path(out) / f"{task.name}-{seed}{'' if part.planted else '-twin'}"
        records.append(_make(task, part, folder, decoys=decoys, n=n))
        folders.append(folder)
    for folder in folders:
        write_card(folder, task, planted=records[0], twin=records[1])
    if strict:
        require(gates(records[0]["figures"], decoys=decoys), folders[0].name)
    return folders[0], folders[1]


def _make(task: PlantedTask, plan: FitPlan, folder: Path, *, decoys: bool, n: int) -> dict[str, Any]:
    placement = task.placement(plan.seed)
    if not decoys:
        placement = replace(placement, decoys=(), quiet=())
    model = new_model(task, seed=plan.seed)
    curve: Curve = fit(model, task, placement, plan)
    save_model(model, folder)
    subject = Subject(parts=mechvis.load(str(folder)).parts, task=task, placement=placement)
    figures = certify(subject, n=n)
    record = {
        "format": "mechvis.planted",
        "version": 1,
        "task": task.name,
        "planted": plan.planted,
        "figures": figures,
        "gates": [gate.to_json() for gate in gates(figures, decoys=decoys)],
        "plan": asdict(plan),
        "curve": asdict(curve),
    }
    _write(folder / "truth.json", {"planted": plan.planted, "placement": placement.to_json()})
    _write(folder / "certificate.json", record)
    return record


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
