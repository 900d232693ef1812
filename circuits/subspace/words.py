"""A subspace study in words, as a figure and as a report: accuracy, baselines and diagnosis always side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from circuits.subspace.diagnosis import FLAGGED, KINDS, NO_EFFECT, lines_of
from mechvis.report.blocks import Facts, Figure, Note, Section, Table, Text, Tile, Tiles
from mechvis.report.build import ensure_report_path, write_report

if TYPE_CHECKING:
    import matplotlib.figure

    from circuits.subspace.study import SubspaceStudy

SPLITS = ("train", "validation", "test", "unseen")
FIXED = ("no edit", "full swap")
CONTROLS = ("DAS, shuffled V", "DAS, random weights", "boundless DAS")
WITHOUT = {"DAS, shuffled V": "no edit, shuffled V", "DAS, random weights": "no edit, random weights"}
"""Controls -> what doing nothing scores there."""


def summary(study: "SubspaceStudy") -> str:
    """The study as text."""
    shown = ", ".join(f"{study.images[name]} {name}" for name in SPLITS if name in study.images)
    dropped = study.images.get("dropped", 0)
    test = study.accuracy("DAS").row(0, named=True)
    lines = [
        f"SubspaceStudy: {study.variable!r} at {study.hook} (width {study.width}): k = {study.k}, {study.verdict}",
        f"  images: {shown}; {dropped} dropped (the model's answer is not Y)",
        f"  interchange accuracy on {test['n']} test pairs, {test['n_must_change']} of which must change the answer",
        *_table(study),
        *_controls(study),
        f"  chosen: k = {study.k}, seed {study.seed}: {_chosen(study)}",
        f"  diagnosis: {study.verdict}. {meaning(study)}",
        *(f"  {line}" for line in lines_of(study.diagnosis)),
    ]
    return "\n".join(lines)


def _methods(study: "SubspaceStudy") -> list[str]:
    found = study.curve.filter(pl.col("split") == "test")["method"].unique(maintain_order=True).to_list()
    return [name for name in found if name not in (*FIXED, *CONTROLS, *WITHOUT.values())]


def _ks(study: "SubspaceStudy") -> list[int]:
    return sorted(study.accuracy("DAS")["k"].unique().to_list())


def _table(study: "SubspaceStudy") -> list[str]:
    ks = _ks(study)
    lines = ["    " + " " * 22 + "".join(f"{f'k={k}':>20}" for k in ks)]
    for method in _methods(study):
        cells = []
        for k in ks:
            found = study.accuracy(method, k=k)["iia"].to_numpy()
            cells.append(_spread(found))
        lines.append(f"    {method:22}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    middle = f"{np.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({values.min():.2f}-{values.max():.2f})"


def _controls(study: "SubspaceStudy") -> list[str]:
    chance = study.accuracy("DAS")["chance"][0]
    one = {name: study.accuracy(name)["iia"].item() for name in FIXED}
    lines = [f"    no edit {one['no edit']:.3f}, full swap {one['full swap']:.3f}, most frequent answer {chance:.3f}"]
    for name in CONTROLS:
        found = study.curve.filter(pl.col("method") == name)
        test = found.filter(pl.col("split") == "test")
        if test.is_empty():
            if name == "DAS, random weights":
                lines.append("    DAS, random weights: not given (random_tail=)")
            continue
        text = f"    {name}, k = {', '.join(map(str, test['k'].unique()))}: {_spread(test['iia'].to_numpy())}"
        train = found.filter(pl.col("split") == "train")
        text += "" if train.is_empty() else f", on its training images {_spread(train['iia'].to_numpy())}"
        if name in WITHOUT:
            text += f"; no edit there {_spread(study.accuracy(WITHOUT[name])['iia'].to_numpy())}"
        lines.append(text)
    return lines


def _chosen(study: "SubspaceStudy") -> str:
    row = study.accuracy("DAS", k=study.k).filter(pl.col("seed") == study.seed).row(0, named=True)
    parts = [
        f"{row['iia']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
        f"where the answer must change {_share(row['must_change'])} (n={row['n_must_change']})",
        f"where it is neither image's {_share(row['neither'])} (n={row['n_neither']})",
        f"logit difference destroyed {_share(row['destroyed'])}, recovered {_share(row['recovered'])}",
    ]
    return "; ".join(parts)


def _share(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def meaning(study: "SubspaceStudy") -> str:
    """What the verdict says and does not say, in one sentence."""
    if study.verdict == NO_EFFECT:
        return "The interchange hardly raises the accuracy over doing nothing."
    alarms = ", ".join(study.alarms)
    if study.verdict == FLAGGED:
        return f"Alarms: {alarms}. The accuracy may come from a direction that the data never moves along."
    if not alarms:
        return "No alarm. That is no proof: these numbers see known illusions only."
    kind = KINDS[study.alarms[0]]
    return f"Alarms: {alarms}; all of one kind ({kind}), which alone right directions set off too. That is no proof."


def figure(study: "SubspaceStudy") -> "matplotlib.figure.Figure":
    """Test accuracy against k."""
    from mechvis.plots import curve
    from mechvis.plots.curve import Line

    ks, lines = _ks(study), []
    for method in _methods(study):
        values = [study.accuracy(method, k=k)["iia"].to_numpy() for k in ks]
        several = any(len(found) > 1 for found in values)
        lines.append(
            Line(
                name=f"{method} (range of seeds)" if several else method,
                x=np.array(ks),
                y=np.array([np.median(found) if len(found) else np.nan for found in values]),
                low=np.array([found.min() if len(found) else np.nan for found in values]) if several else None,
                high=np.array([found.max() if len(found) else np.nan for found in values]) if several else None,
            )
        )
    for name in FIXED:
        level = study.accuracy(name)["iia"].item()
        lines.append(Line(name=name, x=np.array(ks), y=np.full(len(ks), level)))
    drawn = curve(lines, chosen=study.k, title=f"{study.variable} at {study.hook}", x_label="k", y_label="IIA")
    drawn.axes[0].get_legend().set_title("")
    return drawn


def report(study: "SubspaceStudy", path: str | Path) -> Path:
    """Write the study as one HTML file."""
    path = ensure_report_path(path)
    model = study.provenance.get("model", {}).get("name", "a model")
    tone = "warning" if study.verdict == FLAGGED else "info"
    tiles = [
        Tile(f"{study.iia:.3f}", "interchange accuracy", f"k = {study.k}, test pairs"),
        Tile(f"{study.accuracy('no edit')['iia'].item():.3f}", "without an edit"),
        Tile(f"{study.accuracy('full swap')['iia'].item():.3f}", "full swap"),
        Tile(study.verdict, "diagnosis", f"{len(study.alarms)} alarms"),
    ]
    sections = [
        Section("What was found", [Tiles(tiles), Note(tone, f"{study.verdict}: {meaning(study)}")]),
        Section("Accuracy beside its baselines", [Figure(study.plot()), Table(study.curve, limit=200)]),
        Section(
            "How far to believe it",
            [
                Text("A high accuracy says that the subspace can change the answer, not that the model uses it."),
                Table(study.diagnosis, formats={"value": ".3f"}),
            ],
        ),
        Section("Settings", [Facts({**study.settings, "images": study.images})]),
    ]
    return write_report(path, f"Where is {study.variable}?", f"{model}, {study.hook}", sections, study.provenance)
