"""A card while it is being made: gates and measures are added one by one, then it is closed for good.

A gate is decided here from a number and a threshold, so that no explanation decides about itself; a measure's mean and
interval are computed here from per-example values, so that they can be computed again from the saved ones.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from mechvis import stats
from mechvis.cards.faithfulness_card import CARD_VERSION, FaithfulnessCard, hash_examples
from mechvis.cards.parts import GATES, Gate, Measure, Status
from mechvis.cards.thresholds import VERSION as THRESHOLDS
from mechvis.errors import BadData, ShapeMismatch
from mechvis.provenance import provenance, versions

RULES = {
    "<=": lambda value, bound: value <= bound,
    "<": lambda value, bound: value < bound,
    ">=": lambda value, bound: value >= bound,
    ">": lambda value, bound: value > bound,
}


@dataclass(kw_only=True, eq=False)
class Draft:
    """A card while it is being made.

    Example:
        >>> draft = Draft(kind="attribution", object_id="3f2a", subject={}, method={}, data={}, task={}, level="smoke")
        >>> draft.gate("G8", 0.0, "<=", 0.0, "share of maps with NaN").status
        'pass'
        >>> draft.measure("abpc", [0.2, 0.4], formula="abpc v1", direction="high").value
        0.3
    """

    kind: str
    """Kind of the explanation."""
    object_id: str
    """Hash of the explanation."""
    subject: Mapping[str, Any]
    """The model."""
    method: Mapping[str, Any]
    """Name, settings, claims, source of the method."""
    data: Mapping[str, Any]
    """The images."""
    task: Mapping[str, Any]
    """Score, target rule, contrast, units."""
    level: str
    """`smoke`, `standard` or `full`."""
    seed: int = 0
    """Of everything drawn for the card."""
    gates: list[Gate] = field(default_factory=list)
    """So far."""
    measures: list[Measure] = field(default_factory=list)
    """So far."""
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    """`sensitivity`, `planted`, `stability`, ...: more tables by name."""
    warnings: list[str] = field(default_factory=list)
    """What a reader must know first."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Per-example values of measures."""
    started: float = field(default_factory=time.perf_counter)
    """When it began."""

    def gate(self, id: str, statistic: float, rule: str, threshold: float, why: str) -> Gate:
        """Decide a gate.

        Args:
            id: `G1` to `G9`, perhaps with a letter.
            statistic: the number; NaN fails.
            rule: `<=`, `<`, `>=` or `>`: how it must compare with the threshold to pass.
            threshold: what with.
            why: what the number is.
        """
        passed = bool(np.isfinite(statistic)) and RULES[rule](statistic, threshold)
        status: Status = "pass" if passed else "fail"
        shown = float(statistic) if np.isfinite(statistic) else None
        found = Gate(
            id=id, name=_name(id), status=status, statistic=shown, threshold=float(threshold), rule=rule, why=why
        )
        self.gates.append(found)
        return found

    def no_gate(self, id: str, status: Status, why: str) -> Gate:
        """Say why a gate has no answer (`not applicable` or `not run`), or that it failed without a number."""
        found = Gate(id=id, name=_name(id), status=status, why=why)
        self.gates.append(found)
        return found

    def measure(
        self,
        id: str,
        values: Sequence[float] | np.ndarray,
        *,
        formula: str,
        direction: str,
        operator: str = "",
        control: str = "",
        unit: str = "",
    ) -> Measure:
        """Add a measure from its value for each example (NaN: undefined, counted)."""
        column = self._column(values)
        found = stats.bootstrap(column, seed=self.seed)
        numbers = {"value": _number(found.effect[0]), "low": _number(found.low[0]), "high": _number(found.high[0])}
        numbers |= {"n": int(found.n[0]), "excluded": int(found.excluded[0])}
        words = {"formula": formula, "direction": direction, "operator": operator, "control": control, "unit": unit}
        return self._add(Measure(id=id, **words, **numbers), {"": column})

    def ratio(
        self,
        id: str,
        numerator: Sequence[float] | np.ndarray,
        denominator: Sequence[float] | np.ndarray,
        *,
        formula: str,
        direction: str,
        operator: str = "",
        control: str = "",
        unit: str = "",
    ) -> Measure:
        """Add a ratio of sums over examples (not a mean of ratios)."""
        above, below = self._column(numerator), self._column(denominator)
        known = ~(np.isnan(above) | np.isnan(below))
        value, low, high = stats.interval_of(ratio_of_sums, above[known], below[known], seed=self.seed)
        numbers = {"value": _number(value), "low": _number(low), "high": _number(high)}
        numbers |= {"n": int(known.sum()), "excluded": int((~known).sum()), "statistic": "ratio"}
        words = {"formula": formula, "direction": direction, "operator": operator, "control": control, "unit": unit}
        return self._add(Measure(id=id, **words, **numbers), {":numerator": above, ":denominator": below})

    def given(
        self,
        id: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        *,
        n: int,
        formula: str,
        direction: str,
        operator: str = "",
        control: str = "",
        unit: str = "",
    ) -> Measure:
        """Add a number that was computed elsewhere and has no per-example values (an AUROC over edges)."""
        numbers = {"value": _number(value), "low": _number(low), "high": _number(high), "n": n, "statistic": "given"}
        words = {"formula": formula, "direction": direction, "operator": operator, "control": control, "unit": unit}
        return self._add(Measure(id=id, **words, **numbers), {})

    def done(self, *, scope: str, forwards: int = 0, backwards: int = 0) -> FaithfulnessCard:
        """Close the draft."""
        lengths = {len(column) for column in self.columns.values()}
        n = max(lengths, default=0)
        examples = pl.DataFrame(
            {"example": range(n)} | {name: _padded(column, n) for name, column in self.columns.items()}
        )
        where = provenance()
        return FaithfulnessCard(
            content={
                "card_version": CARD_VERSION,
                "thresholds_version": THRESHOLDS,
                "object_kind": self.kind,
                "object_id": self.object_id,
                "level": self.level,
                "seed": self.seed,
                "subject": dict(self.subject),
                "method": dict(self.method),
                "data": dict(self.data),
                "task": dict(self.task),
                "gates": [vars(gate) for gate in self.gates],
                "measures": [vars(measure) for measure in self.measures],
                "tables": {name: _rows(table) for name, table in self.tables.items()},
                "examples": hash_examples(examples),
                "environment": {**versions(), "platform": where["platform"]["machine"]},
                "warnings": list(self.warnings),
                "scope": scope,
                "cost": {
                    "forwards": forwards,
                    "backwards": backwards,
                    "seconds": round(time.perf_counter() - self.started, 3),
                },
                "created": where["time"],
            },
            examples=examples,
        )

    def _column(self, values: Any) -> np.ndarray:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not len(array):
            raise ShapeMismatch(f"a measure has one value per example, got the shape {list(array.shape)}.")
        return array

    def _add(self, measure: Measure, columns: Mapping[str, np.ndarray]) -> Measure:
        if any(one.key == measure.key for one in self.measures):
            raise BadData(f"the card has a measure {measure.key!r} already.")
        self.measures.append(measure)
        self.columns |= {measure.key + name: column for name, column in columns.items()}
        if measure.unreliable:
            self.warnings.append(
                f"Unreliable: {measure.key} is undefined for {measure.excluded} of "
                f"{measure.n + measure.excluded} examples."
            )
        return measure


def ratio_of_sums(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Sum over sum; NaN where the denominator is zero."""
    below = float(denominator.sum())
    return float(numerator.sum()) / below if below else float("nan")


def _name(id: str) -> str:
    key = id[:2]
    if key not in GATES:
        raise BadData(f"there is no gate {id!r}; gates are {', '.join(GATES)}.")
    return GATES[key]


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _padded(column: np.ndarray, n: int) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in column] + [None] * (n - len(column))


def _rows(table: pl.DataFrame) -> dict[str, Any]:
    """A table as JSON: columns of plain values, NaN as null; their order apart, since canonical JSON sorts keys."""

    def cell(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    values = {name: [cell(value) for value in table[name].to_list()] for name in table.columns}
    return {"columns": table.columns, "values": values}
