"""The exact effect of every edge: cut one, run the rest again (methods.md 5.2, 5.5).

The truth that edge attribution estimates. Edges of one reader are rows of one batch, which restarts at the reader's
layer; so an edge into a late layer costs little.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

from circuits.edges.gated import gated
from circuits.task import Task
from mechvis.errors import BadData, NotFinite
from mechvis.progress import track
from mechvis.results import Result


def patch_edges(task: Task, edges: Iterable[str] | None = None, *, progress: bool = True, seed: int = 0) -> Result:
    """Exact effect of single edges: m(clean) - m(this edge carries the base), per image.

    Args:
        task: images, ablation, metric (:func:`circuits.task`).
        edges: names such as `L0H1->L1H2.q`; default: all of them.
        progress: show a progress bar.
        seed: of the bootstrap.

    Returns:
        Result: one row per edge, columns `writer` and `reader`, effects in the metric's unit.

    Raises:
        UnknownName, BadData: an edge that does not exist, or none.
        NotFinite: a cut edge gives NaN or Inf.

    Example:
        >>> circuits.patch_edges(task, ["L0H0->out", "L0MLP->out"])                                # doctest: +SKIP
    """
    graph = task.graph
    names = list(graph.edges if edges is None else edges)
    if not names:
        raise BadData("no edges given; leave edges= out to patch all of them.")
    if len(set(names)) != len(names):
        raise BadData("an edge is listed twice.")
    values = edge_effects(task, np.array([graph.edge(name) for name in names]), progress=progress)
    units = [{"unit": name, "writer": name.split("->")[0], "reader": name.split("->")[1]} for name in names]
    return Result.from_values(
        "edge_patching",
        f"Exact effect of {len(names)} edges ({task.ablation})",
        units,
        {task.metric_name: values},
        images=task.image_table(),
        provenance=task.provenance(),
        baseline={task.metric_name: float(task.full.mean())},
        seed=seed,
    )


def edge_effects(
    task: Task, places: Float[np.ndarray, "edge two"], *, progress: bool = False
) -> Float[np.ndarray, "edge image"]:
    """Effects of edges given by (writer, reader).

    Args:
        places: indices into the graph's writers and readers.
        progress: show a progress bar.
    """
    graph = task.graph
    found = np.empty((len(places), len(task)))
    by_reader = {int(reader): np.flatnonzero(places[:, 1] == reader) for reader in np.unique(places[:, 1])}
    at_once = task.rows_at_once(n_forks=1)
    n_images = max(1, min(len(task), at_once // min(8, max(map(len, by_reader.values())))))
    allowed = torch.from_numpy(graph.allowed)
    with track(len(places) * len(task), "edges", " rows", show=progress) as bar:
        for batch in task.batches(n_images):
            clean = task.score(batch.logits, batch)
            step = max(1, at_once // len(batch.rows))
            for reader, own in by_reader.items():
                for start in range(0, len(own), step):
                    some = own[start : start + step]
                    gates = allowed.repeat(len(some), 1, 1)
                    gates[range(len(some)), places[some, 0], reader] = False
                    output = gated(task.model, batch.clean, batch.base, gates, wires=task.wires)
                    effect = clean - task.score(output, batch)
                    if not torch.isfinite(effect).all():
                        raise NotFinite(
                            f"cutting an edge into {graph.readers[reader]} gives NaN or Inf on images "
                            f"{task.ids[batch.rows.start]!r} to {task.ids[batch.rows.stop - 1]!r}."
                        )
                    found[some, batch.rows.start : batch.rows.stop] = effect.double().cpu().numpy()
                    bar.update(len(some) * len(batch.rows))
    return found
