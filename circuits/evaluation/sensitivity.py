"""Does the verdict on a circuit hold under other choices that could have been made as well? (faithfulness.md 2.4)

Every ablation x every metric x (edges, nodes) x both orders of averaging. The same circuit has been seen to look
faithful under one choice and not under another, so this block belongs to every full evaluation. `nodes`: the circuit of
all edges between the circuit's components, which is what a head-level method would have found.

What "mean" is over: `mean_positional` over the reference images, per token; `mean` over reference images and all
tokens, the prefix tokens among them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from circuits.circuit import Circuit
from circuits.edges.base import ABLATIONS
from circuits.evaluation.faithfulness import denominator, share
from circuits.evaluation.measured import Cost, check, measured, without
from circuits.evaluation.variants import with_ablation
from circuits.task import Task
from mechvis.errors import BadData, unknown
from mechvis.metrics import get

METRICS = ("logit_diff", "prob", "kl")

_NUMBERS = (
    "faithfulness",
    "low",
    "high",
    "mean of ratios",
    "mean of ratios low",
    "mean of ratios high",
    "necessity",
    "necessity low",
    "necessity high",
    "full",
    "empty",
)


def sensitivity(
    task: Task,
    circuit: Circuit,
    *,
    ablations: Sequence[str] | None = None,
    metrics: Sequence[str | Callable] = METRICS,
    reference: Any = None,
    seed: int = 0,
    allow_overlap: bool = False,
    cost: Cost | None = None,
    progress: bool = True,
) -> Any:
    """Faithfulness and necessity under every ablation and metric, in both orders of averaging.

    Args:
        task: images and classes; its own ablation and metric are among those tried.
        circuit: not empty.
        ablations: default: all that can be made of the task and the reference images; for the others a row says why
            they were not run.
        metrics: names from `mechvis.metrics`, or functions of the same signature.
        reference: images for the means, where the task has none.
        seed: of resampling and of the bootstrap.
        allow_overlap: accept reference images that are measured too.
        cost: counts the passes.
        progress: show a progress bar.

    Returns:
        polars, one row per ablation, metric and level (`edges`: the circuit; `nodes`: its components with all edges
        between them): `faithfulness` (ratio of means) with `low` and `high`, `mean of ratios` with its interval, `tiny`
        (images left out of it), `necessity` with its interval, `full`, `empty` (means of the metric), `note` (why it
        was not run, or why its shares are weak).

    Raises:
        BadData: an empty circuit; an ablation that was asked for by name and cannot be made.
        UnknownName, ResultMismatch, SplitOverlap.

    Example:
        >>> sensitivity(task, circuit, reference=others)                                           # doctest: +SKIP
    """
    import polars as pl

    check(task, circuit, empty=False)
    asked = ABLATIONS if ablations is None else tuple(ablations)
    for ablation in asked:
        if ablation not in ABLATIONS:
            raise unknown("ablation", ablation, ABLATIONS)
    rows = []
    for ablation in asked:
        own_reference = reference if ablation.startswith("mean") else None
        try:
            changed = with_ablation(task, ablation, reference=own_reference, seed=seed, allow_overlap=allow_overlap)
        except BadData as error:
            if ablations is not None:
                raise
            rows += [
                _not_run(ablation, get(metric)[0], level, f"not run: {error}")
                for metric in metrics
                for level in _LEVELS
            ]
            continue
        for metric in metrics:
            rows += _rows(changed.with_metric(metric), circuit, seed, cost, progress)
    kinds = {"ablation": pl.String, "metric": pl.String, "level": pl.String, "edges": pl.Int64, "tiny": pl.Int64}
    kinds |= dict.fromkeys(_NUMBERS, pl.Float64) | {"note": pl.String}
    order = ["ablation", "metric", "level", "edges", *_NUMBERS[:6], "tiny", *_NUMBERS[6:], "note"]
    return pl.DataFrame(rows, schema={name: kinds[name] for name in order})


_LEVELS = ("edges", "nodes")


def _rows(task: Task, circuit: Circuit, seed: int, cost: Cost | None, progress: bool) -> list[dict[str, Any]]:
    graph = task.graph
    try:
        known = denominator(task, seed=seed)
    except BadData as error:
        return [_not_run(task.ablation, task.metric_name, level, f"not run: {error}") for level in _LEVELS]
    kept = {"edges": circuit.kept, "nodes": graph.inner_edges(circuit.nodes)}
    masks = [mask for level in _LEVELS for mask in (kept[level], without(graph, kept[level]))]
    what = f"{task.ablation}, {task.metric_name}"
    values = measured(task, masks, cost=cost, progress=progress, what=what)
    if cost is not None:
        cost.rows += 2 * len(task)  # the whole model and the empty one
    rows = []
    for place, level in enumerate(_LEVELS):
        enough = share(values[2 * place], task.empty, task.full, seed=seed)
        needed = share(values[2 * place + 1], task.full, task.empty, seed=seed)
        rows.append(
            {
                "ablation": task.ablation,
                "metric": task.metric_name,
                "level": level,
                "edges": int(kept[level].sum()),
                "faithfulness": enough.value,
                "low": enough.low,
                "high": enough.high,
                "mean of ratios": enough.mean_of_ratios,
                "mean of ratios low": enough.mean_low,
                "mean of ratios high": enough.mean_high,
                "tiny": enough.tiny,
                "necessity": needed.value,
                "necessity low": needed.low,
                "necessity high": needed.high,
                "full": known.full,
                "empty": known.empty,
                "note": known.weak,
            }
        )
    return rows


def _not_run(ablation: str, metric: str, level: str, note: str) -> dict[str, Any]:
    return {"ablation": ablation, "metric": metric, "level": level, "note": note} | dict.fromkeys(_NUMBERS)


def spread(table: Any, level: str = "edges") -> tuple[float, float, int]:
    """Smallest and largest faithfulness over all choices, both orders of averaging, and how many there are.

    Args:
        table: of :func:`sensitivity`.
        level: `edges` or `nodes`.

    Example:
        >>> spread(table)                                                                          # doctest: +SKIP
        (0.71, 1.02, 30)
    """
    import polars as pl

    rows = table.filter(pl.col("level") == level)
    values = np.concatenate([rows[name].drop_nulls().to_numpy() for name in ("faithfulness", "mean of ratios")])
    if not len(values):
        raise BadData(f"no choice of ablation and metric was run at the level {level!r}.")
    return float(values.min()), float(values.max()), len(values)
