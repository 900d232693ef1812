"""What can be read linearly at every layer, and how far that is evidence (methods.md 3.1, 3.2; faithfulness.md 2.5).

1. Features of all layers and token choices come from one pass over the data (:func:`probes.features.collect`).
2. Images are split into train, validation and test, stratified and seeded; no image is in two parts.
3. Per set of features, and per weight decay and rank: a probe for the task and one for a control task of equal capacity
   (:mod:`probes.linear.control`), on features standardised by the training rows.
4. The weight decay with the smallest validation loss is taken. The test images judge it: score with a bootstrap
   interval over images, selectivity as a paired difference, scores per group.
5. Beside it the online code length, the commonest class, and whatever baselines are given: raw pixels, the same model
   with random weights (:mod:`probes.linear.baselines`), probed in the same way.

A probe shows what is *available* at a layer, not what the model uses: pair it with :func:`probes.linear.erase`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from mechvis.errors import BadData, NotFinite, ShapeMismatch, SplitOverlap, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES
from probes.features import Features
from probes.linear.control import control_labels
from probes.linear.judge import kind_of
from probes.linear.losses import KINDS, Kind
from probes.linear.one_layer import Study
from probes.linear.record import LinearProbes
from probes.linear.split import FRACTIONS, Split, split_images
from probes.linear.words import CAVEATS, MEASURES, WORDS

WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1)
"""Tried where none are named (**X**); in units of the mean loss, on standardised features."""


def probe_layers(
    features: Features,
    *,
    target: str | np.ndarray | None = None,
    kind: Kind | None = None,
    split: Split | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    judge_on: Features | None = None,
    together: str | np.ndarray | None = None,
    types: str | np.ndarray | None = None,
    baselines: Mapping[str, Features | np.ndarray] | None = None,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    ranks: Sequence[int] = (),
    code: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> LinearProbes:
    """Probe every set of features for one target, with controls and baselines.

    Args:
        features: from :func:`probes.features.collect`.
        target: what to read: a column by name (default: the labels), or an array `[image]` (classes or numbers),
            `[image label]` of 0 and 1, or `[image column]` of numbers.
        kind: `classes`, `labels` or `numbers`; default: by the look of the target.
        split: which images train, choose and judge; default: a stratified one by `fractions` and `seed`.
        fractions: of train, validation and test.
        judge_on: other images to judge on instead of the test part (which then is left out), with the same features and
            the target as one of their columns.
        together: a group per image (or the name of a column) that is never cut by the split.
        types: a group per image (or the name of a column) for a second control: one random label per group.
        baselines: name -> features of the same images: another model's `Features` (matched by name), or a matrix
            `[image d]` such as :func:`probes.linear.pixel_features`. The name `random model` is drawn beside the task.
        weight_decays: to choose from by the validation loss; all are reported in the table `capacity`.
        ranks: besides the full probe, probes of these ranks, reported in `capacity`.
        code: compute online code lengths (classes only) on the training and validation images.
        resamples: of the bootstrap.
        seed: of split, controls, code and bootstrap.
        progress: show a progress bar.
        settings: of the probes, e.g. `solver="lbfgs"`, `device="cuda"`; see :class:`probes.linear.LinearProbe`.

    Returns:
        LinearProbes: `table` has one row per set of features.

    Raises:
        SplitOverlap: an image that trains and judges.
        BadData: nothing to tell apart, or several weight decays and no validation image.
        ShapeMismatch, NotFinite: a target that does not fit the images.
        UnknownName: no such column, kind or setting.

    Example:
        >>> features = collect(model, images, tokens=["cls", "mean"])                             # doctest: +SKIP
        >>> record = probe_layers(features, target="background", types="colour")                  # doctest: +SKIP
        >>> record.pick(features="blocks.1.hook_resid_post:cls")["selectivity"]                   # doctest: +SKIP
    """
    if not weight_decays or not len(features):
        raise BadData("probing needs at least one weight decay and one set of features.")
    asked = _target(features, target)
    kind = kind_of(asked) if kind is None else kind
    if kind not in KINDS:
        raise unknown("kind of probe", kind, KINDS)
    if judge_on is not None:
        _refuse_same_images(features, judge_on)
        if baselines:
            raise BadData(
                "baselines are judged on held-out images of the same set: leave judge_on= out, or baselines=."
            )
    split = _split(features, asked, split, fractions, judge_on, together, seed)
    if not len(split.validation) and len(weight_decays) > 1:
        raise BadData(
            f"{len(weight_decays)} weight decays and no validation image to choose by: give one weight decay, or a "
            "share for validation in fractions=(train, validation, test)."
        )
    elsewhere = None if judge_on is None else _target(judge_on, target if isinstance(target, str) else None)
    study = Study(features, kind, split, judge_on, resamples, seed, settings)
    tasks = {"task": (asked, elsewhere), "control": _control(asked, elsewhere, None, None, seed)}
    if types is not None:
        member = _column(features, types)
        there = None if judge_on is None else _column(judge_on, types if isinstance(types, str) else None)
        tasks["type_control"] = _control(asked, elsewhere, member, there, seed + 1)
    rows, capacity, groups, blocks, scores, arrays = [], [], [], [], [], {}
    with track(len(features), "probing", " sets", show=progress) as bar:
        for name in features:
            row, found = study.one(name, tasks, weight_decays, ranks, capacity)
            arrays |= {f"weights/{name}": found.probe.coef_, f"bias/{name}": found.probe.intercept_}
            scores.append(found.scores)
            groups += study.by_group(name, found.scores)
            if code and kind == "classes":
                for task, (wanted, _) in tasks.items():
                    row |= study.code(name, task, wanted, blocks)
            rows.append(row)
            bar.update(1)
    flat = study.baselines(baselines or {}, tasks["task"], weight_decays, rows, np.array(scores))
    tables = {
        "layers": pl.DataFrame(rows, infer_schema_length=None),
        "capacity": pl.DataFrame(capacity, infer_schema_length=None),
        "baselines": pl.DataFrame(flat, infer_schema_length=None, schema_overrides={"features": pl.String}),
    }
    if groups:
        tables["groups"] = pl.DataFrame(groups)
    if blocks:
        tables["code"] = pl.DataFrame(blocks)
    facts = {
        "kind": kind,
        "measure": MEASURES[kind],
        "target": target if isinstance(target, str) else "label" if target is None else "given",
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(study.places),
        "seed": seed,
        "settings": {name: str(value) for name, value in settings.items()},
        "not_converged": [row["features"] for row in rows if not row["converged"]],
    }
    if kind == "classes":
        facts["classes"] = np.unique(np.asarray(asked)[split.train]).tolist()
    facts["flat"] = kind == "numbers" and np.asarray(asked).ndim == 1
    arrays |= {"scores": np.array(scores), "test": split.test, "train": split.train, "validation": split.validation}
    known = {**features.provenance}
    return LinearProbes(
        title=f"Linear probes of {len(rows)} sets of features for {facts['target']}",
        tables=tables,
        arrays=arrays,
        facts=facts,
        words=WORDS,
        caveats=CAVEATS,
        provenance={
            **provenance(seed=seed),
            **{key: known[key] for key in ("model", "data", "features") if key in known},
        },
    )


def _target(features: Features, target: str | np.ndarray | None) -> np.ndarray:
    found = np.asarray(features.target(target) if target is None or isinstance(target, str) else target)
    if len(found) != features.n_images:
        raise ShapeMismatch(f"{features.n_images} images and {len(found)} targets: one per image is needed.")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise NotFinite(f"the target holds NaN or Inf, first at image {int(np.argwhere(~np.isfinite(found))[0][0])}.")
    return found


def _column(features: Features, column: str | np.ndarray | None) -> np.ndarray:
    if column is None:
        raise BadData("with judge_on=, types= is the name of a column that both sets have.")
    found = np.asarray(features.target(column) if isinstance(column, str) else column)
    if found.shape != (features.n_images,):
        raise ShapeMismatch(f"{features.n_images} images and groups of the shape {list(found.shape)}: one per image.")
    return found


def _split(features, target, split, fractions, judge_on, together, seed) -> Split:
    if split is None:
        if judge_on is not None:
            fractions = (fractions[0] + fractions[2], fractions[1], 0.0)
        groups = None if together is None else _column(features, together)
        split = split_images(target, fractions, seed=seed, together=groups)
    split.within(features.n_images)
    if (judge_on is None) == (not len(split.test)):
        raise BadData(
            "nobody judges: the test part is empty, and there is no judge_on="
            if judge_on is None
            else "both a test part and judge_on= judge: give a split without test part, or leave one of them out."
        )
    return split


def _refuse_same_images(features: Features, judge_on: Features) -> None:
    """Two images are the same if their ids and their features are equal: two folders may both number their files."""
    if missing := [name for name in features if name not in judge_on]:
        raise BadData(f"judge_on= lacks the features {missing[0]!r}: collect the same sites and tokens for both.")
    first, places = next(iter(features)), {image: at for at, image in enumerate(judge_on.ids)}
    mine, theirs = (of[first].reshape(of.n_images, -1) for of in (features, judge_on))
    pairs = [(image, at, places[image]) for at, image in enumerate(features.ids) if image in places]
    shared = [image for image, at, there in pairs if np.array_equal(mine[at], theirs[there])]
    if shared:
        raise SplitOverlap(
            f"{len(shared)} images train the probes and judge them ({shared[0]}). Give judge_on= other images, or "
            "leave it out: then a part of the first is held out."
        )


def _control(target, elsewhere, member, there, seed) -> tuple[np.ndarray, np.ndarray | None]:
    """A control task for the images, and with the same labels per type for those it is judged on."""
    if elsewhere is None:
        return control_labels(target, member, seed=seed), None
    both = np.concatenate([target, elsewhere])
    types = None if member is None else np.concatenate([member, there])
    drawn = control_labels(both, types, seed=seed)
    return drawn[: len(target)], drawn[len(target) :]
