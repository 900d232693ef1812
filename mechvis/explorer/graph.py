"""A circuit from a table of edges, and where its components stand in the picture.

Names of edges are those of `circuits`: `embed`, `L0H1`, `L0MLP`, `out`; a reader may name its input, `L1H2.q`. Other
names are placed by the longest path to them. Each layer has two rows, heads and above them its MLP, in the order of the
forward pass; within a row components are sorted by the mean place of their neighbours (the barycentre rule of layered
drawing, Sugiyama et al. 1981), a few sweeps up and down.
"""

import math
import re
from dataclasses import dataclass
from inspect import signature
from typing import Any

import polars as pl

from mechvis.errors import BadData, NotFinite, unknown
from mechvis.explorer.panels import Edge, Graph

_HEAD, _MLP, _READER = re.compile(r"L(\d+)H(\d+)"), re.compile(r"L(\d+)MLP"), re.compile(r"(L\d+H\d+)\.(q|k|v)")
FIRST, LAST = "embed", "out"
SWEEPS = 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """A component in the picture."""

    name: str
    """Its name."""
    kind: str
    """`embed`, `head`, `mlp`, `out` or `other`."""
    layer: int | None
    """Of heads and MLPs."""
    head: int | None
    """Of heads."""
    x: float
    """Across, in units of one component."""
    y: int
    """Row, from the embedding (0) up."""


def graph_of_table(table: pl.DataFrame, name: str, about: str = "") -> Graph:
    """A graph from a table of edges.

    Args:
        table: columns `writer` and `reader`; `score` or `effect`, `kept`, `low` and `high`, `p` where they are known.
        name: heading.
        about: below it.

    Raises:
        UnknownName: no such columns.
        BadData: no edge.
        NotFinite: a score that is infinite or NaN (leave it empty instead).

    Example:
        >>> graph_of_table(pl.DataFrame({"writer": ["embed"], "reader": ["out"], "score": [0.5]}), "c").edges[0].score
        0.5
    """
    for column in ("writer", "reader"):
        if column not in table.columns:
            raise unknown("column", column, table.columns)
    worth = next((column for column in ("score", "effect") if column in table.columns), None)
    edges = []
    for row in table.iter_rows(named=True):
        score = None if worth is None else row[worth]
        if score is not None and not math.isfinite(score):
            raise NotFinite(
                f"the edge {row['writer']}->{row['reader']} has the {worth} {score}; leave it empty instead."
            )
        told = _READER.fullmatch(str(row["reader"]))
        notes = []
        if row.get("low") is not None and row.get("high") is not None:
            notes.append(f"95 % interval [{row['low']:.3g}, {row['high']:.3g}]")
        if row.get("p") is not None:
            notes.append(f"p {row['p']:.2g}")
        edges.append(
            Edge(
                source=str(row["writer"]),
                target=told[1] if told else str(row["reader"]),
                entry=told[2] if told else "",
                score=None if score is None else float(score),
                kept=bool(row.get("kept", True)),
                note=", ".join(notes),
            )
        )
    return Graph(name=name, edges=tuple(edges), about=about)


def edges_in(thing: Any) -> pl.DataFrame | None:
    """The table of edges of an object, if it has one: `table`, or what `table()` returns, with writers and readers."""
    table = getattr(thing, "table", None)
    if callable(table):
        # A card's `table(name)` is about something else.
        asks = any(parameter.default is parameter.empty for parameter in signature(table).parameters.values())
        table = None if asks else table()
    if not isinstance(table, pl.DataFrame) or not {"writer", "reader"} <= set(table.columns):
        return None
    if "metric" in table.columns:
        table = table.filter(pl.col("metric") == table["metric"][0])
    return table if table.height else None


def layout(edges: tuple[Edge, ...]) -> dict[str, Node]:
    """Places of the components of some edges.

    Args:
        edges: at least one.

    Raises:
        BadData: no edge, or a cycle among components whose place no name tells.

    Example:
        >>> layout((Edge(source="embed", target="out", entry="", score=None),))["out"].y
        1
    """
    if not edges:
        raise BadData("there is no edge: there is nothing to place.")
    names = list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))
    depth = _depths(names, edges)
    levels = {level: y for y, level in enumerate(sorted(set(depth.values())))}
    rows: list[list[str]] = [[] for _ in levels]
    for name in sorted(names, key=_order):
        rows[levels[depth[name]]].append(name)
    y = {name: place for place, row in enumerate(rows) for name in row}
    near: dict[str, list[str]] = {name: [] for name in names}
    for edge in edges:
        near[edge.source].append(edge.target)
        near[edge.target].append(edge.source)
    x = {name: place - (len(row) - 1) / 2 for row in rows for place, name in enumerate(row)}
    for sweep in range(SWEEPS):
        up = sweep % 2 == 0
        for row in rows if up else reversed(rows):

            def wanted(name: str, up: bool = up) -> float:
                at = [x[other] for other in near[name] if (y[other] < y[name]) == up]
                return sum(at) / len(at) if at else x[name]

            for place, name in enumerate(sorted(row, key=wanted)):
                x[name] = place - (len(row) - 1) / 2
    # MLPs stand beside the heads, or the long lines through the middle would run behind them.
    heads = [len(row) for row in rows if any(_HEAD.fullmatch(name) for name in row)]
    if heads:
        x |= {name: (max(heads) - 1) / 2 + 1 for name in names if _MLP.fullmatch(name)}
    return {name: Node(name=name, x=x[name], y=y[name], **_kind(name)) for name in names}


def _depths(names: list[str], edges: tuple[Edge, ...]) -> dict[str, float]:
    """Row of every component: by its name, or one more than the deepest that writes to it."""
    found: dict[str, float] = {}
    for name in names:
        if name == FIRST:
            found[name] = -1.0
        elif name == LAST:
            found[name] = math.inf
        elif told := _HEAD.fullmatch(name):
            found[name] = 2 * int(told[1])
        elif told := _MLP.fullmatch(name):
            found[name] = 2 * int(told[1]) + 1
    free = [name for name in names if name not in found]
    for name in free:
        found[name] = 0.0
    for _ in range(len(free) + 1):
        moved = False
        for edge in edges:
            if edge.target in free and found[edge.target] <= found[edge.source] < math.inf:
                found[edge.target], moved = found[edge.source] + 1, True
        if not moved:
            return found
    raise BadData("the edges go in a circle, so the components have no order from input to output.")


def _order(name: str) -> tuple:
    told = _HEAD.fullmatch(name)
    return (0, int(told[1]), int(told[2]), "") if told else (1, 0, 0, name)


def _kind(name: str) -> dict[str, Any]:
    if told := _HEAD.fullmatch(name):
        return {"kind": "head", "layer": int(told[1]), "head": int(told[2])}
    if told := _MLP.fullmatch(name):
        return {"kind": "mlp", "layer": int(told[1]), "head": None}
    return {"kind": name if name in (FIRST, LAST) else "other", "layer": None, "head": None}
