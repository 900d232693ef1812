"""What was measured in each round of an elimination, and the table that it becomes.

A round measures some units on some images. All its numbers are kept, not only those that decide, so that other metrics
come at no extra cost; a pair of unit and image that no round measured is missing (NaN), never zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from mechvis.certified.elimination import Elimination
from mechvis.results import Result

Compute = Callable[[np.ndarray, np.ndarray, int], dict[str, np.ndarray]]
"""Units `[unit]`, images `[image]` (positions), number of the call from 1 -> `[unit image]` arrays by name, and
`clean/...` arrays `[image]`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All rounds put together."""

    images: np.ndarray
    """Positions of the images that were drawn, in the order of the draw, int64 `[drawn]`."""
    values: dict[str, np.ndarray]
    """`[unit drawn]` by name; NaN where a unit was not measured. `clean/...`: `[drawn]`."""
    seen: np.ndarray
    """Images on which each unit counts, int64 `[unit]`; fewer than that are defined where effects are NaN."""


class Rounds:
    """Measures units on images, and keeps what was found."""

    def __init__(self, compute: Compute, metric: str):
        """`metric`: the name of the numbers that decide."""
        self.compute, self.metric = compute, metric
        self.parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    def measure(self, units: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Effects `[unit image]` on the metric that decides; the same question again costs nothing."""
        for known, where, found in self.parts:
            if np.array_equal(known, units) and np.array_equal(where, images):
                return found[self.metric]  # the pilot of a calibration is the first round
        found = self.compute(units, images, len(self.parts) + 1)
        self.parts.append((units, images, found))
        return found[self.metric]

    def together(self, n_units: int, order: np.ndarray, renewed: dict[int, int] | None = None) -> Measured:
        """Everything that was measured.

        Args:
            n_units: number of units.
            order: all images, in the order in which they were drawn.
            renewed: units of which only what was measured from this place of the order on counts (the images before it
                decided about them).
        """
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        since = np.zeros(n_units, dtype=np.int64)
        for unit, start in (renewed or {}).items():
            since[unit] = start
        used = np.sort(np.unique(np.concatenate([place[where] for _, where, _ in self.parts])))
        at = np.full(len(order), -1)
        at[used] = np.arange(len(used))
        values: dict[str, np.ndarray] = {}
        counts = np.zeros((n_units, len(used)), dtype=bool)
        for units, where, found in self.parts:
            columns, grid = at[place[where]], np.ix_(units, at[place[where]])
            keep = place[where] >= since[units, None]
            counts[grid] |= keep
            for name, numbers in found.items():
                clean = name.startswith("clean/")
                if name not in values:
                    values[name] = np.full(len(used) if clean else (n_units, len(used)), np.nan, dtype=numbers.dtype)
                if clean:
                    values[name][columns] = numbers
                else:
                    values[name][grid] = np.where(keep, numbers, values[name][grid])
        return Measured(images=order[used], values=values, seen=counts.sum(1))


def with_decisions(
    result: Result, found: Elimination, rows: Sequence[int], measured: Measured, fresh: Sequence[int], metric: str
) -> Result:
    """The result with columns that say what was decided on each unit.

    Args:
        result: one row per unit and metric.
        found: what was decided.
        rows: the unit of each row of one metric.
        measured: what the rows rest on.
        fresh: units whose effect is from images that had no part in their decision.
        metric: what decided.
    """
    rows = np.asarray(rows)

    def finite(bound: np.ndarray) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in bound[rows]]

    columns: dict[str, Any] = {
        "unit": result.rows()["unit"],
        "selected": np.isin(rows, found.selected),
        "status": [found.status[i] for i in rows],
        "audited": found.audited[rows],
        "fresh": np.isin(rows, np.asarray(fresh, dtype=np.int64)),
        "round": found.round[rows],
        "decided_n": found.n[rows],
        "measured": measured.seen[rows],
        "decided_effect": found.mean[rows],
        "bound_low": finite(found.low),
        "bound_high": finite(found.high),
    }
    own = ("decided_effect", "bound_low", "bound_high")
    added = pl.DataFrame(columns, schema_overrides=dict.fromkeys(own, pl.Float64))
    # What was decided on belongs to the metric that decided. An image that was not measured is not an excluded one.
    table = result.table.join(added, on="unit", how="left", maintain_order="left").with_columns(
        (pl.col("measured") - pl.col("n")).alias("excluded"),
        *(pl.when(pl.col("metric") == metric).then(pl.col(name)).alias(name) for name in own),
    )
    return replace(result, table=table.drop("measured"))
