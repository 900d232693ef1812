"""CIGMA: which attention heads make a classifier look at the background, and what happens without them.

Causal information-gain attribution of attention heads (methods.md section 1), as one study:

1. Split the images: selection, validation, evaluation (and reference, for mean ablation); disjoint.
2. Masks: given, or optimised on the unablated model and checked.
3. Score every head on the selection images: raw score, guards, intervals; also on the correctly classified ones alone.
4. Recommend heads whose guarded score's interval lies above zero (and that survive the false-discovery-rate correction
   over heads), and order all heads that do no harm (recommended ones greedily re-scored, if asked). With
   `rank_by="cigma"` the raw score orders them, but the guard still decides which are recommended.
5. Choose how many to remove on the validation images, among sets that are validated *as sets*: heads that share a cue
   hardly count one by one and much together, so a set has its own guard (see `circuits.choose`).
6. On the evaluation images: before and after, against random heads, direct effect and Locate-Then-Correct.

Differences from the paper [X]: the guards, the mixed selection set, BIR as a ratio of sums, K by validation. The paper
scores true positives only, which hides shortcuts (methods.md 1.4, pitfall 2); those scores are kept beside.

What it cannot see: heads that carry the same context so strongly that either alone is enough score near zero each
(methods.md 1.4, pitfall 7). `greedy` finds heads that matter once another one is gone, but only if a first head stands
out; heads that are fully redundant from the start are missed, and the study says that nothing is recommended.
"""

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from circuits import comparators
from circuits.choose import choose
from circuits.head_scores import SCORES, Mode, score_heads
from circuits.information import Fill
from circuits.masks import Masks, MaskSettings
from circuits.outcome import Outcome, comparison, outcomes
from circuits.study import Study, example_pictures
from circuits.study_inputs import Split, check_labels, check_model, check_settings, masks_of, means_of, splits_of
from mechvis import files
from mechvis import means as reference_means
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange
from mechvis.labels import with_model_classes
from mechvis.means import Means
from mechvis.provenance import provenance
from mechvis.results import Result
from mechvis.units import Unit, units_of

logger = logging.getLogger(__name__)

CANDIDATES = (0, 1, 2, 3, 4, 8, 16, 32)
"""Numbers of heads that are tried: the paper's, and 3."""
SENSITIVITY_IMAGES = 64
"""Images of the second scan with another fill."""


