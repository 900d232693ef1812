"""ACDC: cut every edge whose loss the output does not notice, from the read-out backwards (methods.md 5.5 **C**; Conmy
et al. 2023).

    for each reader, from `out` back to layer 0; for each edge into it, in a fixed order:
        cut it;  if  drop(with the cut) - drop(before) < tau  it stays cut, else it comes back

`drop` is KL(full || circuit), summed over classes, mean over images, or the fall of another metric. Greedy, and it
depends on the order, which is an argument (**X**).

Three engines that find the same circuit:

===============  ===================================================================================================
`sequential`     one whole forward per edge: the plain twin
`suffix`         each forward restarts at the reader's layer: everything before it is clean, since readers are taken
                 from late to early (hooks_circuits.md 4.2)
`speculative`    rows j = 1..K of one forward have the first j of the coming edges cut, without those that are
                 guessed to stay. Row by row the guess is confirmed or not, and the search goes on behind the first
                 wrong one (4.9, whose guess is that all can go). The guess is what a smaller threshold found for the
                 edge, or else what was just found for the edge from the same writer into the neighbouring head. K
                 grows while guesses hold and shrinks when not. Edges into a component that nobody reads any more are
                 cut without a run: their increment is zero; and what such components read is not made
                 (:mod:`circuits.search.unheard`). Thresholds of a sweep share the circuits that they have in common
===============  ===================================================================================================

Rounding may differ between a row of many and a run alone. So an increment within a hundredth of tau is measured again
by runs of one row, and decided as the sequential search does; what remains is a tie within rounding of a single run.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from circuits.circuit import Circuit
from circuits.search.acdc_ledger import AcdcLedger
from circuits.search.acdc_search import Engine, Increments, Order, Settings, State, order_of, search
from circuits.search.drops import Drops
from circuits.task import Task
from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track

TAUS = tuple(float(f"{digit}e{power}") for power in (-5, -4, -3, -2) for digit in (1, 3, 5, 7, 9))
"""{1, 3, 5, 7, 9} x 10^{-5..-2} (**C** in a public library)."""


def acdc(
    task: Task,
    tau: float,
    *,
    metric: str | Callable | None = "kl",
    engine: Engine = "speculative",
    order: Order = "late",
    ahead: int | None = None,
    prune: bool = True,
    out: str | Path | None = None,
    progress: bool = True,
) -> Circuit:
    """The circuit that ACDC finds at one threshold.

    Args:
        task: images and ablation (:func:`circuits.task`).
        tau: largest rise of the drop that cutting one edge may cause, in the metric's unit (nats for `kl`).
        metric: `kl`, another name from `mechvis.metrics.METRICS`, a function of the same signature, or None for the
            task's own. The drop is signed: an edge that works against the metric is cut.
        engine: `speculative`, `suffix` or `sequential`: how fast, not what; see the module.
        order: of the edges into one reader, and of the readers of one layer: `late` tries late writers first, `early`
            early ones.
        ahead: most edges that are tried ahead; default: as many as fit the task's memory (on a CPU, its cache).
        prune: drop edges on no path from the embedding to the read-out at the end (the number before is in the
            provenance).
        out: folder that keeps the decisions, and then the circuit; the same call continues an interrupted one.
        progress: show a progress bar.

    Returns:
        Circuit: its scores are the increments that each edge was judged by. `provenance["acdc"]` has what it cost.

    Raises:
        OutOfRange: tau that is not positive.
        NotFinite: cutting edges gives NaN or Inf.
        UnknownName, ResultMismatch, StoreCorrupt, OutputNotWritable.

    Example:
        >>> circuits.acdc(task, 0.01)                                                              # doctest: +SKIP
        Circuit[ACDC, tau 0.01](6 of 110 edges, 3 of 11 components: embed, L0H1, L1H2)
    """
    settings = Settings(tau=_positive(tau), engine=engine, order=order, ahead=ahead)
    drops = _drops(task, metric, engine, remember=False)
    return _one(task, drops, settings, None, prune=prune, out=out, progress=progress)


def acdc_circuits(
    task: Task,
    taus: Sequence[float] = TAUS,
    *,
    metric: str | Callable | None = "kl",
    engine: Engine = "speculative",
    order: Order = "late",
    ahead: int | None = None,
    prune: bool = True,
    out: str | Path | None = None,
    progress: bool = True,
) -> dict[float, Circuit]:
    """ACDC at several thresholds; with the speculative engine, circuits that two searches have in common are run once.

    Args:
        task, metric, engine, order, ahead, prune, out, progress: as for :func:`acdc`.
        taus: thresholds.

    Returns:
        The circuit of each threshold, by rising threshold.

    Raises:
        BadData: no threshold, or one twice.
        OutOfRange, NotFinite, UnknownName, ResultMismatch, StoreCorrupt, OutputNotWritable: as :func:`acdc`.

    Example:
        >>> {tau: len(found) for tau, found in circuits.acdc_circuits(task).items()}               # doctest: +SKIP
    """
    listed = sorted(_positive(tau) for tau in taus)
    if not listed:
        raise BadData("no thresholds given; leave taus= out for the twenty usual ones.")
    if len(set(listed)) != len(listed):
        raise BadData(f"a threshold is listed twice: {listed}.")
    drops = _drops(task, metric, engine, remember=engine == "speculative")
    found: dict[float, Circuit] = {}
    earlier = None
    for tau in listed:
        settings = Settings(tau=tau, engine=engine, order=order, ahead=ahead)
        folder = None if out is None else Path(out) / f"tau-{tau!r}"
        found[tau] = _one(task, drops, settings, earlier, prune=prune, out=folder, progress=progress)
        earlier = found[tau].scores
    return found


def acdc_sweep(task: Task, taus: Sequence[float] = TAUS, *, out: str | Path | None = None, **options: Any) -> Circuit:
    """An ordering of all edges: each one's score is the largest threshold at which ACDC keeps it, 0 if there is none
    (methods.md 5.5 **C**; the public library scores by the smallest threshold that removes an edge, the same order
    where survival is monotone).

    Args:
        task: images and ablation.
        taus: thresholds; default: :data:`TAUS`.
        out: folder that keeps the decisions, the circuit of each threshold, and the result.
        options: the other options of :func:`acdc_circuits`.

    Returns:
        Circuit: the edges that survive any threshold, not pruned, with the scores. Take circuits from it with
        `circuits.select(sweep.scores, n, graph=sweep.graph)`; ties are broken by the order of the forward pass.

    Raises:
        BadData, OutOfRange, NotFinite, UnknownName, ResultMismatch, StoreCorrupt, OutputNotWritable.

    Example:
        >>> sweep = circuits.acdc_sweep(task)                                                      # doctest: +SKIP
        >>> circuits.select(sweep.scores, 6, graph=sweep.graph)                                    # doctest: +SKIP
    """
    options["prune"] = False
    found = acdc_circuits(task, taus, out=out, **options)
    scores = np.where(task.graph.allowed, 0.0, np.nan)
    for tau, circuit in found.items():  # rising: the last that keeps an edge is the largest
        scores[circuit.kept] = tau
    runs = [circuit.provenance["acdc"] for circuit in found.values()]
    facts = task.provenance(acdc={"taus": runs})
    sweep = Circuit(
        graph=task.graph,
        kept=np.nan_to_num(scores) > 0,
        scores=scores,
        title=f"ACDC, {len(found)} thresholds from {min(found):g} to {max(found):g}",
        model=facts["model"],
        provenance=facts,
    )
    if out is not None:
        sweep.save(out)
    return sweep


def _one(
    task: Task,
    drops: Drops,
    settings: Settings,
    earlier: Increments | None,
    *,
    prune: bool,
    out: str | Path | None,
    progress: bool,
) -> Circuit:
    """One search, from its ledger if there is one, to its circuit; `earlier`: increments at another threshold."""
    graph = task.graph
    places = order_of(graph, settings.order)
    state = State.at_start(graph)
    ledger = None
    if out is not None:
        plan = {
            "task": task.fingerprint,
            "model": str(task.model.fingerprint),
            "n_heads": list(graph.n_heads),
            "tau": settings.tau,
            "metric": drops.name,
            "order": settings.order,
        }
        ledger = AcdcLedger(out, plan)
        if (saved := ledger.read(len(places))) is not None:
            writers, readers = places.T
            state.increments[writers, readers] = saved.increments
            state.kept[writers, readers] = ~(saved.increments < settings.tau)
            state.cost |= saved.cost
            # Measured anew where there is something left to do: an interrupt falls between any two steps.
            left = np.isnan(saved.increments).any()
            state.current = drops.alone(state.kept) if left else saved.current
    before, spent = drops.counts.as_dict(), dict(state.cost)
    started = time.perf_counter()

    def account() -> None:
        for name, value in drops.counts.as_dict().items():
            state.cost[name] = spent[name] + value - before[name]
        state.cost["seconds"] = round(spent["seconds"] + time.perf_counter() - started, 3)

    def save() -> None:
        if ledger is not None:
            account()
            ledger.write(state.increments[places[:, 0], places[:, 1]], state.current, state.cost)

    done = int((~np.isnan(state.increments)).sum())
    with track(len(places), f"ACDC, tau {settings.tau:g}", " edges", show=progress, done=done) as bar:
        try:
            for step in search(graph, drops, settings, places, state, earlier):
                bar.update(step)
                if ledger is not None and ledger.due():
                    save()
        finally:
            save()
    account()
    facts = task.provenance(
        acdc={
            "tau": settings.tau,
            "metric": drops.name,
            "engine": settings.engine,
            "order": settings.order,
            "drop": state.current,
            "edges": int(state.kept.sum()),
            "pruned": prune,
            **state.cost,
        }
    )
    circuit = Circuit(
        graph=graph,
        kept=state.kept,
        scores=state.increments,
        title=f"ACDC, tau {settings.tau:g}",
        model=facts["model"],
        provenance=facts,
    )
    circuit = circuit.pruned() if prune else circuit
    if out is not None:
        circuit.save(out)
    return circuit


def _drops(task: Task, metric: str | Callable | None, engine: Engine, *, remember: bool) -> Drops:
    return Drops(task, metric, restart=engine != "sequential", lean=engine == "speculative", remember=remember)


def _positive(tau: float) -> float:
    if not (isinstance(tau, int | float | np.floating) and 0 < tau < np.inf):
        raise OutOfRange(
            f"tau={tau!r}: a threshold is a positive number. With 0 or less, rounding would decide about edges that "
            "carry nothing."
        )
    return float(tau)
