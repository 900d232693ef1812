"""CIGMA: which attention heads make a classifier look at the background, and what happens without them.

Causal information-gain attribution of attention heads (methods.md section 1), as one study:

1. Split the images: selection, validation, evaluation (and reference, for mean ablation); disjoint.
2. Masks: given, or optimised on the unablated model and checked.
3. Score every head on the selection images: raw score, guards, intervals; also on the correctly classified ones alone.
   With `certified=True` only as many images are used as it takes to know the top heads (:mod:`circuits.certified`).
4. Recommend heads whose guarded score's interval lies above zero (and that survive the false-discovery-rate correction
   over heads), and order all heads that do no harm (recommended ones greedily re-scored, if asked). With
   `rank_by="cigma"` the raw score orders them, but the guard still decides which are recommended
   (:mod:`circuits.ranking`).
5. Choose how many to remove on the validation images, among sets that are validated *as sets*: heads that share a cue
   hardly count one by one and much together, so a set has its own guard (see `circuits.choose`).
6. On the evaluation images: before and after, against random heads, direct effect and Locate-Then-Correct
   (:mod:`circuits.rivals`).

Differences from the paper [X]: the guards, the mixed selection set, BIR as a ratio of sums, K by validation. The paper
scores true positives only, which hides shortcuts (methods.md 1.4, pitfall 2); those scores are kept beside.

What it cannot see: heads that carry the same context so strongly that either alone is enough score near zero each
(methods.md 1.4, pitfall 7). `greedy` finds heads that matter once another one is gone, but only if a first head stands
out; heads that are fully redundant from the start are missed, and the study says that nothing is recommended.

Processes that are given the same `out` share the scores of the heads (docs/scale.md); each makes the rest for itself.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from circuits.certified import Certified, rank_top
from circuits.choose import choose
from circuits.head_scores import Mode
from circuits.information import Fill
from circuits.masks import Masks, MaskSettings
from circuits.outcome import comparison
from circuits.ranking import Work, greedily, harmful, rank_all, stability
from circuits.rivals import per_image, rivals
from circuits.study import MANIFEST, Study, example_pictures
from circuits.study_inputs import check_labels, check_model, check_settings, masks_of, means_of, splits_of
from mechvis import files
from mechvis.data.images import ImageSet
from mechvis.errors import ResultMismatch
from mechvis.labels import with_model_classes
from mechvis.means import Means
from mechvis.parallel.share import one_saves
from mechvis.provenance import provenance
from mechvis.units import units_of

CANDIDATES = (0, 1, 2, 3, 4, 8, 16, 32)
"""Numbers of heads that are tried: the paper's, and 3."""


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
    certified: bool = False,
    top: int = 16,
    eps: float = 0.1,
    delta: float = 0.05,
    tails: Literal["student", "guarded", "bernstein"] = "guarded",
    audit: float = 0.05,
    fresh_images: int = 1024,
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
        certified: score the heads on as few selection images as it takes to find the `top` ones with a guarantee; the
            study judges only these (see :mod:`circuits.certified`). The next six arguments are for it alone.
        top: heads to find, fewer than there are. Ask for no more than may matter: where the score on rank `top` is near
            zero, so is the tolerance, and all images are needed.
        eps: tolerance, as a share of the score on rank `top`.
        delta: probability with which the guarantee may fail.
        tails: how means are bounded, as for :func:`mechvis.certified_top`; the range for `bernstein` is known here.
        audit: share of heads that are measured to the end if they are rejected; one that lies above a top one withdraws
            the certificate.
        fresh_images: images on which each of the top heads is scored once it is found, at most (at least 64): all that
            are left, or so many, which alone count then.
        controls: draws of random heads of equal number, at least 20.
        sensitivity: score some images again with another fill and compare the ranking.
        mask_settings: for optimised masks.
        reference: images (or `Means`) for `mean_positional`, disjoint from the others; by default a fifth of the
            selection images.
        budget: memory for activations, e.g. `"8GB"`.
        out: folder for finished pieces and the study; the same call continues an interrupted one, and processes that
            are given the same folder share the scoring.
        seed: of splits, controls and bootstrap.
        progress: show progress bars.
        allow_overlap: accept splits that share images.

    Returns:
        Study: scores, ranking, curve over K, evaluation, controls; `.report(path)`, `.save(folder)`, `.apply(model)`.

    Raises:
        BadData: no labels, a class that the model does not know, no masks although `given`,
            too few images, a model without a head of at least two classes or without image preprocessing.
        SplitOverlap: the sets share images.
        OutOfRange: a label that the head does not have, a setting out of range, or (certified) `top` not below the
            number of heads.
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
    folder, heads = None if out is None else Path(out), units_of(model, "heads")
    asked = None
    if certified:
        asked = Certified(top=top, eps=eps, delta=delta, tails=tails, audit=audit, fresh_images=fresh_images)
        asked.check(len(heads), len(sets["selection"]), k=k, greedy=greedy, folder=folder)
    elif folder is not None and (folder / "rounds").exists():
        raise ResultMismatch(
            f"{folder} holds a certified study. Use another output folder, or delete this one; or pass certified=True."
        )
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
        **({} if asked is None else {"certified": asdict(asked)}),
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
    data = {name: {"name": part.images.name, "fingerprint": part.images.fingerprint} for name, part in splits.items()}
    where = provenance(model=model, images=select.images, seed=seed, splits=data, cigma=settings)
    work = Work(
        model=model,
        select=select,
        options=options,
        run={"budget": budget, "progress": progress},
        rank_by=rank_by,
        seed=seed,
        where=where,
        folder=folder,
        plan=plan,
    )
    ranked = rank_all(work) if asked is None else rank_top(work, asked)
    recommended = ranked.recommended
    if greedy:
        recommended = greedily(work, recommended, max(*candidates, 0 if k == "auto" else k))
    # Heads that are not recommended alone may belong to a set that is: they are tried after those that are, unless
    # the selection images show that they do harm. With a given k the ranking is taken as it is.
    first = recommended if greedy or k == "auto" else []
    rest = [unit for unit in ranked.judged if unit not in first and (k != "auto" or not harmful(ranked.scores, unit))]
    curve, chosen = choose(model, validate, first, rest, k, candidates, max_cost, options, seed)
    before, after, controlled, missing = rivals(model, evaluate, select, chosen, controls, options, seed, progress)
    settings |= missing
    study = Study(
        scores=ranked.scores,
        true_positives=ranked.true_positives,
        ranking=tuple(unit.name for unit in ranked.order),
        recommended=tuple(unit.name for unit in recommended),
        chosen=tuple(unit.name for unit in chosen),
        curve=curve,
        evaluation=pl.DataFrame(comparison(before, after, seed=seed), infer_schema_length=None),
        controls=controlled,
        images=per_image(evaluate.images, before, after),
        masks=mask_facts,
        stability=stability(work, ranked) if sensitivity else {},
        settings=settings,
        provenance={**where, "timings": {"study": round(time.perf_counter() - started, 1)}},
        examples=example_pictures(model, evaluate.images, evaluate.masks.masks, fill, before, after),
    )
    if folder is not None:
        one_saves(folder, lambda: study.save(folder), MANIFEST)
    return study


def _mask_hash(masks: Masks) -> str:
    return files.checksum(np.packbits(masks.masks.cpu().numpy()).tobytes())[:16]


def _means_hash(means: Means) -> str:
    content = b"".join(means[site].float().cpu().numpy().tobytes() for site in sorted(means) if site.endswith("hook_z"))
    return files.checksum(content)[:16]