def cigma(
    model: Any,
    images: ImageSet | None = None,
    *,
    selection: ImageSet | None = None,
    validation: ImageSet | None = None,
    evaluation: ImageSet | None = None,
    mask_source: Literal["auto", "given", "optimised"] = "auto",
    mode: Mode = "zero",
    fill: Fill = "mean",
    tau: float = 1.0,
    rank_by: Literal["guarded", "cigma"] = "guarded",
    k: int | Literal["auto"] = "auto",
    candidates: Sequence[int] = CANDIDATES,
    max_cost: float = 0.05,
    greedy: bool = False,
    controls: int = 20,
    sensitivity: bool = True,
    mask_settings: MaskSettings | None = None,
    reference: Any = None,
    budget: str | int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Study:
    """Find the heads that carry the context, choose how many to remove, and measure what that does.

    Args:
        model: a wrapped classifier (for CLIP: `clip.classifier(class_names)`).
        images: labelled images, split 40/20/40 by `seed` (stratified by group) into the three purposes.
        selection, validation, evaluation: instead of `images`, the three sets, disjoint.
        mask_source: `given` masks, `optimised` ones, or `auto`: given where there are any.
        mode: ablation of a head: `zero` (the paper's) or `mean_positional`.
        fill: what removed pixels become: `mean` colour, `blur`, `zero`.
        tau: softmax temperature.
        rank_by: `guarded`, or the paper's raw score `cigma`.
        k: how many heads to remove; `auto` chooses from `candidates` on the validation images: the best worst group
            (accuracy, where there are no groups) among the validated sets: lower BIR, no group loses more than
            `max_cost`, and the set's guarded score or its gain in the worst group is reliably above zero.
        candidates: numbers of heads to try, beside all recommended ones together.
        max_cost: largest loss of accuracy that any group may suffer on the validation images.
        greedy: re-score the rest after each accepted head, so that heads are seen that only matter once another is gone
            (not heads that are fully redundant from the start, see the top of this module).
        controls: draws of random heads of equal number, at least 20.
        sensitivity: score some images again with another fill and compare the ranking.
        mask_settings: for optimised masks.
        reference: images (or `Means`) for `mean_positional`, disjoint from the others; by default a fifth of the
            selection images.
        budget: memory for activations, e.g. `"8GB"`.
        out: folder for finished pieces and the study; the same call continues an interrupted one.
        seed: of splits, controls and bootstrap.
        progress: show progress bars.
        allow_overlap: accept splits that share images.

    Returns:
        Study: scores, ranking, curve over K, evaluation, controls; `.report(path)`, `.save(folder)`, `.apply(model)`.

    Raises:
        BadData: no labels, a class that the model does not know, no masks although `given`,
            too few images, a model without a head of at least two classes or without image preprocessing.
        SplitOverlap: the sets share images.
        OutOfRange: a label that the head does not have, or a setting out of range.
        UnknownName, ResultMismatch, OutputNotWritable.

    Example:
        >>> study = cigma(mechvis.load("scenes-vit"), mechvis.data.scenes(n=600, seed=1))     # doctest: +SKIP
        >>> print(study.summary())                                                           # doctest: +SKIP
    """
    started = time.perf_counter()
    check_settings(fill, rank_by, k, candidates, mask_source, controls, mode, tau, max_cost)
    check_model(model, k)
    if out is not None:
        files.ensure_writable(out)
    sets = splits_of(images, selection, validation, evaluation, seed, allow_overlap)
    sets = {name: with_model_classes(found, model) for name, found in sets.items()}
    for name, found in sets.items():
        check_labels(model, found, name)
    means, sets["selection"] = means_of(model, mode, reference, sets, seed, allow_overlap)
    splits, mask_facts = masks_of(model, sets, mask_source, fill, tau, mask_settings, out, progress)
    select, validate, evaluate = (splits[name] for name in ("selection", "validation", "evaluation"))
    options: dict[str, Any] = {"mode": mode, "fill": fill, "tau": tau, "means": means}
    settings = {
        "mode": mode,
        "fill": fill,
        "tau": tau,
        "rank_by": rank_by,
        "k": k,
        "candidates": list(candidates),
        "max_cost": max_cost,
        "greedy": greedy,
        "controls": controls,
        "mask_source": select.masks.source,
        "seed": seed,
        "images": {name: len(split.images) for name, split in splits.items()},
        "allow_overlap": allow_overlap,
        **({} if means is None else {"reference": {"n": means.n, "data": means.data}}),
    }
    plan = (
        {
            "model": model.fingerprint,
            "data": select.images.fingerprint,
            "pixels": model.preprocess.fingerprint,
            "masks": _mask_hash(select.masks),
            "means": None if means is None else _means_hash(means),
            **{key: settings[key] for key in ("mode", "fill", "tau")},
            "study": "cigma",
        }
        if out
        else None
    )
    run: dict[str, Any] = {"budget": budget, "progress": progress}
    values = score_heads(
        model,
        select.images,
        select.masks.masks,
        **options,
        **run,
        plan=plan,
        folder=Path(out) / "pieces" if out else None,
    )
    units = units_of(model, "heads")
    data = {name: {"name": part.images.name, "fingerprint": part.images.fingerprint} for name, part in splits.items()}
    where = provenance(model=model, images=select.images, seed=seed, splits=data, cigma=settings)
    scores = _result(values, units, select.images, where, rank_by, "all selection images", seed)
    true_positives = _true_positives(values, units, select.images, where, rank_by, seed)
    ranked = _ranking(scores, units, rank_by)
    recommended = [unit for unit in ranked if _reliable(scores, unit)]
    most = max(*candidates, 0 if k == "auto" else k)
    if greedy:
        recommended = _greedy(model, select, recommended, most, rank_by, options, run, seed)
    # Heads that are not recommended alone may belong to a set that is: they are tried after those that are, unless
    # the selection images show that they do harm. With a given k the ranking is taken as it is.
    first = recommended if greedy or k == "auto" else []
    rest = [unit for unit in ranked if unit not in first and (k != "auto" or not _harmful(scores, unit))]
    curve, chosen = choose(model, validate, first, rest, k, candidates, max_cost, options, seed)
    before, after, rivals, missing = _rivals(model, evaluate, select, chosen, controls, options, seed, progress)
    settings |= missing
    stability = _sensitivity(model, select, scores, rank_by, options, run) if sensitivity else {}
    study = Study(
        scores=scores,
        true_positives=true_positives,
        ranking=tuple(unit.name for unit in ranked),
        recommended=tuple(unit.name for unit in recommended),
        chosen=tuple(unit.name for unit in chosen),
        curve=curve,
        evaluation=pl.DataFrame(comparison(before, after, seed=seed), infer_schema_length=None),
        controls=rivals,
        images=_per_image(evaluate.images, before, after),
        masks=mask_facts,
        stability=stability,
        settings=settings,
        provenance={**where, "timings": {"study": round(time.perf_counter() - started, 1)}},
        examples=example_pictures(model, evaluate.images, evaluate.masks.masks, fill, before, after),
    )
    if out is not None:
        study.save(out)
    return study


def _mask_hash(masks: Masks) -> str:
    return files.checksum(np.packbits(masks.masks.cpu().numpy()).tobytes())[:16]


def _means_hash(means: Means) -> str:
    content = b"".join(means[site].float().cpu().numpy().tobytes() for site in sorted(means) if site.endswith("hook_z"))
    return files.checksum(content)[:16]


def _result(
    values: dict[str, np.ndarray],
    units: Sequence[Unit],
    images: ImageSet,
    where: dict,
    rank_by: str,
    which: str,
    seed: int,
    used: np.ndarray | None = None,
) -> Result:
    order = [rank_by, *(name for name in SCORES if name != rank_by)]
    table = {"id": list(images.ids)}
    if images.groups is not None:
        table["group"] = [str(group) for group in images.groups]
    shown = {name: values[name] if used is None else np.where(used[None], values[name], np.nan) for name in order}
    clean = {
        name: values[f"clean/{name}"] if used is None else values[f"clean/{name}"][used]
        for name in ("big", "fig", "correct")
    }
    return Result.from_values(
        "cigma",
        f"CIGMA head scores, {which}",
        [unit.row() for unit in units],
        shown,
        images=pl.DataFrame(table),
        provenance=where,
        seed=seed,
        baseline={f"mean {name}": float(v.mean()) for name, v in clean.items()},
    )


def _true_positives(
    values: dict[str, np.ndarray], units: Sequence[Unit], images: ImageSet, where: dict, rank_by: str, seed: int
) -> Result | None:
    used = values["clean/correct"] > 0
    if used.sum() < 2:
        return None
    return _result(
        values, units, images, where, rank_by, "correctly classified images only (as in the paper)", seed, used
    )


def _ranking(scores: Result, units: Sequence[Unit], rank_by: str) -> list[Unit]:
    effect = scores.rows(rank_by)["effect"].to_numpy()
    return [units[i] for i in np.argsort(-effect, kind="stable")]


def _reliable(scores: Result, unit: Unit) -> bool:
    """Is the guarded score above zero: its interval, and after the correction for the number of heads?"""
    row = scores.rows("guarded").row(by_predicate=pl.col("unit") == unit.name, named=True)
    return row["low"] is not None and row["low"] > 0 and row["significant"]


def _harmful(scores: Result, unit: Unit) -> bool:
    """Does the guarded score's interval end at zero or below?"""
    row = scores.rows("guarded").row(by_predicate=pl.col("unit") == unit.name, named=True)
    return row["high"] is None or row["high"] <= 0


def _greedy(
    model: Any, select: Split, recommended: list[Unit], most: int, rank_by: str, options: dict, run: dict, seed: int
) -> list[Unit]:
    """Accept the best head, re-score the rest with it removed, and so on, while a head's guarded score is
    reliably above zero."""
    accepted: list[Unit] = recommended[:1]
    while accepted and len(accepted) < most:
        rest = [unit for unit in units_of(model, "heads") if unit not in accepted]
        if not rest:
            break
        values = score_heads(model, select.images, select.masks.masks, removed=accepted, units=rest, **options, **run)
        scores = _result(values, rest, select.images, {}, rank_by, "greedy", seed)
        passed = [unit for unit in _ranking(scores, rest, rank_by) if _reliable(scores, unit)]
        if not passed:
            break
        accepted.append(passed[0])
    return accepted


def _rivals(
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


def _sensitivity(model: Any, select: Split, scores: Result, rank_by: str, options: dict, run: dict) -> dict[str, float]:
    """Rank correlation of head scores under another fill and other temperatures, on some selection images."""
    from scipy.stats import spearmanr

    # Evenly spread: image sets are often sorted by class.
    n = len(select.images)
    which = np.unique(np.linspace(0, n - 1, min(SENSITIVITY_IMAGES, n)).round().astype(int))
    some, masks = select.images[which], select.masks.masks[torch.from_numpy(which)]
    base = scores.values[rank_by][:, which].mean(axis=1)
    found = {"images scored again": float(len(some))}
    changes = {
        "fill blur": {"fill": "blur" if options["fill"] != "blur" else "mean"},
        "tau 2": {"tau": 2.0},
        "tau 5": {"tau": 5.0},
    }
    if options["fill"] == "blur":
        changes["fill mean"] = changes.pop("fill blur")
    for name, change in changes.items():
        values = score_heads(model, some, masks, **{**options, **change}, **{**run, "progress": False})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant scores have no rank correlation; shown as missing
            rho = float(spearmanr(base, values[rank_by].mean(1)).statistic)
        if np.isfinite(rho):
            found[f"rank correlation, {name}"] = rho
    return found


def _per_image(images: ImageSet, before: Outcome, after: Outcome) -> pl.DataFrame:
    columns: dict[str, Any] = {"id": list(images.ids)}
    if images.groups is not None:
        columns["group"] = [str(group) for group in images.groups]
    for name in ("correct", "big", "fig", "object_only", "context_only"):
        columns[f"{name} before"], columns[f"{name} after"] = getattr(before, name), getattr(after, name)
    return pl.DataFrame(columns)
