"""Is every edge of the circuit needed by the circuit? (faithfulness.md 2.4 **K**)

    minimality(v) = max over K of | m(C without K) - m(C without K and v) |  /  | m(M) - m(0) |

K = nothing first: what the circuit loses with this one edge. An edge whose place is taken by another one (OR) loses
nothing by itself; without the other one it shows. So further subsets K are tried, by turns all edges that leave one
component, components in random order (stand-ins mostly are components), and a random set of random size. The maximum
over the subsets tried is a lower bound. An edge below a threshold for all K is ballast.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from circuits.circuit import Circuit
from circuits.evaluation.faithfulness import denominator
from circuits.evaluation.measured import Cost, check, measured
from circuits.task import Task
from mechvis.errors import OutOfRange
from mechvis.results import Result

BALLAST = 0.01
"""Share of m(M) - m(0) below which an edge counts as ballast."""


def minimality(
    task: Task,
    circuit: Circuit,
    *,
    n_subsets: int = 4,
    threshold: float = BALLAST,
    seed: int = 0,
    cost: Cost | None = None,
    progress: bool = True,
) -> Result:
    """What each edge of the circuit adds to it.

    Args:
        task: images, ablation, metric.
        circuit: not empty.
        n_subsets: subsets K besides K = nothing.
        threshold: below it, at every K, an edge is ballast.
        seed: of the subsets and of the bootstrap.
        cost: counts the passes.
        progress: show a progress bar.

    Returns:
        Result: one row per edge of the circuit; `effect`: m(C) - m(C without it), in the metric's unit, with interval;
        `share`: that over m(M) - m(0), with its sign; `largest`: the largest size of the share over all K tried;
        `subsets`: how many; `ballast`: `largest` is below the threshold.

    Raises:
        BadData: an empty circuit, a constant metric.
        OutOfRange: a negative number of subsets or threshold.
        ResultMismatch: a circuit of another architecture.

    Example:
        >>> found = minimality(task, circuit)                                                      # doctest: +SKIP
        >>> found.table.filter(found.table["ballast"])["unit"]                                     # doctest: +SKIP
    """
    import polars as pl

    check(task, circuit, empty=False)
    if not isinstance(n_subsets, int) or n_subsets < 0:
        raise OutOfRange(f"n_subsets={n_subsets!r}: a whole number from 0 on.")
    if not threshold >= 0:
        raise OutOfRange(f"threshold={threshold!r}: a share, from 0 on.")
    scale = denominator(task, seed=seed).value
    places = np.argwhere(circuit.kept)
    order = {graph_place: i for i, graph_place in enumerate(map(tuple, task.graph.places))}
    places = places[np.argsort([order[tuple(place)] for place in places])]
    masks, owners = [circuit.kept], []
    for inside in _subsets(places, n_subsets, seed):
        left = circuit.kept.copy()
        left[places[inside, 0], places[inside, 1]] = False
        base = len(masks)
        masks.append(left)
        for edge in np.flatnonzero(~inside):
            without_it = left.copy()
            without_it[tuple(places[edge])] = False
            owners.append((edge, base, len(masks)))
            masks.append(without_it)
    values = measured(task, masks, cost=cost, progress=progress, what="minimality")
    effects, largest, tried = np.empty((len(places), len(task))), np.zeros(len(places)), np.zeros(len(places), int)
    for edge, base, own in owners:
        difference = values[base] - values[own]
        if tried[edge] == 0:  # the first subset is empty, and every edge is outside of it
            effects[edge] = difference
        tried[edge] += 1
        largest[edge] = max(largest[edge], abs(difference.mean() / scale))
    names = [f"{task.graph.writers[writer]}->{task.graph.readers[reader]}" for writer, reader in places]
    result = Result.from_values(
        "circuit_minimality",
        f"What each edge adds to {circuit.title!r}",
        [{"unit": name, "writer": name.split("->")[0], "reader": name.split("->")[1]} for name in names],
        {task.metric_name: effects},
        images=task.image_table(),
        provenance=task.provenance(
            minimality={"subsets": n_subsets, "threshold": threshold, "seed": seed, "edges": len(places)}
        ),
        baseline={task.metric_name: float(values[0].mean())},
        seed=seed,
    )
    table = result.table.with_columns(
        pl.Series("share", effects.mean(1) / scale),
        pl.Series("largest", largest),
        pl.Series("subsets", tried),
        pl.Series("ballast", largest < threshold),
    )
    return replace(result, table=table)


def _subsets(places: Int[np.ndarray, "edge two"], n: int, seed: int) -> list[Bool[np.ndarray, " edge"]]:
    """Nothing, then by turns the edges of a component and a random set, each with at least one edge outside."""
    generator = np.random.default_rng(seed)
    n_edges = len(places)
    found = [np.zeros(n_edges, dtype=bool)]
    writers = generator.permutation(np.unique(places[:, 0]))
    components = [places[:, 0] == writer for writer in writers] if len(writers) > 1 else []
    for turn in range(n if n_edges > 1 else 0):
        if turn % 2 == 0 and components:
            found.append(components.pop(0))
            continue
        inside = np.zeros(n_edges, dtype=bool)
        inside[generator.permutation(n_edges)[: generator.integers(1, n_edges)]] = True
        found.append(inside)
    return found
