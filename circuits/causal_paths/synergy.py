"""Pairs of units: what both together do, against the sum of what each does.

Two units that carry the same thing hide each other: replacing either changes little. Exact joint effects of the
strongest units show it (methods2.md 22, pitfalls).
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from circuits.causal_paths.effects import Effects
from circuits.causal_paths.nodes import unit_of
from mechvis import edits, stats
from mechvis.errors import EffectlessEdit


@torch.no_grad()
def synergies(effects: Effects, names: Sequence[str], seed: int) -> pl.DataFrame:
    """Synergy `E_12 - E_1 - E_2` of every pair of some units, by runs with both replaced.

    Args:
        effects: measures.
        names: units.
        seed: of the bootstrap.

    Returns:
        One row per pair: `first`, `second`, `joint`, `synergy`, `low`, `high` (of KL, nats), `joint logit`,
        `synergy logit`, `p`, `significant` (of the logit's synergy, Benjamini-Hochberg at 0.05), `n`.
    """
    pairs = list(itertools.combinations(names, 2))
    schema = {
        "first": pl.String,
        "second": pl.String,
        "joint": pl.Float64,
        "synergy": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "joint logit": pl.Float64,
        "synergy logit": pl.Float64,
        "p": pl.Float64,
        "significant": pl.Boolean,
        "n": pl.Int64,
    }
    if not pairs:
        return pl.DataFrame(schema=schema)
    single = effects.nodes(names)
    kl, logit = (np.empty((len(pairs), len(effects.runs))) for _ in range(2))
    for batch in effects.runs:
        at = slice(batch.rows.start, batch.rows.stop)
        for row, pair in enumerate(pairs):
            both = [_edit(effects, name) for name in pair]
            with warnings.catch_warnings():
                # Where one unit is all that the other reads, replacing both is replacing one.
                warnings.simplefilter("ignore", EffectlessEdit)
                output = effects.model.run(batch.pixels, edits=both, capture=effects.model.output_site).output
            own = effects._numbers(output, batch.logits, batch.rows)
            kl[row, at], logit[row, at] = (value.cpu().numpy() for value in own[:2])
    effects.rows += len(pairs) * len(effects.runs)
    more = np.stack([kl[row] - single[a].kl - single[b].kl for row, (a, b) in enumerate(pairs)])
    aside = np.stack([logit[row] - single[a].logit - single[b].logit for row, (a, b) in enumerate(pairs)])
    found, other = stats.bootstrap(more, seed=seed), stats.bootstrap(aside, seed=seed)
    survives = stats.benjamini_hochberg(other.p) <= 0.05
    return pl.DataFrame(
        {
            "first": [a for a, _ in pairs],
            "second": [b for _, b in pairs],
            "joint": kl.mean(1),
            "synergy": found.effect,
            "low": found.low,
            "high": found.high,
            "joint logit": logit.mean(1),
            "synergy logit": other.effect,
            "p": other.p,
            "significant": survives,
            "n": found.n,
        },
        schema=schema,
    )


def _edit(effects: Effects, name: str) -> Any:
    unit = unit_of(name)
    kept = effects.means.post if unit.kind == "neurons" else effects.means.z
    return edits.mean_positional(unit.site, {unit.site: kept[unit.layer][0]}, **_selection(unit))


def _selection(unit: Any) -> dict[str, Any]:
    return {"units": [unit.index]} if unit.kind == "neurons" else {"heads": [unit.index]}
