"""CIGMA: which attention heads make a classifier look at the background, and what happens without them.

Causal information-gain attribution of attention heads (methods.md section 1), as one study:

1. Split the images: selection, validation, evaluation (and reference, for mean ablation); disjoint.
2. Masks: given, or optimised on the unablated model and checked.
3. Score every head on the selection images: raw score, guards, intervals; also on the correctly classified ones alone.
4. Recommend heads whose guarded score's interval lies above zero, and order them (greedily re-scored, if asked).
   With `rank_by="cigma"` the raw score orders them, but the guard still decides which are recommended.
5. Choose how many to remove on the validation images.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from circuits import comparators
from circuits.head_scores import MODES, SCORES, Mode, score_heads
from circuits.information import FILLS, Fill
from circuits.masks import Masks, MaskSettings, intersection_over_union, optimise_masks, read_masks
from circuits.outcome import Outcome, comparison, outcomes
from circuits.study import Study, example_pictures
from mechvis import files
from mechvis import means as reference_means
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, FailedMasks, OutOfRange, ResultMismatch, SplitOverlap, unknown
from mechvis.means import Means
from mechvis.provenance import provenance
from mechvis.results import Result
from mechvis.units import Unit, units_of

logger = logging.getLogger(__name__)

CANDIDATES = (0, 1, 2, 4, 8, 16, 32)
SHARES = (0.4, 0.2, 0.4)
"""Selection, validation, evaluation."""
SENSITIVITY_IMAGES = 64
"""Images of the second scan with another fill."""


@dataclass(frozen=True)
class _Split:
    """Images of one purpose with their masks."""

    images: ImageSet
    masks: Masks


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
            (accuracy, where there are no groups) among those that cost no group more than `max_cost`.
        candidates: numbers of heads to try.
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
        BadData: no labels, labels that count the classes in another order than the model, no masks although `given`,
            too few images, a model without a head of at least two classes or without image preprocessing.
        SplitOverlap: the sets share images.
        OutOfRange: a label that the head does not have, or a setting out of range.
        UnknownName, ResultMismatch, OutputNotWritable.

    Example:
        >>> study = cigma(mechvis.load("scenes-vit"), mechvis.data.scenes(n=600, seed=1))     # doctest: +SKIP
        >>> print(study.summary())                                                           # doctest: +SKIP
    """
    started = time.perf_counter()
    _check(fill, rank_by, k, candidates, mask_source, controls, mode, tau, max_cost)
    _check_model(model, k)
    if out is not None:
        files.ensure_writable(out)
    sets = _splits(images, selection, validation, evaluation, seed, allow_overlap)
    for name, found in sets.items():
        _check_labels(model, found, name)
    means, sets["selection"] = _means(model, mode, reference, sets, seed, allow_overlap)
    splits, mask_facts = _masks(model, sets, mask_source, fill, tau, mask_settings, out, progress)
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
    recommended = [unit for unit in ranked if _low(scores, unit, "guarded") > 0]
    if greedy:
        most = max(*candidates, 0 if k == "auto" else k)
        recommended = _greedy(model, select, recommended, most, rank_by, options, run, seed)
    # What greedy has accepted goes first also where the number of heads is given.
    order = recommended if k == "auto" else [*recommended, *(unit for unit in ranked if unit not in recommended)]
    if not greedy and k != "auto":
        order = ranked
    curve, chosen = _choose(model, validate, order, k, candidates, max_cost, options)
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


def _check(
    fill: str,
    rank_by: str,
    k: Any,
    candidates: Sequence[int],
    mask_source: str,
    controls: int,
    mode: str,
    tau: float,
    max_cost: float,
) -> None:
    def is_count(value: Any) -> bool:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0

    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if rank_by not in ("guarded", "cigma"):
        raise unknown("rank_by", rank_by, ("guarded", "cigma"))
    if mask_source not in ("auto", "given", "optimised"):
        raise unknown("mask_source", mask_source, ("auto", "given", "optimised"))
    if not (k == "auto" or is_count(k)) or not candidates or not all(map(is_count, candidates)):
        raise OutOfRange(
            f"k is 'auto' or a number of heads from 0, candidates are such numbers; got k={k!r}, {candidates}."
        )
    if controls < 20:
        raise OutOfRange(f"controls={controls}: an interval over random heads needs at least 20 draws.")
    if not tau > 0 or not 0 <= max_cost <= 1:
        raise OutOfRange(f"tau must be above 0 and max_cost between 0 and 1, got tau={tau} and max_cost={max_cost}.")


