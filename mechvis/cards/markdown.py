"""A card as text: failed gates first, then the other gates, measures beside their controls, tables, scope."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from mechvis.cards.parts import Gate, Measure

if TYPE_CHECKING:
    from mechvis.cards.faithfulness_card import FaithfulnessCard

MARKS = {"pass": "✓ pass", "fail": "✗ FAIL", "not applicable": "– not applicable", "not run": "? not run"}
_ORDER = ("fail", "not run", "pass", "not applicable")


def gates_first_failed(gates: Sequence[Gate]) -> list[Gate]:
    """Failed ones first, then those that were not run."""
    return sorted(gates, key=lambda gate: (_ORDER.index(gate.status), gate.id))


def gate_table(gates: Sequence[Gate]) -> pl.DataFrame:
    """Gates as a table to show."""
    return pl.DataFrame(
        {
            "gate": [gate.id for gate in gates],
            "answer": [MARKS[gate.status] for gate in gates],
            "what was asked": [gate.name for gate in gates],
            "number": [
                "" if g.statistic is None else f"{g.statistic:.4g} (asked {g.rule} {g.threshold:.4g})" for g in gates
            ],
            "what the number is": [gate.why for gate in gates],
        },
        schema=dict.fromkeys(("gate", "answer", "what was asked", "number", "what the number is"), pl.String),
    )


def measure_table(measures: Sequence[Measure]) -> pl.DataFrame:
    """Measures as a table to show, the explanation's own first, its controls below it."""
    own = [m for m in measures if not m.control]
    ordered = [m for one in own for m in (one, *(c for c in measures if c.control and _same(c, one)))]
    ordered += [m for m in measures if m not in ordered]
    return pl.DataFrame(
        {
            "measure": [m.id for m in ordered],
            "of": [m.control or "this explanation" for m in ordered],
            "removed by": [m.operator for m in ordered],
            "value": ["undefined" if m.value is None else f"{m.value:.4g}" for m in ordered],
            "95 % interval": ["" if m.low is None else f"[{m.low:.4g}, {m.high:.4g}]" for m in ordered],
            "better": [{"high": "higher", "low": "lower"}.get(m.direction, "") for m in ordered],
            "n": [str(m.n) for m in ordered],
            "undefined": [str(m.excluded) if m.excluded else "" for m in ordered],
        }
    )


def definitions(measures: Sequence[Measure]) -> dict[str, str]:
    """What each measure is, by its id."""
    return {m.id: m.formula for m in measures}


def _same(one: Measure, other: Measure) -> bool:
    return (one.id, one.operator) == (other.id, other.operator)


def title(card: "FaithfulnessCard") -> str:
    """What the card is of, in one line."""
    method, subject = card.content["method"], card.content["subject"]
    return (
        f"Faithfulness card: {card.kind.replace('_', ' ')} by {method.get('name', '?')} on {subject.get('name', '?')}"
    )


def verdict(card: "FaithfulnessCard") -> str:
    """How many gates were failed, and which: the only summary there is."""
    counts = {status: sum(gate.status == status for gate in card.gates) for status in _ORDER}
    parts = [
        f"{n} {word}" for word, n in (("passed", counts["pass"]), ("failed", counts["fail"])) if n or word == "failed"
    ]
    parts += [f"{counts[status]} {status}" for status in ("not applicable", "not run") if counts[status]]
    said = f"Gates: {', '.join(parts)}."
    if card.failed:
        said += " Failed: " + "; ".join(f"{gate.id} ({gate.name.split(':')[0]})" for gate in card.failed) + "."
    return said


def markdown(card: "FaithfulnessCard") -> str:
    """The card as Markdown; every text in it is escaped."""
    lines = [f"# {_cell(title(card))}", "", _cell(verdict(card)), ""]
    for warning in card.warnings:
        lines += [f"> {_cell(warning)}", ""]
    lines += ["## Gates", "", *_table(gate_table(gates_first_failed(card.gates))), ""]
    lines += ["## Measures", "", *(_table(measure_table(card.measures)) if card.measures else ["not run"]), ""]
    lines += [f"* **{_cell(name)}**: {_cell(text)}" for name, text in definitions(card.measures).items()]
    lines.append("")
    for name in ("sensitivity", "planted", "stability"):
        rows = card.table(name) if name in card.content["tables"] else None
        lines += [
            f"## {name.capitalize()}",
            "",
            *(_table(rows) if rows is not None and rows.height else ["not run"]),
            "",
        ]
    for name in card.content["tables"]:
        if name not in ("sensitivity", "planted", "stability"):
            lines += [f"## {_cell(name.replace('_', ' '))}", "", *_table(card.table(name)), ""]
    lines += ["## Scope", "", _cell(card.scope), "", "## Facts", ""]
    for block in ("subject", "method", "data", "task", "cost", "environment"):
        said = "; ".join(f"{name}: {_short(value)}" for name, value in card.content[block].items())
        lines.append(f"* **{block}**: {_cell(said)}")
    lines += [
        f"* **level**: {card.content['level']}, seed {card.content['seed']}",
        f"* **sha256**: `{card.sha256}`",
        "",
    ]
    return "\n".join(lines)


def plain_text(card: "FaithfulnessCard") -> str:
    """A few lines for a terminal."""
    lines = [title(card), verdict(card)]
    lines += [f"  {MARKS[g.status]:18} {g.id} {g.name}{_number(g)}" for g in gates_first_failed(card.gates)]
    table = measure_table(card.measures)
    for row in table.iter_rows(named=True):
        of = "" if row["of"] == "this explanation" else f"  {row['of']}"
        by = f" ({row['removed by']})" if row["removed by"] else ""
        lines.append(f"  {row['measure']}{by}{of}: {row['value']} {row['95 % interval']} n={row['n']}")
    lines += [f"! {warning}" for warning in card.warnings]
    return "\n".join([*lines, card.scope])


def _asked(gate: Gate) -> str:
    if gate.statistic is None:
        return ""
    return f"{gate.statistic:.4g} (asked {gate.rule} {gate.threshold:.4g})"


def _number(gate: Gate) -> str:
    return "" if gate.statistic is None else f": {gate.statistic:.3g} {gate.rule} {gate.threshold:.3g}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(table: pl.DataFrame) -> list[str]:
    names = table.columns
    rows = [[_cell(_short("" if value is None else value)) for value in row] for row in table.iter_rows()]
    head = ["| " + " | ".join(map(_cell, names)) + " |", "|" + " --- |" * len(names)]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def _cell(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no line break, no link."""
    one_line = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", str(text))
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", one_line).replace("://", ":\\/\\/")
