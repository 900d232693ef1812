"""The units and edges that were found, as tables with intervals, and their effects per image."""

from typing import Any

import numpy as np
import polars as pl

from circuits.causal_paths.effects import Effect
from circuits.causal_paths.joint import Edges
from circuits.causal_paths.nodes import unit_of
from circuits.causal_paths.screen import loudness_of
from circuits.causal_paths.search import Found, Search
from mechvis import stats


def tables(
    search: Search, found: Found, kept: Edges, how: str, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, np.ndarray]]:
    """Units and edges, strongest first, and their effects per image in the same order.

    Args:
        search: what measured them.
        found: what it found.
        kept: edges that are left after pruning.
        how: activations over tokens by `max` or `mean`.
        seed: of the bootstrap.
    """
    effects = search.effects
    single = effects.nodes(found.nodes)
    names = sorted(found.nodes, key=lambda name: -single[name].kl.mean())
    units = [unit_of(name) for name in names]
    loud = loudness_of(search.runs, units, how) if units else []
    rows = [
        {
            "unit": name,
            "level": found.nodes[name],
            "kind": unit.kind,
            "layer": unit.layer,
            "index": unit.index,
            "activation": float(value),
            **_numbers(single[name], seed),
            "p": found.p.get(name),
        }
        for name, unit, value in zip(names, units, loud, strict=True)
    ]
    nodes = pl.DataFrame(rows, schema=_NODES)
    into = effects.edges(found.edges)
    order = sorted(found.edges, key=lambda edge: -into[edge].kl.mean())
    edges = pl.DataFrame(
        [
            {
                "edge": "->".join(edge),
                "writer": edge[0],
                "reader": edge[1],
                **_numbers(into[edge], seed),
                "p": found.p.get(edge),
                "kept": edge in kept,
            }
            for edge in order
        ],
        schema=_EDGES,
    )
    n = len(search.runs)
    values = {}
    for word, chosen, known in (("nodes", names, single), ("edges", order, into)):
        for number in ("kl", "logit"):
            stacked = [getattr(known[key], number) for key in chosen]
            values[f"{word}/{number}"] = np.stack(stacked) if stacked else np.zeros((0, n))
    return nodes, edges, values


_NUMBERS = {
    "kl": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "logit": pl.Float64,
    "necessity": pl.Float64,
    "n": pl.Int64,
}
_NODES = {
    "unit": pl.String,
    "level": pl.Int64,
    "kind": pl.String,
    "layer": pl.Int64,
    "index": pl.Int64,
    "activation": pl.Float64,
    **_NUMBERS,
    "p": pl.Float64,
}
_EDGES = {
    "edge": pl.String,
    "writer": pl.String,
    "reader": pl.String,
    **_NUMBERS,
    "p": pl.Float64,
    "kept": pl.Boolean,
}


def _numbers(effect: Effect, seed: int) -> dict[str, Any]:
    found = stats.bootstrap(effect.kl, seed=seed)
    return {
        "kl": float(found.effect[0]),
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "logit": float(effect.logit.mean()),
        "necessity": float(effect.flip.mean()),
        "n": int(found.n[0]),
    }
