"""A card as HTML: sections of a report, one self-contained file, and a small fragment for notebooks."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from mechvis.cards import markdown as text

if TYPE_CHECKING:
    import matplotlib.figure

    from mechvis.cards.faithfulness_card import FaithfulnessCard
    from mechvis.report.blocks import Block, Section


def sections(card: "FaithfulnessCard") -> "list[Section]":
    """The card as sections of a report: gates, measures, tables, scope, facts."""
    from mechvis.report.blocks import Facts, Figure, Note, Section, Table, Text

    kind = "warning" if card.failed else "good"
    top: list[Block] = [Note(kind, text.verdict(card)), *(Note("warning", line) for line in card.warnings)]
    top.append(Table(text.gate_table(text.gates_first_failed(card.gates)), "Failed gates first."))
    measured: list[Block] = [Text("not run")]
    if card.measures:
        table = Table(text.measure_table(card.measures), "Each measure beside its controls.")
        measured = [
            *(
                [Figure(drawn, "Measures with 95 % intervals; grey dots are controls.")]
                if (drawn := figure(card))
                else []
            ),
            table,
            Facts(text.definitions(card.measures)),
        ]
    found = [Section("Gates", top), Section("Measures", measured)]
    names = [*(("sensitivity", "planted", "stability")), *card.content["tables"]]
    for name in dict.fromkeys(names):
        rows = card.table(name) if name in card.content["tables"] else pl.DataFrame()
        found.append(Section(name.replace("_", " ").capitalize(), [Table(rows) if rows.height else Text("not run")]))
    facts = {block: card.content[block] for block in ("subject", "method", "data", "task", "cost", "environment")}
    facts |= {"level": card.content["level"], "seed": card.content["seed"], "sha256": card.sha256}
    return [*found, Section("Scope", [Text(card.scope)]), Section("Facts", [Facts(facts)])]


def write_page(card: "FaithfulnessCard", path: str | Path) -> Path:
    """The card as one HTML file."""
    from mechvis.report.build import write_report

    method = card.content["method"].get("name", "")
    return write_report(
        path, text.title(card), f"{card.kind} · {method} · {card.content['created']}", sections(card), {}
    )


def fragment(card: "FaithfulnessCard") -> str:
    """A short view for notebooks; everything escaped."""
    rows = "".join(
        f"<tr><td>{escape(text.MARKS[gate.status])}</td><td>{escape(gate.id)}</td><td>{escape(gate.name)}</td></tr>"
        for gate in text.gates_first_failed(card.gates)
    )
    measures = text.measure_table(card.measures)._repr_html_() if card.measures else ""
    said = "".join(f"<li>{escape(line)}</li>" for line in (*card.warnings, card.scope))
    head = f"<b>{escape(text.title(card))}</b><p>{escape(text.verdict(card))}</p>"
    return f"{head}<table>{rows}</table>{measures}<ul>{said}</ul>"


def figure(card: "FaithfulnessCard") -> "matplotlib.figure.Figure | None":
    """The explanation's own measures with their intervals, controls beside them."""
    from mechvis.plots.forest import Measure, forest

    rows = [
        Measure(
            name=f"{m.id} ({m.operator})" if m.operator else m.id,
            value=m.value,
            low=m.low,
            high=m.high,
            controls=[
                c.value
                for c in card.measures
                if c.control and (c.id, c.operator) == (m.id, m.operator) and c.value is not None
            ],
            unit=m.unit or "value",
            n=m.n,
        )
        for m in card.measures
        if not m.control and m.value is not None
    ]
    return forest(rows) if rows else None
