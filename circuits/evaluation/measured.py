"""The metric of many circuits at once, each different circuit measured once.

Curves repeat themselves: small circuits prune away to nothing, the last of every order is the whole model. So equal
circuits share a run, and the whole model and the empty one are the task's own `full` and `empty`, to the bit: then the
faithfulness of all edges is exactly 1 and that of none exactly 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.task import Task
from mechvis.errors import BadData, ShapeMismatch

Masks = Bool[np.ndarray, "circuit writer reader"]
"""Which edges each circuit keeps."""


@dataclass
class Cost:
    """How much was run: the one thing here that changes, counted up by :func:`measured`."""

    rows: int = 0
    """Forward passes of one image through one circuit."""


def measured(
    task: Task,
    masks: Masks | Sequence[Bool[np.ndarray, "writer reader"]],
    *,
    cost: Cost | None = None,
    progress: bool = False,
    what: str = "circuits",
) -> Float[np.ndarray, "circuit image"]:
    """The metric of each image for each circuit, everything outside replaced by the base.

    Args:
        task: images, ablation, metric.
        masks: the circuits; entries where there is no edge are ignored.
        cost: counts the passes.
        progress: show a progress bar.
        what: words for it.

    Raises:
        ShapeMismatch: masks that do not fit the graph.
        BadData: masks that are not bool.
        NotFinite: a circuit gives NaN or Inf.

    Example:
        >>> measured(task, [circuit.kept]).mean()                                                  # doctest: +SKIP
        7.91
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.shape[1:] != task.graph.shape:
        raise ShapeMismatch(
            f"masks are [circuit writer reader] = [n, {task.graph.shape[0]}, {task.graph.shape[1]}], "
            f"got {list(masks.shape)}."
        )
    if masks.dtype != bool:
        raise BadData(f"masks of circuits are bool, got {masks.dtype}; for gates in between use task.measure(gates).")
    flat = masks[:, task.graph.allowed]
    different, place = np.unique(np.packbits(flat, axis=1), axis=0, return_inverse=True)
    first = np.array([np.flatnonzero(place == i)[0] for i in range(len(different))], dtype=np.int64)
    values = np.empty((len(different), len(task)))
    kept = flat[first].sum(1)
    full, empty = kept == task.graph.n_edges, kept == 0
    values[full], values[empty] = task.full, task.empty
    others = np.flatnonzero(~full & ~empty)
    if len(others):
        values[others] = task.measure(masks[first[others]], progress=progress, what=what)
    if cost is not None:
        cost.rows += len(others) * len(task)
    return values[place.reshape(-1)]


def without(graph: EdgeGraph, kept: Bool[np.ndarray, "writer reader"]) -> Bool[np.ndarray, "writer reader"]:
    """All edges but these."""
    return graph.allowed & ~kept


def check(task: Task, circuit: Circuit, *, empty: bool = True) -> None:
    """Refuse a circuit that cannot be judged on a task.

    Args:
        task: images, ablation, metric.
        circuit: what is to be judged.
        empty: False: refuse an empty circuit too.

    Raises:
        ResultMismatch: of another architecture.
        BadData: empty.
    """
    circuit.check_model(task.model)
    if not empty and not len(circuit):
        raise BadData(
            f"{circuit.title!r} has no edge: its faithfulness is 0 by definition and there is nothing else to judge. "
            "Keep more edges (a larger n, a lower threshold); if pruning left none, no kept edge lies on a path from "
            "the embedding to the read-out."
        )
