"""Which edges make the mistakes? Cut one, see how many errors it mends and what it costs.

    fixed = share of the wrong images that are right with the edge at its mean
    cost  = loss of accuracy on the validation images

An edge is offered as a repair if it mends more than half of the errors and costs less than one percent (methods2.md
22). The wrong images chose the edge, so its worth is the one on *other* wrong images: give them as `confirm`. The
repair itself is a :class:`circuits.causal_paths.PathCut`: it is called like the model, and the model stays as it was.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from circuits.causal_paths.cut import PathCut
from circuits.causal_paths.graph import PathGraph
from circuits.causal_paths.reading import Norm
from circuits.causal_paths.runs import Recording, mean_run
from mechvis import stats
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.labels import with_model_classes
from mechvis.progress import track


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Repairs:
    """Edges, and what cutting each of them mends and costs; made by :func:`repairs`."""

    table: pl.DataFrame
    """One row per edge, best first: `edge`, `fixed`, `fixed low`, `fixed high` (share of the wrong images that become
    right), `confirmed` (the same on other wrong images; empty without), `cost`, `cost low`, `cost high` (loss of
    accuracy on the validation images), `offered`, `n wrong`, `n validation`."""
    model: Any
    """The model."""
    means: Recording
    """What a cut edge carries."""
    norm: Norm
    """How norms see the change."""

    @property
    def offered(self) -> tuple[str, ...]:
        """Edges that mend enough and cost little enough."""
        return tuple(self.table.filter(pl.col("offered"))["edge"])

    def cut(self, edges: str | Iterable[str] | None = None) -> PathCut:
        """The mended model.

        Args:
            edges: which; default: the best that is offered.

        Raises:
            BadData: none is offered.
            UnknownName: an edge that was not tried.
        """
        if edges is None:
            if not self.offered:
                raise BadData("no edge mends enough errors at the allowed cost, so there is nothing to apply.")
            edges = self.offered[:1]
        chosen = (edges,) if isinstance(edges, str) else tuple(edges)
        if strange := [edge for edge in chosen if edge not in self.table["edge"].to_list()]:
            raise UnknownName(f"the edge {strange[0]!r} was not tried.")
        return PathCut(model=self.model, edges=chosen, means=self.means, norm=self.norm)

    def __repr__(self) -> str:
        lines = [f"Repairs({self.table.height} edges, {len(self.offered)} of them offered)"]
        for row in self.table.head(8).iter_rows(named=True):
            mark = "*" if row["offered"] else " "
            lines.append(
                f"  {mark} {row['edge']}: mends {row['fixed']:.3f} [{row['fixed low']:.3f}, {row['fixed high']:.3f}] "
                f"of {row['n wrong']} errors, costs {row['cost']:+.4f} "
                f"[{row['cost low']:+.4f}, {row['cost high']:+.4f}] of accuracy, n={row['n validation']}"
            )
        return "\n".join(lines)


def repairs(
    model: Any,
    graph: PathGraph | Iterable[str],
    wrong: ImageSet,
    validation: ImageSet,
    *,
    reference: ImageSet,
    confirm: ImageSet | None = None,
    mend: float = 0.5,
    cost: float = 0.01,
    norm: Norm = "frozen",
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Repairs:
    """Try every edge of a graph as a repair.

    Args:
        model: a wrapped model.
        graph: of the wrong answers, or names of edges.
        wrong: labelled images that the model gets wrong; those that it gets right are left out.
        validation: labelled images that nothing may be lost on.
        reference: images for the means.
        confirm: other wrong images, on which the share is measured once more.
        mend: share of the errors that must be mended.
        cost: accuracy that may be lost.
        norm: how norms see the change.
        batch_size: images per forward.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        BadData: no edges, no labels, or no error among the wrong images.
        OutOfRange: a share outside 0 to 1.
        SplitOverlap: sets that share images.

    Example:
        >>> repairs(model, graph, wrong, validation, reference=others).cut()                       # doctest: +SKIP
    """
    if not (0 <= mend <= 1 and 0 <= cost <= 1):
        raise OutOfRange(f"mend={mend}, cost={cost}: shares from 0 to 1.")
    edges = [edge for edge in graph.edges["edge"]] if isinstance(graph, PathGraph) else list(graph)
    if not edges:
        raise BadData("no edge to try: the graph is empty.")
    sets = {"wrong": wrong, "validation": validation, **({} if confirm is None else {"confirm": confirm})}
    for name, images in sets.items():
        if not isinstance(images, ImageSet) or images.labels is None:
            raise BadData(f"the {name} images must be an ImageSet with labels.")
    names = list(sets)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            refuse_overlap(sets[first], sets[second], what=f"the {first} and the {second} images")
    sets = {name: with_model_classes(images, model) for name, images in sets.items()}
    means = mean_run(model, model.inputs(reference))
    before = {name: _right(model, images, batch_size) for name, images in sets.items()}
    for name in {"wrong", "confirm"} & set(sets):
        if before[name].all():
            raise BadData(f"the model gets all of the {name} images right: there is no error to mend.")
    rows = []
    with track(len(edges), "repairs", " edges", show=progress) as bar:
        for edge in edges:
            mended = PathCut(model=model, edges=(edge,), means=means, norm=norm)
            after = {name: _right(mended, images, batch_size, model) for name, images in sets.items()}
            rows.append(_row(edge, before, after, mend, cost, seed))
            bar.update(1)
    schema = {
        "edge": pl.String,
        "fixed": pl.Float64,
        "fixed low": pl.Float64,
        "fixed high": pl.Float64,
        "confirmed": pl.Float64,
        "cost": pl.Float64,
        "cost low": pl.Float64,
        "cost high": pl.Float64,
        "offered": pl.Boolean,
        "n wrong": pl.Int64,
        "n validation": pl.Int64,
    }
    table = pl.DataFrame(rows, schema=schema).sort(
        ["offered", "fixed", "cost"], descending=[True, True, False], maintain_order=True
    )
    return Repairs(table=table, model=model, means=means, norm=norm)


def _row(
    edge: str, before: dict[str, np.ndarray], after: dict[str, np.ndarray], mend: float, cost: float, seed: int
) -> dict[str, Any]:
    fixed = stats.bootstrap(after["wrong"][~before["wrong"]].astype(np.float64), seed=seed)
    lost = stats.bootstrap(before["validation"].astype(float) - after["validation"].astype(float), seed=seed)
    share, loss = float(fixed.effect[0]), float(lost.effect[0])
    confirmed = None
    if "confirm" in before:
        confirmed = float(after["confirm"][~before["confirm"]].mean())
    offered = share > mend and loss < cost and (confirmed is None or confirmed > mend)
    return {
        "edge": edge,
        "fixed": share,
        "fixed low": float(fixed.low[0]),
        "fixed high": float(fixed.high[0]),
        "confirmed": confirmed,
        "cost": loss,
        "cost low": float(lost.low[0]),
        "cost high": float(lost.high[0]),
        "offered": offered,
        "n wrong": int((~before["wrong"]).sum()),
        "n validation": len(before["validation"]),
    }


@torch.no_grad()
def _right(run: Any, images: ImageSet, batch_size: int, model: Any = None) -> np.ndarray:
    """Which images are classified as labelled."""
    model = run if model is None else model
    found = []
    for start in range(0, len(images), batch_size):
        found.append(run(model.inputs(images[start : start + batch_size])).argmax(-1).cpu())
    return (torch.cat(found) == images.label_tensor).numpy()
