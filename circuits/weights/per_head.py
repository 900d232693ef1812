"""Per-image numbers of heads as a `mechvis.Result`, where not every number is defined for every head.

A head without attention to patches has no distance, a uniform pattern has nothing to explain. Such a head has no row
for that metric; a zero in its place would say something that was not measured.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from circuits.weights.exact import chosen_layers
from mechvis.errors import BadData
from mechvis.results import Result


def heads_of(model: Any, layers: Iterable[int] | None) -> tuple[list[int], list[dict[str, int]]]:
    """Layers that are looked at, and their heads as units of a result."""
    listed = chosen_layers(model, layers)
    return listed, [{"layer": at, "head": h} for at in listed for h in range(model.parts.blocks[at].attn.n_heads)]


def result_of_heads(
    kind: str,
    title: str,
    heads: list[dict[str, int]],
    values: dict[str, np.ndarray],
    *,
    columns: dict[str, dict[str, np.ndarray]],
    images: pl.DataFrame,
    provenance: dict,
    seed: int,
) -> Result:
    """A result of per-image numbers `[head image]`, in which a head that is undefined on every image (NaN) has no row.

    Args:
        kind: see :class:`mechvis.Result`.
        title: see there.
        heads: one unit per row of the values.
        values: by metric.
        columns: more columns by metric and name, `[head image]`, of which the table holds means.
        images: see there.
        provenance: see there.
        seed: of the bootstrap.

    Raises:
        BadData: nothing is defined anywhere.
    """
    found = []
    for metric, array in values.items():
        defined = ~np.isnan(array)
        some = defined.any(1)
        if not some.any():
            continue
        units = [head for head, yes in zip(heads, some, strict=True) if yes]
        one = Result.from_values(kind, title, units, {metric: array[some]}, images=images, seed=seed)
        more = []
        for name, column in columns.get(metric, {}).items():
            means = np.where(defined, column, 0.0)[some].sum(1) / defined[some].sum(1)
            more.append(pl.Series(name, means))
        found.append((one.table.with_columns(more), one.values))
    if not found:
        raise BadData(f"{title}: undefined on every image for every head.")
    return replace(
        one,
        table=pl.concat([table for table, _ in found], how="diagonal"),
        values={name: array for _, part in found for name, array in part.items()},
        provenance=provenance,
    )
