"""Before and after an edit, on images that had no part in choosing it.

1. The images must be other ones than those that chose the edit, and than those that its means were made of.
2. Both models answer to all of them; with masks also to the object alone and to the context alone.
3. Every measure gets a paired interval; groups and classes are tested as one family (Holm).
4. Random edits of the same size are measured the same way: as many other heads, as many directions that remove as much
   norm, as many edges between the same layers. The edit must gain more than 95 % of them.
5. The collateral: KL between the two models' answers on the classes that the edit is not meant to touch.

A selection that was made on the same images would show a gain even where there is none (methods2.md 20.5), so the
images that chose are asked for and refused here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from circuits.editing.card import FINE, HARM, NOT_TRUSTED, EditCard
from circuits.editing.measured import Known, answers, checked_images, columns, known_of
from circuits.editing.measures import Columns, Measure, holm_family, measures_of, with_groups
from circuits.editing.model_edit import ModelEdit
from circuits.information import Fill
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange, SplitOverlap, unknown
from mechvis.progress import track
from mechvis.provenance import provenance

MIN_CONTROLS = 20
"""With fewer draws a 95th percentile means nothing."""


def edit_card(
    model: Any,
    edit: ModelEdit,
    images: ImageSet,
    *,
    chosen_on: ImageSet | Sequence[ImageSet] = (),
    gain: str = "accuracy",
    metric: str | Callable = "logit_diff",
    touched: Iterable[str | int] = (),
    max_harm: float = 0.05,
    controls: int = MIN_CONTROLS,
    fill: Fill = "mean",
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> EditCard:
    """Measure what an edit does.

    Args:
        model: the model that the edit was made for.
        edit: from `remove_heads`, `project_out`, `remove_edges` or `keep_only`.
        images: labelled images to measure on; with masks, context dependence is measured too.
        chosen_on: the images that the edit was chosen on (several sets if several were used).
        gain: the measure that the edit is for: `accuracy`, `worst group`, `group: <name>`, `class: <name>`, `BIR`, or
            the metric's name.
        metric: name from `mechvis.metrics.METRICS`, or a function of the same signature.
        touched: classes that the edit is meant to change; all others are untouched.
        max_harm: largest loss of accuracy that a group or class may suffer.
        controls: random edits of the same size, at least 20; 0 for none.
        fill: for the views without object or context: what removed pixels become.
        batch_size: images per forward.
        seed: of the controls and the bootstrap.
        progress: show a progress bar.
        allow_overlap: accept images that chose the edit or made its means.

    Raises:
        SplitOverlap: the images overlap with those that chose the edit, or that its means were made of.
        BadData: no labels, a model without a head, no image of an untouched class.
        UnknownName: no such measure, metric or class.
        OutOfRange: fewer controls than 20.
        ResultMismatch: the edit was made for another model.
        NotFinite: an answer is NaN or Inf.

    Example:
        >>> edit_card(model, edit, evaluation, chosen_on=selection, gain="worst group")            # doctest: +SKIP
    """
    if controls != 0 and controls < MIN_CONTROLS:
        raise OutOfRange(f"controls={controls}: at least {MIN_CONTROLS} random edits, or 0 for none.")
    if not 0 <= max_harm <= 1:
        raise OutOfRange(f"max_harm={max_harm}: a share of images, from 0 to 1.")
    images = checked_images(images, model)
    _disjoint(edit, images, chosen_on, allow_overlap)
    edited = edit.apply(model)
    masks = images.read_mask is not None
    settings: dict[str, Any] = {"masks": masks, "fill": fill if masks else None, "max_harm": max_harm, "seed": seed}
    look = {"masks": masks, "fill": fill, "batch_size": batch_size}
    first = answers(lambda pixels: model.run(pixels, capture=model.output_site).output, model, images, **look)
    known = known_of(images, model, first, metric)
    untouched, names = _untouched(known, model, touched)
    settings |= {"touched": names, "metric": known.metric_name, "gain": gain}
    before = with_groups(columns(first, known), known)
    after = with_groups(columns(answers(edited, model, images, **look), known), known)
    listed = measures_of(known, before, untouched)
    by_name = {measure.name: measure for measure in listed}
    if gain not in by_name:
        raise unknown("measure", gain, by_name)
    rows = holm_family([measure.row(before, after, seed) for measure in listed])
    measured, why = [], "none was asked for"
    if controls:
        # Views cost three forwards instead of one, and only measures of context need them.
        needed = {**look, "masks": masks and bool(_VIEWS & set(by_name[gain].columns))}
        measured, why = _controls(edit, model, known, by_name[gain], before, controls, needed, seed, progress)
    settings |= {} if measured else {"no_control": why}
    facts = _gain(by_name[gain], next(row for row in rows if row["measure"] == gain), measured)
    harmed = tuple(row["measure"] for row in rows if row["kind"] != "all" and row["change"] < -max_harm - 1e-12)
    status, reasons = _verdict(facts, harmed, max_harm, bool(controls), why)
    return EditCard(
        title=edit.change.words,
        edit={
            **{name: getattr(edit, name) for name in ("before", "after", "folded", "note", "deviation")},
            "chain": list(edit.chain),
        },
        table=pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("p", "p_holm").cast(pl.Float64)),
        controls=pl.DataFrame(
            measured, schema={"control": pl.String, "value": pl.Float64, "change": pl.Float64}, orient="row"
        ),
        images=_image_rows(known, before, after),
        gain=facts,
        harmed=harmed,
        status=status,
        reasons=reasons,
        settings=settings,
        provenance=provenance(model=model, images=images, seed=seed),
    )


_VIEWS = {"big", "fig", "object_only", "context_only"}


def _disjoint(edit: ModelEdit, images: ImageSet, chosen_on: Any, allow_overlap: bool) -> None:
    if allow_overlap:
        return
    for other in [chosen_on] if isinstance(chosen_on, ImageSet) else list(chosen_on):
        refuse_overlap(other, images, what="images that chose an edit and images that it is measured on")
    if shared := edit.change.reference_ids & set(images.ids):
        raise SplitOverlap(
            f"{len(shared)} of the images made the means of the edit ({sorted(shared)[0]} ...): measure it on others, "
            "or allow_overlap=True if you know why."
        )


def _untouched(known: Known, model: Any, touched: Iterable[str | int]) -> tuple[np.ndarray, list[str]]:
    """Images of the classes that the edit is not meant to change, and the names of the others."""
    n_classes = known.clean.shape[-1]
    chosen = [int(model.class_index(name, n_classes)) for name in ([touched] if isinstance(touched, str) else touched)]
    untouched = ~np.isin(known.labels, chosen)
    if not untouched.any():
        raise BadData(
            "every image is of a class that the edit is meant to change, so nothing is left to see what it changes "
            "besides. Add images of other classes, or leave touched= out."
        )
    return untouched, [known.class_name(index) for index in chosen]


def _controls(
    edit: ModelEdit,
    model: Any,
    known: Known,
    gain: Measure,
    before: Columns,
    draws: int,
    look: dict[str, Any],
    seed: int,
    progress: bool,
) -> tuple[list[tuple[str, float, float]], str]:
    """Name, value and change of the gain's measure for every random edit; why there are none."""
    try:
        drawn = edit.change.random(model, known.images, draws, seed)
    except (OutOfRange, BadData) as error:
        return [], str(error)
    found = []
    with track(len(drawn), "random edits", " edits", show=progress) as bar:
        for change in drawn:
            logits = answers(lambda pixels, change=change: change.run(model, pixels), model, known.images, **look)
            value = gain.value(with_groups(columns(logits, known), known))
            found.append((change.words, value, value - gain.value(before)))
            bar.update(1)
    return found, ""


