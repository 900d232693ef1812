"""What a comparison says, in words: for the terminal, and as a page with the caveats in it."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from circuits.comparison.record import Comparison
from mechvis.cli import columns
from mechvis.report.blocks import Block, Figure, Note, Section, Table, Text
from mechvis.report.build import ensure_report_path, write_report

PULLED = 0.1
"""A DDB that noise pulls by more than this (in log units) gets a warning."""

_HEADS = {
    "ddb_out": "DDB out", "ddb_deep": "DDB deep", "ddb_global": "DDB global", "id_accuracy": "accuracy at home",
    "confidence": "confidence", "negative_entropy": "-entropy", "atc": "ATC", "accuracy": "accuracy", "css": "CSS",
    "matched": "matched CSS",
}  # fmt: skip
_MODELS = (
    "DDB compares what the circuit takes from deep layers with what it takes from shallow ones: above 0, deep ones "
    "weigh more. It uses no labels. Only models of one recipe compare, since DDB grows along training. The interval is "
    "over images; noise in the scores pulls DDB by about what the columns called bias say."
)
_DATA = (
    "CSS is the distance between the circuit on the reference images and on the others. With few images most of it is "
    "sampling noise: read the matched CSS beside the noise floor, which is the same distance between disjoint halves "
    "of the reference images, at the same number of images. A circuit that moves need not be a model that fails: the "
    "correlation with accuracy, where it is known, says how far the one stands for the other here."
)


def summary(comparison: Comparison) -> str:
    """The table, the correlations with accuracy, and what to beware of.

    Args:
        comparison: of models or of data sets.

    Example:
        >>> print(summary(found))                                                                  # doctest: +SKIP
    """
    models = comparison.kind == "models"
    parts = [comparison.title, _model_lines(comparison.table) if models else _data_lines(comparison.table)]
    if comparison.correlations is not None:
        what = "models" if models else "data sets"
        n = int(comparison.correlations["n"].max())
        parts.append(f"correlation with accuracy over {n} {what}, 95 % intervals\n{_correlation_lines(comparison)}")
    return "\n\n".join([*parts, *warnings(comparison)])


def warnings(comparison: Comparison) -> list[str]:
    """What the numbers themselves give reason to beware of, one sentence or two each."""
    table, found = comparison.table, []
    if comparison.kind == "models":
        bias = np.abs(table["ddb_out_bias"].fill_null(0).to_numpy())
        if (bias > PULLED).any():
            worst = table["model"][int(bias.argmax())]
            found.append(
                f"Noise moves DDB_out by more than {PULLED:g} in {int((bias > PULLED).sum())} of {len(bias)} models "
                f"({worst}: {bias.max():.2f}); measure more images before you rank them."
            )
    else:
        draws = comparison.provenance.get("settings", {}).get("draws", 0)
        if draws < 100:
            found.append(f"With {draws} draws, the 99th percentile of the floor is about its largest value.")
    if comparison.correlations is not None:
        rows = comparison.correlations.filter(statistic="spearman")
        apart = ((pl.col("low") > 0) | (pl.col("high") < 0)).fill_null(False)
        unsure = [_HEADS.get(name, name) for name in rows.filter(~apart)["score"]]
        if unsure:
            found.append(
                "Not shown to go with accuracy here (the interval of Spearman holds 0, or there is none): "
                f"{', '.join(unsure)}."
            )
    return found


def report(comparison: Comparison, path: str | Path) -> Path:
    """Write one self-contained HTML file.

    Args:
        comparison: of models or of data sets.
        path: the file.

    Raises:
        OutputNotWritable: says what and why, before anything is drawn.
    """
    path = ensure_report_path(path)
    models = comparison.kind == "models"
    sections = [
        Section("What was found", [Figure(_figure(comparison)), Table(comparison.table, limit=200)]),
        Section(
            "How far to believe it",
            [*(Note("warning", text) for text in warnings(comparison)), Text(_MODELS if models else _DATA)],
        ),
    ]
    if comparison.correlations is not None:
        blocks: list[Block] = [Table(comparison.correlations, formats={"value": "+.3f", "low": "+.3f", "high": "+.3f"})]
        over = "models" if models else "data sets"
        sections.append(Section(f"Correlation with accuracy over {over}", blocks))
    return write_report(path, comparison.title, "", sections, comparison.provenance)


def _model_lines(table: pl.DataFrame) -> str:
    known = [name for name in _HEADS if name in table.columns]
    rows = [
        (row["model"], *(_with_ends(row, name) if name == "ddb_out" else _number(row[name]) for name in known))
        for row in table.sort("ddb_out", descending=True).iter_rows(named=True)
    ]
    return columns(rows, ("model", *(_HEADS[name] for name in known)))


def _data_lines(table: pl.DataFrame) -> str:
    known = [name for name in ("accuracy", "confidence", "negative_entropy", "atc") if name in table.columns]
    rows = [
        (row["set"], _number(row["css"]), _with_ends(row, "matched", "low", "high"), row["n"], _number(row["floor"]),
         _number(row["floor_99"]), "" if row["p"] is None else f"{row['p']:.3f}", "ALARM" if row["alarm"] else "",
         *(_number(row[name]) for name in known))
        for row in table.iter_rows(named=True)
    ]  # fmt: skip
    heads = ("set", "CSS", "matched CSS", "n", "floor", "floor 99 %", "p", "")
    return columns(rows, (*heads, *(_HEADS[name] for name in known)))


def _correlation_lines(comparison: Comparison) -> str:
    table = comparison.correlations
    rows = []
    for score in table["score"].unique(maintain_order=True):
        own = {row["statistic"]: row for row in table.filter(score=score).iter_rows(named=True)}
        cells = (_with_ends(own[name], "value", "low", "high") for name in ("r2", "spearman", "kendall"))
        rows.append((_HEADS.get(score, score), *cells))
    return columns(rows, ("score", "R squared", "Spearman", "Kendall"))


def _figure(comparison: Comparison) -> Any:
    from mechvis.plots import bars

    table = comparison.table
    if comparison.kind == "models":
        table = table.sort("ddb_out", descending=True)
        name, value, low, high = "model", "ddb_out", "ddb_out_low", "ddb_out_high"
        label, strong = "DDB to the output", None
    else:
        name, value, low, high, label = "set", "matched", "low", "high", "matched circuit shift score"
        strong = table["alarm"].to_numpy() | (table["role"] == "reference").to_numpy()
    ends = [table[end].fill_null(float("nan")).to_numpy() for end in (low, high)]
    figure = bars(table[name].to_list(), table[value].to_numpy(), low=ends[0], high=ends[1], label=label)
    if strong is not None:
        axes = figure.axes[0]
        axes.axvline(float(table["floor_99"].max()), linestyle="--", linewidth=1, color="#5b5b5b")
        axes.set_title("dashed: 99th percentile of the noise floor", loc="left", size=8)
    return figure


def _with_ends(row: dict[str, Any], value: str, low: str = "", high: str = "") -> str:
    low, high = low or f"{value}_low", high or f"{value}_high"
    if row[value] is None:
        return "undefined"
    ends = "" if row[low] is None or row[high] is None else f" [{row[low]:.3f}, {row[high]:.3f}]"
    return f"{row[value]:.3f}{ends}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
