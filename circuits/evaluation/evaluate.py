"""One call that judges a circuit: is it faithful, necessary, better than chance, complete, minimal?

=======  ===========================================================================================================
level    blocks
=======  ===========================================================================================================
`quick`  faithfulness, necessity, random circuits (edges), CPR and CMD where there are scores
`full`   also random circuits (heads), completeness (edges), minimality, sensitivity
=======  ===========================================================================================================

Refused: a circuit of another architecture, a circuit without an edge, a metric that is constant, the images that the
circuit was found on. Flagged, not refused: denominators too small to divide by, excluded images, few random circuits.
There is no single score: the numbers stand beside each other.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from circuits.circuit import Circuit
from circuits.evaluation.completeness import completeness
from circuits.evaluation.curve import FRACTIONS, Curve, curve
from circuits.evaluation.evaluation import CircuitEvaluation
from circuits.evaluation.faithfulness import denominator, share
from circuits.evaluation.findings import flags, measures
from circuits.evaluation.measured import Cost, check, measured, without
from circuits.evaluation.minimality import minimality
from circuits.evaluation.overlap import check_overlap
from circuits.evaluation.random_control import RandomControl, random_control
from circuits.evaluation.sensitivity import sensitivity
from circuits.task import Task
from mechvis.errors import BadData, unknown

Level = Literal["quick", "full"]
LEVELS = ("quick", "full")


def evaluate(
    circuit: Circuit,
    task: Task,
    *,
    level: Level = "quick",
    scores: Any = None,
    reference: Any = None,
    n_random: int = 100,
    fractions: Sequence[float] = FRACTIONS,
    prune: bool = True,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> CircuitEvaluation:
    """Judge a circuit on a task.

    Args:
        circuit: what is to be judged.
        task: other images than those that it was found on.
        level: `quick` or `full`; see the module.
        scores: the order of edges behind CPR and CMD; default: the circuit's own scores.
        reference: images for the means of the sensitivity block, where the task has none.
        n_random: random circuits per control.
        fractions: of the curve.
        prune: drop dangling edges first, and count what is left (methods.md 5.7 **C**). This changes nothing about what
            the circuit computes under `patch` and `resample`; under means and zero an unfed component still writes
            something, so it can.
        seed: of every draw and of the bootstrap.
        allow_overlap: accept images that the circuit was found on; flagged.
        progress: show progress bars.

    Raises:
        ResultMismatch: a circuit or scores of another architecture.
        BadData: no edge is left; a constant metric.
        SplitOverlap: images that the circuit was found on.
        UnknownName: no such level.
        OutOfRange, NotFinite.

    Example:
        >>> first, second = task.halves()                                                          # doctest: +SKIP
        >>> circuit = circuits.select(circuits.eap(first), 50)                                     # doctest: +SKIP
        >>> print(evaluate(circuit, second))                                                       # doctest: +SKIP
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    check(task, circuit)
    overlap = check_overlap(circuit, task, allow_overlap=allow_overlap)
    judged = circuit.pruned() if prune else circuit
    check(task, judged, empty=False)
    started, cost = time.perf_counter(), Cost()
    known = denominator(task, seed=seed)
    alone, rest = measured(
        task, [judged.kept, without(task.graph, judged.kept)], cost=cost, progress=progress, what="circuit"
    )
    enough = share(alone, task.empty, task.full, seed=seed)
    needed = share(rest, task.full, task.empty, seed=seed)
    run = {"seed": seed, "cost": cost, "progress": progress}
    not_run: dict[str, str] = {}
    controls = _controls(task, judged, level, n_random, not_run, run)
    found_curve = _curve(task, circuit, scores, level, fractions, not_run, run)
    complete, minimal, table = None, None, None
    if level == "full":
        complete = completeness(task, judged, over="edges", **run)
        minimal = minimality(task, judged, **run)
        table = sensitivity(task, judged, reference=reference, allow_overlap=allow_overlap, **run)
    else:
        not_run |= dict.fromkeys(("completeness", "minimality", "sensitivity"), "part of level='full'")
    return CircuitEvaluation(
        title=circuit.title,
        level=level,
        facts={
            "edges": len(judged),
            "n_edges": task.graph.n_edges,
            "components": len(judged.nodes),
            "n_components": len(task.graph.writers),
            "pruned": len(circuit) - len(judged),
            "full": known.full,
            "empty": known.empty,
            "rows": cost.rows + 2 * len(task),
            "seconds": round(time.perf_counter() - started, 3),
        },
        measures=measures(known, enough, needed, controls, found_curve, complete, minimal, table),
        images=task.image_table().with_columns(
            _columns({"full": task.full, "empty": task.empty, "circuit": alone, "without circuit": rest})
        ),
        curve=found_curve,
        controls=controls,
        completeness=complete,
        minimality=minimal,
        sensitivity=table,
        flags=flags(task, circuit, judged, known, enough, controls, overlap, table),
        not_run=not_run,
        provenance=task.provenance(
            circuit={"title": circuit.title, "edges": list(judged.edges), "model": dict(circuit.model)},
            found=dict(circuit.provenance),
            evaluation={
                "level": level,
                "n_random": n_random,
                "fractions": list(fractions),
                "prune": prune,
                "allow_overlap": allow_overlap,
                "seed": seed,
            },
        ),
    )


def _controls(
    task: Task, circuit: Circuit, level: str, n: int, not_run: dict[str, str], run: dict[str, Any]
) -> tuple[RandomControl, ...]:
    found = []
    for how in ("edges", "heads"):
        if how == "heads" and level == "quick":
            not_run["random heads"] = "part of level='full'"
            continue
        try:
            found.append(random_control(task, circuit, n=n, how=how, **run))
        except BadData as error:
            not_run[f"random {how}"] = str(error)
    return tuple(found)


def _curve(
    task: Task,
    circuit: Circuit,
    scores: Any,
    level: str,
    fractions: Sequence[float],
    not_run: dict[str, str],
    run: dict[str, Any],
) -> Curve | None:
    scores = circuit if scores is None and circuit.scores is not None else scores
    if scores is None:
        not_run["curve"] = "the circuit has no scores to order the edges by; pass scores="
        return None
    return curve(task, scores, fractions=fractions, n_random=3 if level == "quick" else 10, **run)


def _columns(values: dict[str, np.ndarray]) -> list[Any]:
    import polars as pl

    return [pl.Series(name, column) for name, column in values.items()]