def _gain(gain: Measure, row: dict[str, Any], measured: list[tuple[str, float, float]]) -> dict[str, Any]:
    improved = np.array([gain.sign * change for _, _, change in measured])
    own = gain.sign * row["change"]
    return {
        **row,
        "improvement": own,
        "controls": len(measured),
        "control_95": float(np.quantile(improved, 0.95, method="higher")) if measured else None,
        "p_control": float((1 + (improved >= own - 1e-12).sum()) / (1 + len(improved))) if measured else None,
    }


def _verdict(
    gain: dict[str, Any], harmed: tuple[str, ...], max_harm: float, asked: bool, why: str
) -> tuple[int, tuple[str, ...]]:
    """The status and its reasons; what cannot be trusted counts before what does harm."""
    ends = [gain["low"], gain["high"]]
    doubts = []
    sign = 1 if gain["better"] == "higher" else -1
    if None in ends or not min(sign * end for end in ends) > 0:
        doubts.append(
            f"the improvement of {gain['measure']} is {gain['improvement']:+.4g}, and its interval does not lie above 0"
        )
    if asked and not gain["controls"]:
        doubts.append(f"there is no random control ({why})")
    elif asked and not gain["improvement"] > gain["control_95"]:
        doubts.append(
            f"the improvement of {gain['measure']} ({gain['improvement']:+.4g}) is not above the 95th percentile of "
            f"random edits ({gain['control_95']:+.4g})"
        )
    losses = [f"{', '.join(harmed)} lose more than {max_harm:g} of accuracy"] if harmed else []
    return (NOT_TRUSTED if doubts else HARM if losses else FINE), (*doubts, *losses)


def _image_rows(known: Known, before: Columns, after: Columns) -> pl.DataFrame:
    table: dict[str, Any] = {"id": list(known.images.ids), "label": [known.class_name(int(i)) for i in known.labels]}
    if known.groups is not None:
        table["group"] = known.groups.tolist()
    for name, word in (("correct", "correct"), ("metric", known.metric_name)):
        table[f"{word} before"], table[f"{word} after"] = before[name], after[name]
    table["kl"] = after["kl"]
    return pl.DataFrame(table)
