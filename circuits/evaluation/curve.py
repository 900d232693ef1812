"""How faithful are the best 0.1 %, 1 %, 10 % ... of the edges: the curve behind CPR and CMD (MIB, methods.md 5.7
**C**).

1. Edges are put into an order: by size of their score (for CMD: what matters to the model, either way), by the score
   with its sign (for CPR: what performs best) (**X**); and, to compare, both reversed, and at random.
2. For each fraction f: the longest start of the order of which, after pruning what dangles, at most `f n` edges are
   left (`count="left"`, **X**); or, as published, the first `floor(f n)` edges, of which pruning may leave few or none
   (`count="asked"`). The last point is always the whole model, F = 1.
3. F of each, and the areas (:mod:`circuits.evaluation.areas`), with intervals from one bootstrap over images: the
   difference to the random orders is paired.

Where not every edge has a score, fractions that would need more edges than have one are left out; between the last one
and the whole model the curve is a straight line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.circuit import Circuit, scores_of
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import store
from circuits.evaluation.areas import AXES, Area, Axis, area
from circuits.evaluation.faithfulness import denominator, known
from circuits.evaluation.measured import Cost, measured
from circuits.evaluation.orders import ORDERS, Count, nested, orders_of, ties
from circuits.evaluation.resampled import interval, ratio, resampled_means
from circuits.task import Task
from mechvis.errors import BadData, OutOfRange, ResultMismatch, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Those of MIB."""

