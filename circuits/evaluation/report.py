"""An evaluation of a circuit as one HTML file: verdict, what speaks against it, figures, tables."""

from pathlib import Path
from typing import TYPE_CHECKING

from circuits.evaluation.words import scope, verdict
from mechvis.report.blocks import Block, Facts, Figure, Note, Section, Table, Text, Tile, Tiles
from mechvis.report.build import ensure_report_path, write_report

if TYPE_CHECKING:
    from circuits.evaluation.evaluation import CircuitEvaluation


def report_evaluation(found: "CircuitEvaluation", path: str | Path) -> Path:
    """Write the report of an evaluation.

    Raises:
        OutputNotWritable: before anything is drawn.
    """
    path = ensure_report_path(path)
    sections = [
        Section("What was found", _found(found)),
        Section("How far to believe it", _belief(found)),
        Section("All numbers", [Table(found.measures)]),
    ]
    if found.curve is not None:
        blocks: list[Block] = [Figure(found.curve.plot()), Table(found.curve.areas)]
        sections.append(Section("Faithfulness over size", blocks))
    for control in found.controls:
        sections.append(Section(f"Among random circuits ({control.how})", [Figure(control.plot())]))
    if found.completeness is not None:
        table = found.completeness.table
        table = table.with_columns(table["parts"].list.join(", ").alias("parts"))
        sections.append(Section("Completeness", [Text(repr(found.completeness)), Table(table)]))
    if found.minimality is not None:
        sections.append(Section("Minimality", [Table(found.minimality.table)]))
    if found.sensitivity is not None:
        sections.append(Section("Other ablations and metrics", [Table(found.sensitivity)]))
    facts = {name.replace("_", " "): str(value) for name, value in found.facts.items()}
    sections.append(Section("Facts", [Facts(facts)]))
    return write_report(path, f"How good is this circuit? {found.title}", scope(found), sections, found.provenance)


def _found(found: "CircuitEvaluation") -> list[Block]:
    tiles = [Tile(f"{found.facts['edges']} of {found.facts['n_edges']}", "edges", "after pruning")]
    for name in ("faithfulness", "necessity", "CPR", "CMD"):
        if name in found.measures["measure"].to_list():
            row = found.measure(name)
            ends = "no interval" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
            tiles.append(Tile(f"{row['value']:.3f}", name, ends))
    return [Tiles(tiles), Text(verdict(found))]


def _belief(found: "CircuitEvaluation") -> list[Block]:
    notes: list[Block] = [Note("warning", flag) for flag in found.flags]
    missing = [f"{name}: {why}" for name, why in found.not_run.items()]
    if missing:
        notes.append(Text("Not run. " + "; ".join(missing) + "."))
    return [*notes, Text(scope(found))]
