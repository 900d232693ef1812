"""The outcome of a study on the evaluation images: the chosen heads beside nothing, random heads and other methods."""

import logging
from typing import Any

import polars as pl

from circuits import comparators
from circuits.head_scores import Mode
from circuits.outcome import Outcome, outcomes
from circuits.study_inputs import Split
from mechvis import means as reference_means
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange
from mechvis.units import Unit

logger = logging.getLogger(__name__)


def rivals(
    model: Any,
    evaluate: Split,
    select: Split,
    chosen: list[Unit],
    draws: int,
    options: dict,
    seed: int,
    progress: bool,
) -> tuple[Outcome, Outcome, pl.DataFrame, dict[str, str]]:
    """The evaluation images before and after, the same measures for other ways to choose as many heads, and which of
    those ways are left out, with the reason."""
    mode: Mode = options["mode"]
    missing: dict[str, str] = {}
    named: list[tuple[str, list[Unit], Mode]] = [("nothing removed", [], mode), ("CIGMA", chosen, mode)]
    if chosen:
        other: Mode = "mean_positional" if mode == "zero" else "zero"
        named.append((f"CIGMA, {other} ablation", chosen, other))
        try:
            drawn = comparators.random_heads(model, len(chosen), draws, seed=seed, without=chosen)
            named += [("random", heads, mode) for heads in drawn]
        except OutOfRange as error:
            missing["no random control"] = str(error)
    try:
        if chosen:
            direct = comparators.by_direct_effect(model, select.images)
            named.append(("direct effect", sorted(direct[: len(chosen)]), mode))
        conflicting = comparators.conflicting_images(select.images)
        missing["Locate-Then-Correct looks at"] = (
            "all selection images" if conflicting is None else f"{int(conflicting.sum())} conflicting selection images"
        )
        located = comparators.locate_then_correct(model, select.images, conflicting)
        named.append(("Locate-Then-Correct", sorted(located), "mean_positional"))
    except BadData as error:
        missing.pop("Locate-Then-Correct looks at", None)
        missing["no direct effects"] = str(error)
        logger.warning("comparators by direct effect are left out: %s", error)
    means = options["means"]
    if means is None and any(how == "mean_positional" for _, _, how in named):
        means = reference_means(model, select.images, "blocks.*.attn.hook_z")
    found = outcomes(
        model,
        evaluate.images,
        evaluate.masks.masks,
        [(heads, how) for _, heads, how in named],
        fill=options["fill"],
        tau=options["tau"],
        means=means,
        progress=progress,
    )
    rows = [
        {"selection": name, "heads": " ".join(unit.name for unit in heads), **result.row()}
        for (name, heads, _), result in zip(named, found, strict=True)
    ]
    return found[0], found[1], pl.DataFrame(rows, infer_schema_length=None), missing


def per_image(images: ImageSet, before: Outcome, after: Outcome) -> pl.DataFrame:
    """Answers and gains of every evaluation image."""
    columns: dict[str, Any] = {"id": list(images.ids)}
    if images.groups is not None:
        columns["group"] = [str(group) for group in images.groups]
    for name in ("correct", "big", "fig", "object_only", "context_only"):
        columns[f"{name} before"], columns[f"{name} after"] = getattr(before, name), getattr(after, name)
    return pl.DataFrame(columns)