def _check_model(model: Any, k: Any) -> None:
    parts = getattr(model, "parts", None)
    if parts is None:
        hint = " Use clip.classifier(class_names)." if hasattr(model, "classifier") else " Use mechvis.load(model)."
        raise BadData(f"CIGMA needs a wrapped classifier, got {type(model).__name__}.{hint}")
    if parts.head is None or parts.modality != "image":
        raise BadData(
            f"{model.title or parts.family} has no classes; for CLIP use clip.classifier(class_names), else a model "
            "with a head."
        )
    if model.preprocess is None:
        raise BadData("this model has no image preprocessing; pass preprocess= to mechvis.load.")
    n_heads = sum(block.attn.n_heads for block in parts.blocks)
    if k != "auto" and k > n_heads:
        raise OutOfRange(f"k={k}: the model has only {n_heads} heads.")


def _check_labels(model: Any, images: ImageSet, name: str) -> None:
    """A wrong numbering of the classes would give plausible numbers about nothing."""
    if images.labels is None:
        raise BadData(f"the {name} images have no labels; CIGMA needs them for its guards and its evaluation.")
    n_classes = model.run(images[:1]).logits.shape[-1]
    if n_classes < 2:
        raise BadData(f"CIGMA compares distributions over classes; the model's head has {n_classes} output.")
    low, high = int(np.min(images.labels)), int(np.max(images.labels))
    if low < 0 or high >= n_classes:
        raise OutOfRange(
            f"the {name} images have labels from {low} to {high}, the model's classes are 0 to {n_classes - 1}."
        )
    place = {word: i for i, word in enumerate(model.parts.class_names)}
    for i in np.unique(images.labels):
        word = images.class_names[i] if images.class_names else None
        if place.get(word, i) != i:
            raise BadData(
                f"the class {word!r} is number {i} of the {name} images, but number {place[word]} of the model. "
                "Number the labels as the model does: mechvis.commands.with_model_classes(images, model)."
            )


def _splits(
    images: ImageSet | None,
    selection: ImageSet | None,
    validation: ImageSet | None,
    evaluation: ImageSet | None,
    seed: int,
    allow_overlap: bool,
) -> dict[str, ImageSet]:
    given = {"selection": selection, "validation": validation, "evaluation": evaluation}
    if images is not None:
        if any(part is not None for part in given.values()):
            raise BadData("pass either images=, which is split, or selection=, validation= and evaluation=.")
        if len(images) < 30:
            raise BadData(
                f"{len(images)} images are too few for three disjoint splits; 200 or more give useful intervals."
            )
        return dict(zip(given, images.split(*SHARES, seed=seed), strict=True))
    missing = [name for name, part in given.items() if part is None]
    if missing:
        raise BadData(f"no {' and no '.join(missing)} images; pass images= to have them split.")
    if not allow_overlap:
        for first, second in (("selection", "validation"), ("selection", "evaluation"), ("validation", "evaluation")):
            refuse_overlap(given[first], given[second], what=f"{first} and {second} images")
    return {name: part for name, part in given.items() if part is not None}


def _means(
    model: Any, mode: str, reference: Any, sets: dict[str, ImageSet], seed: int, allow_overlap: bool
) -> tuple[Means | None, ImageSet]:
    """Reference means for mean ablation, and the selection images that remain."""
    selection = sets["selection"]
    if mode != "mean_positional":
        if reference is not None:
            raise BadData(f"reference= is for mode='mean_positional', the mode is {mode!r}.")
        return None, selection
    if reference is None:
        reference, selection = selection.split(0.2, 0.8, seed=seed)
    elif not allow_overlap:
        for name, part in sets.items():
            if isinstance(reference, ImageSet):
                refuse_overlap(reference, part, what=f"reference and {name} images")
            elif shared := reference.ids & set(part.ids):
                raise SplitOverlap(
                    f"reference and {name} images must not share images: {len(shared)} ids are in both "
                    f"({min(shared)} ...). Use others, or allow_overlap=True if they are different images."
                )
    found = reference if isinstance(reference, Means) else reference_means(model, reference, "blocks.*.attn.hook_z")
    for unit in units_of(model, "heads"):
        shape = (model.parts.n_tokens, model.parts.blocks[unit.layer].attn.n_heads)
        if found[unit.site].shape[:2] != shape:
            raise ResultMismatch(
                f"the means of {unit.site} are {list(found[unit.site].shape)}: they are of another model."
            )
    return found, selection


