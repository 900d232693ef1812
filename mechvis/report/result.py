"""The standard report of a result: what was found, how far to believe it, the figure, the tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mechvis.report.blocks import Block, Facts, Figure, Note, Section, Table, Text, Tile, Tiles
from mechvis.report.build import ensure_report_path, write_report

if TYPE_CHECKING:
    from mechvis.results import Result

FEW_IMAGES = 64
"""Below this number of images a report says that intervals are wide and small effects are missed."""

UNRELIABLE = 0.05
"""Share of excluded images beyond which a report calls the numbers unreliable."""


def report_result(result: "Result", path: str | Path, *, sections: Sequence[Section] = ()) -> Path:
    """Write the standard report of `result`.

    Args:
        result: what to report.
        path: the HTML file.
        sections: a study's own, put between the belief statement and the tables.

    Raises:
        OutputNotWritable: before anything is drawn.
    """
    path = ensure_report_path(path)
    return write_report(
        path,
        result.title,
        _subtitle(result),
        [
            Section("What was found", found(result)),
            Section("How far to believe it", belief(result)),
            *sections,
            *(Section(f"Effects on {metric}", _metric_blocks(result, metric)) for metric in result.metrics),
        ],
        result.provenance,
    )


def found(result: "Result") -> list[Block]:
    """Key numbers of the first metric as tiles, then the finding of each metric in a sentence."""
    rows = result.rows()
    first = result.top(1, by="size").row(0, named=True)
    metric = result.metrics[0]
    tiles = [
        Tile(
            f"{int(rows['significant'].sum())} of {rows.height}",
            "units survive the correction",
            "false discovery rate 5 %",
        ),
        Tile(first["unit"], f"largest effect on {metric}", f"{first['effect']:+.3g} {_interval(first)}"),
    ]
    if metric in result.baseline:
        tiles.append(Tile(f"{result.baseline[metric]:.4g}", f"{metric} of the clean model", "before any edit"))
    tiles.append(Tile(_images(rows), "images", "the unit of every interval"))
    sentences = [_sentence(result, metric) for metric in result.metrics]
    return [Tiles(tiles), Text("\n\n".join(sentences))]


def belief(result: "Result") -> list[Block]:
    """How the numbers were made, what would make them wrong, and what they do not say; from the facts alone."""
    rows = result.table
    notes: list[Block] = []
    fewest = int(rows["n"].min())
    if fewest < FEW_IMAGES:
        notes.append(
            Note(
                "warning",
                f"Some effects rest on {fewest} images only. Intervals are wide, and a unit that "
                "does not survive the correction may still matter.",
            )
        )
    if "excluded" in rows.columns:
        share = (rows["excluded"] / (rows["excluded"] + rows["n"])).max()
        if share > UNRELIABLE:
            notes.append(
                Note(
                    "warning",
                    f"Unreliable: up to {share:.1%} of the images are undefined for a unit and "
                    "were left out. Those that are left may differ from those that are not.",
                )
            )
    if not rows["significant"].any():
        notes.append(
            Note("warning", "No unit survives the correction for many comparisons. The ranking below may be chance.")
        )
    tests = ", ".join(f"{result.rows(metric).height} for {metric}" for metric in result.metrics)
    data, model = result.provenance.get("data", {}), result.provenance.get("model", {})
    excluded = int(rows["excluded"].sum()) if "excluded" in rows.columns else 0
    seeds = result.provenance.get("seeds", {})
    return [
        *notes,
        Text(
            "An effect is metric(clean) minus metric(edited), averaged over images. Positive: the unit supports "
            "the metric, ablating it lowers the metric. Intervals are 95 % bootstrap intervals over images; they "
            "say how much the mean would move with other images of the same kind, not with another model or "
            "another way of ablating."
        ),
        Facts(
            {
                "images used": _images(rows),
                "values left out": f"{excluded:,}" if "excluded" in rows.columns else "not recorded",
                "tests": tests,
                "correction": "Benjamini-Hochberg over the units of each metric, at 5 %",
                "seeds": ", ".join(f"{name} {seed}" for name, seed in seeds.items()) or "not recorded",
                "scope": f"tested on {_images(rows)} images of {data.get('name', 'an unnamed data set')} with "
                f"{model.get('name', 'an unnamed model')}; says nothing about other images, other models "
                "or units that were not ablated",
            }
        ),
    ]


def _metric_blocks(result: "Result", metric: str) -> list[Block]:
    table = result.rows(metric).drop("metric")
    # Strongest first: the reader's question is which units matter, not where they lie; any column can be sorted.
    table = table.sort(pl.col("effect"), descending=True, maintain_order=True)
    # One number format per column, with three to four figures of the largest effect.
    largest = float(table["effect"].abs().max())
    form = f"+.{int(np.clip(3 - np.floor(np.log10(largest)), 0, 8)) if largest else 3}f"
    forms = {"effect": form, "low": form, "high": form, "p": ".2g"}
    return [
        Figure(result.plot(metric), f"Effect of each unit on {metric}."),
        Table(
            table,
            f"{table.height} units, largest effect first. Click a heading to sort.",
            formats=forms,
            bars=("effect",),
        ),
    ]


def _sentence(result: "Result", metric: str) -> str:
    rows = result.rows(metric)
    row = result.top(1, by="size", metric=metric).row(0, named=True)
    verb = "lowers" if row["effect"] >= 0 else "raises"
    share = ""
    if clean := result.baseline.get(metric):
        share = f", {abs(row['effect'] / clean):.0%} of the clean {clean:.4g}"
    mark = "survives" if row["significant"] else "does not survive"
    return (
        f"{metric}: {int(rows['significant'].sum())} of {rows.height} units survive the correction. The largest "
        f"effect is that of {row['unit']}: ablating it {verb} {metric} by {abs(row['effect']):.4g}{share} "
        f"(effect {row['effect']:+.4g}, 95 % interval {_interval(row)}, n = {row['n']}); it {mark}."
    )


def _subtitle(result: "Result") -> str:
    model, data = result.provenance.get("model", {}), result.provenance.get("data", {})
    parts = [
        result.kind.replace("_", " "),
        model.get("name", ""),
        data.get("name", ""),
        result.provenance.get("time", ""),
    ]
    return " · ".join(part for part in parts if part)


def _images(rows: pl.DataFrame) -> str:
    low, high = rows["n"].min(), rows["n"].max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _interval(row: dict) -> str:
    if row["low"] is None or row["high"] is None:
        return "[no interval: one image]"
    return f"[{row['low']:+.3g}, {row['high']:+.3g}]"