FORMAT, VERSION = "mechvis.circuit_curve", 1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Curve:
    """Faithfulness over circuit size, for an order of edges and for what it has to beat."""

    title: str
    """Where the scores come from."""
    n_edges: int
    """Edges of the whole model."""
    n_scored: int
    """Edges with a score."""
    points: Any
    """polars, one row per circuit: `order`, `draw`, `fraction`, `asked` (edges before pruning), `edges` (after it),
    `ties` (edges left out although they score the same as the last one taken), `faithfulness`, `low`, `high` (95 %
    interval)."""
    areas: Any
    """polars, one row per order, area and axis: `order`, `area` (cpr, cmd), `axis`, `value`, `low`, `high`; of `random`
    the mean over draws; and `minus random` with its paired interval."""
    values: Float[np.ndarray, "point image"] = field()
    """The metric per image, row by row of `points`."""
    full: Float[np.ndarray, " image"] = field()
    """The metric of the whole model."""
    empty: Float[np.ndarray, " image"] = field()
    """The metric with every edge cut."""
    provenance: dict = field(default_factory=dict)
    """Task, settings, versions."""

    def __post_init__(self):
        for name in ("values", "full", "empty"):
            values = np.asarray(getattr(self, name)).view()
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    def area(self, kind: Area, *, order: str | None = None, axis: Axis = "realised") -> float:
        """One area.

        Args:
            kind: `cpr` or `cmd`.
            order: default: `signed` for CPR, `size` for CMD.
            axis: `realised`, `nominal` (as published) or `log`.

        Raises:
            UnknownName: no such area, order or axis.
        """
        return self.area_row(kind, order=order, axis=axis)["value"]

    def area_row(self, kind: Area, *, order: str | None = None, axis: Axis = "realised") -> dict[str, Any]:
        """One row of :attr:`areas`; arguments as of :meth:`area`."""
        import polars as pl

        order = ("signed" if kind == "cpr" else "size") if order is None else order
        for what, name, valid in (("area", kind, ("cpr", "cmd")), ("order", order, ORDERS), ("axis", axis, AXES)):
            if name not in valid:
                raise unknown(what, name, valid)
        rows = self.areas.filter((pl.col("order") == order) & (pl.col("area") == kind) & (pl.col("axis") == axis))
        if not rows.height:
            raise BadData(f"this curve was made without the order {order!r}.")
        return rows.row(0, named=True)

    @property
    def cpr(self) -> float:
        """Area under F, edges by signed score, realised sizes: larger is better."""
        return self.area("cpr")

    @property
    def cmd(self) -> float:
        """Area under |1 - F|, edges by size of score, realised sizes: smaller is better."""
        return self.area("cmd")

    def table(self) -> Any:
        """One row per circuit: :attr:`points`."""
        return self.points

    def plot(self, orders: Sequence[str] = ("size", "signed", "random")) -> "Figure":
        """F over the number of edges that are left, on a logarithmic axis; of the random orders the mean.

        Args:
            orders: which ones.

        Raises:
            UnknownName: no such order.
        """
        import polars as pl

        from mechvis import plots

        lines = []
        for order in orders:
            if order not in ORDERS:
                raise unknown("order", order, ORDERS)
            rows = self.points.filter((pl.col("order") == order) & (pl.col("edges") > 0))
            if order == "random":
                # Draws lose different numbers of edges to pruning: of each fraction the means.
                rows = (
                    self.points.filter(pl.col("order") == order)
                    .group_by("fraction", maintain_order=True)
                    .agg(pl.col("edges", "faithfulness").mean(), pl.lit(None).alias("low"), pl.lit(None).alias("high"))
                    .filter(pl.col("edges") > 0)
                )
            if rows.height:
                lines.append(_line(order, rows))
        figure = plots.curve(
            lines, title=self.title, x_label=f"edges left, of {self.n_edges:,}", y_label="faithfulness F"
        )
        axes = figure.axes[0]
        axes.set_xscale("log")
        axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":")
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write the curve into a folder.

        Raises:
            OutputNotWritable: says what and why.
        """
        return store.save(
            folder,
            FORMAT,
            VERSION,
            tables={"points": self.points, "areas": self.areas},
            arrays={"values": self.values, "full": self.full, "empty": self.empty},
            facts={
                "title": self.title,
                "n_edges": self.n_edges,
                "n_scored": self.n_scored,
                "provenance": self.provenance,
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Curve":
        """Read a curve that :meth:`save` wrote.

        Raises:
            StoreCorrupt, ResultMismatch: as :meth:`circuits.Circuit.load`.
        """
        tables, arrays, facts = store.load(folder, FORMAT, VERSION, "a curve of circuits")
        with store.reading(folder):
            return cls(**tables, **arrays, **facts)

    def __repr__(self) -> str:
        cpr, cmd = self.area_row("cpr"), self.area_row("cmd")
        lines = [
            f"Curve({self.title!r}: {len(self.full)} images, {self.n_edges} edges, {self.n_scored} with a score)",
            f"  {'':22}{'realised':>26}{'nominal':>10}{'log':>8}",
        ]
        for name, kind, row in (("CPR (larger is better)", "cpr", cpr), ("CMD (smaller is better)", "cmd", cmd)):
            lines.append(
                f"  {name:23}{row['value']:>9.3f} {_ends(row):>15}{self.area(kind, axis='nominal'):>10.3f}"
                f"{self.area(kind, axis='log'):>8.3f}"
            )
            for order in (f"{'signed' if kind == 'cpr' else 'size'} reversed", "random"):
                if order in self.areas["order"].to_list():
                    other = self.area_row(kind, order=order)
                    lines.append(
                        f"    {order:21}{other['value']:>9.3f} {_ends(other):>15}"
                        f"{self.area(kind, order=order, axis='nominal'):>10.3f}"
                        f"{self.area(kind, order=order, axis='log'):>8.3f}"
                    )
        return "\n".join(lines)


def curve(
    task: Task,
    scores: Any,
    *,
    fractions: Sequence[float] = FRACTIONS,
    n_random: int = 5,
    count: Count = "left",
    prune: bool = True,
    metric: str | None = None,
    title: str | None = None,
    seed: int = 0,
    cost: Cost | None = None,
    progress: bool = True,
) -> Curve:
    """Faithfulness of the best edges, for many sizes, with CPR and CMD.

    Args:
        task: images, ablation, metric; other images than those of the scores.
        scores: a `Result` of edges, a `Circuit` with scores, or `[writer reader]` (NaN: no score).
        fractions: sizes as shares of all edges, rising, the last one 1.
        n_random: random orders to compare with; 0 for none.
        count: whether a fraction limits the edges that are `left` after pruning, or those `asked` for (as published).
        prune: drop edges on no path from the embedding to the read-out before measuring, and count what is left.
        metric: which metric of a result the order is by; default: the first.
        title: default: that of the scores.
        seed: of the random orders and of the bootstrap.
        cost: counts the passes.
        progress: show a progress bar.

    Raises:
        OutOfRange: fractions that do not rise to 1; a negative number of random orders.
        ResultMismatch: scores of another architecture.
        BadData: a constant metric.
        NotFinite: scores that are all NaN, or hold Inf.

    Example:
        >>> found = curve(task, scores)                                                            # doctest: +SKIP
        >>> found.cpr, found.cmd, found.plot()                                                     # doctest: +SKIP
    """
    fractions = _checked(fractions, n_random, count)
    own_title, scores = _scores(task, scores, metric)
    denominator(task, seed=seed)
    graph = task.graph
    orders = orders_of(graph, scores, n_random, seed)
    rows, masks = [], []
    for (name, draw), order in orders.items():
        for fraction, asked, kept in nested(graph, order, fractions, count=count, prune=prune):
            row = {"order": name, "draw": draw, "fraction": fraction, "asked": asked, "edges": int(kept.sum())}
            rows.append(row | {"ties": ties(scores, order, asked, name)})
            masks.append(kept)
    values = measured(task, masks, cost=cost, progress=progress, what="curve")
    points, areas = _tables(rows, values, task.full, task.empty, graph.n_edges, seed)
    settings = {"fractions": list(fractions), "n_random": n_random, "count": count, "prune": prune, "seed": seed}
    return Curve(
        title=own_title if title is None else title,
        n_edges=graph.n_edges,
        n_scored=int((~np.isnan(scores[graph.allowed])).sum()),
        points=points,
        areas=areas,
        values=values,
        full=task.full,
        empty=task.empty,
        provenance=task.provenance(curve=settings),
    )


def _checked(fractions: Sequence[float], n_random: int, count: str) -> tuple[float, ...]:
    fractions = tuple(float(f) for f in fractions)
    rising = all(a < b for a, b in pairwise(fractions))
    if not fractions or not rising or not fractions[0] > 0 or fractions[-1] != 1:
        raise OutOfRange(f"fractions={list(fractions)}: they rise from above 0 to exactly 1.")
    if not isinstance(n_random, int) or n_random < 0:
        raise OutOfRange(f"n_random={n_random!r}: how many random orders, 0 for none.")
    if count not in ("left", "asked"):
        raise unknown("way to count", count, ("left", "asked"))
    return fractions


def _scores(task: Task, scores: Any, metric: str | None) -> tuple[str, np.ndarray]:
    if isinstance(scores, Circuit):
        scores.check_model(task.model)
        title, scores = scores.title, scores.scores
        if scores is None:
            raise BadData("this circuit has no scores, and a curve needs an order of the edges; pass scores=.")
    elif hasattr(scores, "rows"):
        heads = (scores.provenance.get("task") or {}).get("n_heads")
        if heads and tuple(heads) != task.graph.n_heads:
            raise ResultMismatch(f"the scores are of {EdgeGraph(tuple(heads))!r}, the model is {task.graph!r}.")
        title, scores = scores.title, scores_of(scores, task.graph, metric)
    else:
        title = "scores"
    return title, np.asarray(scores, dtype=np.float64)


def _tables(
    rows: list[dict[str, Any]], values: np.ndarray, full: np.ndarray, empty: np.ndarray, n_edges: int, seed: int
) -> tuple[Any, Any]:
    """Points with F and its interval; areas of every order."""
    import polars as pl

    below = full.mean() - empty.mean()
    shares = (values.mean(1) - empty.mean()) / below
    means = resampled_means(np.concatenate([values, full[None], empty[None]]), seed=seed)
    draws = ratio(means[:, :-2] - means[:, -1:], (means[:, -2] - means[:, -1])[:, None], below)
    low, high = interval(draws, len(full))
    points = pl.DataFrame(rows).with_columns(
        pl.Series("faithfulness", shares),
        pl.Series("low", low).fill_nan(None),
        pl.Series("high", high).fill_nan(None),
    )
    sizes, fractions = points["edges"].to_numpy(), points["fraction"].to_numpy()
    lines: dict[str, list[np.ndarray]] = {}
    for key, place in _groups(rows).items():
        lines.setdefault(key[0], []).append(place)

    def areas_of(order: str, kind: Area, axis: Axis, heights: np.ndarray) -> np.ndarray:
        """Mean over the draws of an order."""
        found = [area(kind, axis, heights[..., at], sizes[at], fractions[at], n_edges) for at in lines[order]]
        return np.asarray(np.mean(found, axis=0))

    table = []
    for order in lines:
        for kind in ("cpr", "cmd"):
            for axis in AXES:
                value, spread = (float(areas_of(order, kind, axis, shares)), areas_of(order, kind, axis, draws))
                ends = interval(spread, len(full))
                row = {"order": order, "area": kind, "axis": axis, "value": value}
                row |= {"low": known(ends[0]), "high": known(ends[1])}
                if "random" in lines and order != "random":
                    apart = interval(spread - areas_of("random", kind, axis, draws), len(full))
                    row["minus random"] = value - float(areas_of("random", kind, axis, shares))
                    row |= {"minus random low": known(apart[0]), "minus random high": known(apart[1])}
                table.append(row)
    return points, pl.DataFrame(table, infer_schema_length=None)


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[str, int], np.ndarray]:
    found: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault((row["order"], row["draw"]), []).append(place)
    return {key: np.array(places) for key, places in found.items()}


def _line(name: str, rows: Any) -> Any:
    from mechvis import plots

    names = {"size": "by size of score", "signed": "by signed score", "random": "random order, mean"}
    low, high = (rows[end].cast(float).fill_null(float("nan")).to_numpy() for end in ("low", "high"))
    banded = np.isfinite(low).all()
    return plots.Line(
        name=names.get(name, name),
        x=rows["edges"].to_numpy().astype(float),
        y=rows["faithfulness"].to_numpy(),
        low=low if banded else None,
        high=high if banded else None,
    )


def _ends(row: dict[str, Any]) -> str:
    return "[no interval]" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