def _masks(
    model: Any,
    sets: dict[str, ImageSet],
    source: str,
    fill: Fill,
    tau: float,
    settings: MaskSettings | None,
    out: str | Path | None,
    progress: bool,
) -> tuple[dict[str, _Split], dict[str, Any]]:
    have = all(part.read_mask is not None for part in sets.values())
    if source == "given" and not have:
        raise BadData(
            "mask_source='given', but the images have no masks. Pass masks= to the loader, or use 'optimised'."
        )
    splits: dict[str, _Split] = {}
    facts: dict[str, Any] = {"source": "given" if have and source != "optimised" else "optimised"}
    if source == "auto" and not have:
        warnings.warn(
            "the images have no masks: the model's own (optimised) masks are used. Where the model relies on the "
            "context, they show the context, and scores turn around.",
            FailedMasks,
            stacklevel=3,
        )
    agreement = []
    for name, part in sets.items():
        if facts["source"] == "given":
            found = read_masks(part, model.preprocess)
            _check_given(found, part, name)
            splits[name] = _Split(part, Masks(found, np.zeros(len(part)), "given"))
            continue
        wanted = settings or MaskSettings(tau=tau)
        folder = None if out is None else Path(out) / "masks" / name
        found = optimise_masks(model, part, settings=wanted, fill=fill, folder=folder, progress=progress)
        splits[name] = _Split(part, found)
        if have:
            agreement.append(intersection_over_union(found.masks, read_masks(part, model.preprocess)))
    facts["n"] = sum(len(split.images) for split in splits.values())
    facts["failed self-check"] = int(sum(split.masks.failed.sum() for split in splits.values()))
    facts["object share"] = float(np.mean([float(split.masks.masks.float().mean()) for split in splits.values()]))
    if agreement:
        facts["IoU with given masks"] = float(np.concatenate(agreement).mean())
    return splits, facts


def _check_given(masks: Any, images: ImageSet, name: str) -> None:
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    full = masks.flatten(1).all(1).nonzero().flatten().tolist()
    if empty or full:
        which = ", ".join(images.ids[i] for i in (empty + full)[:3])
        raise BadData(
            f"{len(empty)} {name} masks are empty and {len(full)} cover the whole image (after resize and crop), "
            f"e.g. {which}: nothing can be removed there. Leave these images out."
        )


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


def _low(scores: Result, unit: Unit, rank_by: str) -> float:
    return float(scores.rows(rank_by).filter(pl.col("unit") == unit.name)["low"][0])


def _greedy(
    model: Any, select: _Split, recommended: list[Unit], most: int, rank_by: str, options: dict, run: dict, seed: int
) -> list[Unit]:
    """Accept the best head, re-score the rest with it removed, and so on, while a head's guarded interval lies above
    zero."""
    accepted: list[Unit] = recommended[:1]
    while accepted and len(accepted) < most:
        rest = [unit for unit in units_of(model, "heads") if unit not in accepted]
        if not rest:
            break
        values = score_heads(model, select.images, select.masks.masks, removed=accepted, units=rest, **options, **run)
        scores = _result(values, rest, select.images, {}, rank_by, "greedy", seed)
        passed = [unit for unit in _ranking(scores, rest, rank_by) if _low(scores, unit, "guarded") > 0]
        if not passed:
            break
        accepted.append(passed[0])
    return accepted


def _choose(
    model: Any,
    validate: _Split,
    heads: list[Unit],
    k: int | str,
    candidates: Sequence[int],
    max_cost: float,
    options: dict,
) -> tuple[pl.DataFrame, list[Unit]]:
    """Try numbers of heads on the validation images; take the best worst group among those that cost little."""
    tried = sorted({0, *(int(c) for c in candidates if c <= len(heads)), *([] if k == "auto" else [int(k)])})
    sets = [(heads[:c], options["mode"]) for c in tried]
    shared = {name: options[name] for name in ("fill", "tau", "means")}
    found_at = dict(zip(tried, outcomes(model, validate.images, validate.masks.masks, sets, **shared), strict=True))
    base = found_at[0]

    def cost(found: Outcome) -> float:
        if not base.group_accuracy:
            return float(base.correct.mean() - found.correct.mean())
        return max(before - found.group_accuracy[group] for group, before in base.group_accuracy.items())

    rows = [
        {
            "K": c,
            "heads": " ".join(unit.name for unit in heads[:c]),
            **found.row(),
            "largest cost": cost(found),
            "allowed": cost(found) <= max_cost + 1e-12,
        }
        for c, found in found_at.items()
    ]
    if k != "auto":
        best = int(k)
    else:
        allowed = [row for row in rows if row["allowed"]]
        best = max(
            allowed, key=lambda row: (row["worst group"], -row["BIR"] if np.isfinite(row["BIR"]) else -1, -row["K"])
        )["K"]
    return pl.DataFrame(rows, infer_schema_length=None), sorted(heads[:best])


def _rivals(
    model: Any,
    evaluate: _Split,
    select: _Split,
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


def _sensitivity(
    model: Any, select: _Split, scores: Result, rank_by: str, options: dict, run: dict
) -> dict[str, float]:
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
