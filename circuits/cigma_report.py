"""A CIGMA study as one HTML file: words, figures and tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from circuits.certified import statement
from circuits.cigma_words import verdict
from mechvis.report.blocks import Block, Code, Facts, Figure, Images, Note, Section, Table, Text, Tile, Tiles
from mechvis.report.build import ensure_report_path, write_report

if TYPE_CHECKING:
    from circuits.study import Study


MOST_TILES = 6
"""Groups that get a tile each."""

_MEASURED = (
    " Top heads were scored on all selection images or (fresh) on n that had no part in the decision, the others on "
    "the first n that it took to reject them: their intervals are wide, and their places among each other not known."
)


def report_study(study: "Study", path: str | Path) -> Path:
    """Write the report of a study as one HTML file.

    Raises:
        OutputNotWritable: before anything is drawn.
    """
    path = ensure_report_path(path)
    data = study.provenance.get("data", {}).get("name", "images")
    model = study.provenance.get("model", {}).get("name", "a model")
    counts = study.settings["images"]
    subtitle = f"{model} on {data}: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    subtitle += " images, which may overlap" if study.settings.get("allow_overlap") else " images, disjoint"
    sections = [
        Section("What was found", _found(study)),
        Section("How far to believe it", _belief(study)),
        Section("Before and after", _before_after(study)),
        Section("Heads", _heads(study)),
        Section("How many heads to remove", _curve(study)),
        Section("Against other ways to choose heads", _controls(study)),
        Section("Example images", _examples(study)),
        Section(
            "Settings",
            [
                Facts({k: _shown(v) for k, v in study.settings.items()}),
                Code("model = mechvis.load(...)\nstudy = circuits.load_study(folder)\npruned = study.apply(model)"),
            ],
        ),
    ]
    return write_report(path, "Which heads look at the background?", subtitle, sections, study.provenance)


def _found(study: "Study") -> list[Block]:
    bir = study.measure("BIR")
    tiles = [
        Tile(
            f"{bir['before']:.3f} → {bir['after']:.3f}",
            "background influence ratio",
            "0 = object only, 1 = context only",
        )
    ]
    groups = [name for name in study.evaluation["measure"] if name.startswith("accuracy: ")]
    # Many groups are read in the table; the tiles then show the worst one.
    shown = {"accuracy", *(groups if len(groups) <= MOST_TILES else ["worst group"])}
    for row in study.evaluation.iter_rows(named=True):
        if row["measure"] in shown:
            tiles.append(Tile(f"{row['before']:.1%} → {row['after']:.1%}", row["measure"], f"n = {row['n']}"))
    tiles.append(Tile(", ".join(study.chosen) or "none", "heads removed", f"of {study.scores.rows().height}"))
    return [Tiles(tiles), Text(verdict(study))]


def _belief(study: "Study") -> list[Block]:
    notes: list[Block] = []
    if (said := statement(study.scores)) is not None:
        notes.append(Note("good" if study.certificate["certified"] else "warning", said.replace("\n", "\n\n")))
    for name in ("no direct effects", "no random control"):
        if name in study.settings:
            notes.append(Note("warning", f"There are {name} to compare with: {study.settings[name]}"))
    if study.settings.get("allow_overlap"):
        notes.append(Note("warning", "The sets were allowed to share images: effects may be too good to be true."))
    if strangers := [name for name in study.chosen if name not in study.recommended]:
        alone = f"The guarded score of {', '.join(strangers)} is not reliably above zero alone. "
        if study.settings.get("k") == "auto":
            notes.append(Note("info", alone + _set_evidence(study)))
        else:
            notes.append(
                Note(
                    "warning",
                    alone + "Removing these heads may damage the prediction where only the object is visible as much "
                    "as it lowers the dependence on context. A ratio that falls is no sign that a shortcut is gone.",
                )
            )
    if study.has_control:
        control = study.against_random("BIR")
        if control["observed"] < control["low"]:
            notes.append(
                Note(
                    "good",
                    f"Random heads of equal number leave BIR between {control['low']:.3f} and "
                    f"{control['high']:.3f} (95 % of {control['draws']:.0f} draws); these heads reach "
                    f"{control['observed']:.3f}.",
                )
            )
        else:
            notes.append(
                Note("warning", "Random heads of equal number lower BIR as much: the selection is not shown to matter.")
            )
    if study.chosen:
        bir = study.measure("BIR")
        if not (bir["high"] or 0) < 0:
            notes.append(Note("warning", "The interval of the change in BIR includes zero."))
        object_only = study.measure("accuracy, object only")
        if object_only["change"] < 0 and (object_only["high"] or 0) < 0:
            notes.append(
                Note(
                    "warning",
                    f"Accuracy on the object alone falls by {-object_only['change']:.1%}: the heads carry "
                    "object evidence too.",
                )
            )
    if study.masks.get("source") == "optimised":
        failed, n = study.masks.get("failed self-check", 0), study.masks.get("n", 0)
        notes.append(
            Note(
                "warning",
                f"Masks are the model's own (optimised); {failed} of {n} do not keep the prediction. Where "
                "the model relies on the context they show the context, and scores turn around.",
            )
        )
    low = [f"{name}: {value:.2f}" for name, value in study.stability.items() if name.startswith("rank") and value < 0.7]
    if low:
        notes.append(Note("warning", "The ranking depends on how the score is set up: " + "; ".join(low) + "."))
    facts: dict[str, Any] = {f"masks, {name}": _shown(value) for name, value in study.masks.items()}
    facts |= {name: _shown(value) for name, value in study.stability.items()}
    return [
        *notes,
        Text(
            "A head's score is how much less the prediction depends on the context without it, minus the damage that "
            "its removal does where only the object is visible. Heads are selected, their number is chosen, and the "
            "outcome is measured on three disjoint sets of images. Intervals are 95 % bootstrap intervals over images, "
            "paired for differences; they say nothing about other data, other models, or other shortcuts. Removing "
            "heads is a test of what they carry, not a guarantee that a shortcut is gone."
        ),
        Facts(facts),
    ]


def _set_evidence(study: "Study") -> str:
    """Why the chosen set was validated, from the curve."""
    row = study.curve.filter(pl.col("K") == len(study.chosen)).row(0, named=True)
    return (
        f"The set was validated together: joint guarded score {row['joint guarded']:+.4f} nats (lower end "
        f"{row['joint guarded, low']:+.4f}), gain in the worst group at least {row['worst group gain, low']:+.1%}, "
        f"largest loss of a group {row['largest cost']:.1%} (99 % intervals, validation images)."
    )


def _before_after(study: "Study") -> list[Block]:
    return [
        Table(
            study.evaluation,
            "Evaluation images. Change with 95 % paired bootstrap interval over images. BIG and FIG are "
            "Jensen-Shannon divergences in nats.",
        )
    ]


def _heads(study: "Study") -> list[Block]:
    from mechvis import plots

    rank = study.scores.metrics[0]
    blocks: list[Block] = []
    for metric in dict.fromkeys((rank, "cigma", "damage")):
        cube = study.scores.cube("layer", "head", metric=metric)
        marked = study.scores.cube("layer", "head", value="significant", metric=metric) == 1
        blocks.append(
            Figure(
                plots.head_map(cube, significant=marked, title=metric, label="nats"),
                {
                    "cigma": "Raw score: fall of background information gain without the head. A head whose removal "
                    "destroys everything scores high here too.",
                    "damage": "Change of the prediction where only the object is visible. Near zero for a pure "
                    "context head.",
                }.get(metric, "Score that ranks: raw score minus damage."),
            )
        )
    wide = study.scores.table.pivot(on="metric", index=["unit", "layer", "head"], values="effect")
    decided = [] if study.certificate is None else ["n", "status", "fresh"]
    interval = study.scores.rows(rank).select("unit", "low", "high", "significant", *decided)
    table = wide.join(interval, on="unit").sort(rank, descending=True)
    if study.true_positives is not None:
        paper = study.true_positives.rows("cigma").select("unit", pl.col("effect").alias("cigma, true positives"))
        table = table.join(paper, on="unit", how="left", maintain_order="left")
    blocks.append(
        Table(
            table,
            f"All heads on the selection images, by {rank}; low and high belong to it. The last column is the "
            "paper's score on correctly classified images alone." + (_MEASURED if decided else ""),
        )
    )
    return blocks


def _curve(study: "Study") -> list[Block]:
    from mechvis import plots

    frame = study.curve
    if frame.height < 2:
        return [
            Text("Every head is reliably harmful to remove, so there is nothing to try."),
            Table(frame, "Validation images."),
        ]
    names = [
        "BIR",
        "accuracy",
        *(c for c in frame.columns if c.startswith("accuracy: ")),
        "object only",
        "context only",
    ]
    x = frame["K"].to_numpy().astype(float)
    lines = [plots.Line(name=name, x=x, y=frame[name].to_numpy()) for name in names]
    figure = plots.curve(
        lines, chosen=float(len(study.chosen)), title="Validation images", x_label="heads removed", y_label="share"
    )
    return [
        Figure(
            figure,
            "The mark is the number chosen: best worst group among the validated sets (lower BIR, no group loses more "
            f"than {study.settings['max_cost']:.0%}; set's guarded score or worst group's gain reliably positive).",
        ),
        Table(frame, "Validation images, one row per number of heads."),
    ]


def _controls(study: "Study") -> list[Block]:
    from mechvis import plots

    blocks: list[Block] = []
    drawn = study.controls.filter(pl.col("selection") == "random")
    if drawn.height:
        for measure in ("BIR", "worst group"):
            blocks.append(
                Figure(
                    plots.control_strip(
                        drawn[measure].to_numpy(),
                        study.against_random(measure)["observed"],
                        name="chosen heads",
                        control_name="random heads",
                        title=measure,
                        label=measure,
                    )
                )
            )
    shown = study.controls.filter(pl.col("selection") != "random")
    if drawn.height:
        numbers = [name for name, kind in drawn.schema.items() if kind.is_numeric()]
        mean = drawn.select(
            pl.lit(f"random, mean of {drawn.height}").alias("selection"),
            pl.lit("").alias("heads"),
            *(pl.col(name).mean() for name in numbers),
        )
        shown = pl.concat([shown, mean], how="diagonal")
    caption = (
        "The same evaluation images for every selection. Locate-Then-Correct mean-ablates its own number of heads."
    )
    return [*blocks, Table(shown, caption)]


def _examples(study: "Study") -> list[Block]:
    pictures = study.examples["pictures"]
    marked = [_outline(picture, mask) for picture, mask in zip(pictures[0], study.examples["masks"], strict=True)]
    answers = ["right" if b else "wrong" for b in study.examples["before"]]
    then = ["right" if a else "wrong" for a in study.examples["after"]]
    ids = study.images["id"].to_list()
    groups = study.images["group"].to_list() if "group" in study.images.columns else [""] * len(ids)
    captions = [
        f"{ids[i]} {groups[i]}: {b} before, {a} after"
        for i, b, a in zip(study.examples["index"].tolist(), answers, then, strict=True)
    ]
    return [
        Images(marked, captions, "With the object's outline; half of them change their answer where there are such."),
        Images(
            list(pictures[1]),
            [],
            "Without context: BIG compares the prediction with this one, and damage looks at it alone.",
        ),
        Images(
            list(pictures[2]),
            [],
            "Without object: FIG compares with this one. With mean fill the outline stays visible.",
        ),
    ]


def _outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with a line around the mask."""
    inner = mask.copy()
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    out = picture.copy()
    out[mask & ~inner] = (255, 0, 170)
    return out


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
