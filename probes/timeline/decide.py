"""When does a model decide? The decision timeline of images ("When do models actually decide?", methods.md 3.1).

1. Features of all anchors from one pass; a linear probe per anchor on training images (:mod:`probes.timeline.running`).
2. On held-out images: the running prediction, `l*(k)` and `settle` of every image (:mod:`probes.timeline.settle`),
   their shares by depth (:mod:`probes.timeline.depth`), the same for each group of images, and the groups compared.
3. What the running prediction follows: the share of images at each anchor whose prediction is some other class than the
   label, e.g. the one that the background suggests (`follow=`).
4. A sweep of the window, shuffled anchors as a control, accuracy against compute when images leave early, and how far
   decisions move under mild corruption.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.labels import with_model_classes
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES
from mechvis.store.forward import reader
from probes.features import Features, collect
from probes.linear.layers import WEIGHT_DECAYS
from probes.linear.split import FRACTIONS, split_images
from probes.timeline.depth import SWEEP, groups_apart, shuffled_anchors, sweep_of, table_of
from probes.timeline.early_exit import CONFIDENCES, anchor_cost, exit_curve
from probes.timeline.record import CAVEATS, WORDS, Timeline
from probes.timeline.running import fit_running, sites_of
from probes.timeline.settle import decision_layer, settle, settle_conf
from probes.timeline.tables import anchor_lines, corruption_lines, following_lines, group_lines, image_lines, only


def decision_timeline(
    model: Any,
    images: ImageSet,
    *,
    anchors: str | Sequence[str] = "resid_post",
    tokens: str = "read",
    target: str | np.ndarray | None = None,
    train: ImageSet | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    k: int = 2,
    ks: tuple[int, ...] = SWEEP,
    settle_p: float = 0.9,
    follow: Mapping[str, np.ndarray] | None = None,
    corruptions: Sequence[tuple[str, int]] = (),
    confidences: tuple[float, ...] = CONFIDENCES,
    cost: Literal["flops", "seconds"] = "flops",
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    draws: int = 2000,
    resamples: int = RESAMPLES,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Timeline:
    """The decision timeline of a model on images, by group.

    Args:
        model: a wrapped image tower.
        images: labelled (unless `target` says otherwise).
        anchors: `resid_post`, `half`, or sites (see :mod:`probes.timeline.running`).
        tokens: what a probe reads of each anchor: `read` (default: what the model reads), `cls`, `mean`, `cls+mean`.
        target: what the probes are trained for: the labels (default), `predicted` for the model's own answer, a column
            of classes by name, or class numbers per image (with `train`: of the images that are judged; a column then).
        train: other images that train the probes; then all of `images` are judged. Default: a part of `images`.
        fractions: of train, validation and test; with `train=` the first two are shares of it.
        k: window of `l*`: so many anchors after it must agree.
        ks: windows of the sweep.
        settle_p: least probability of `settle_conf`.
        follow: name -> class number per image of `images`: shares of running predictions that equal it.
        corruptions: pairs such as `("noise", 1)`, see :func:`probes.timeline.mildly_corrupted`.
        confidences: of the exit rules.
        cost: how compute is counted.
        weight_decays: of the probes, chosen per anchor by the validation loss.
        draws: of the dip test.
        resamples: of the bootstrap.
        budget: memory for a forward pass.
        seed: of split, dip test, bootstrap, noise.
        progress: show progress bars.
        settings: of the probes, e.g. the paper's `solver="sgd", weight_decays=(1e-4,)` for large sets.

    Returns:
        Timeline: `table` has one row per group.

    Raises:
        SplitOverlap: images that train probes and are judged.
        BadData: no labels, one anchor, or features with several rows per image.
        UnknownName, UnknownSite, OutOfRange, ShapeMismatch: a setting without sense.

    Example:
        >>> found = decision_timeline(model, images, anchors="half", follow={"partner": partner})  # doctest: +SKIP
        >>> found.group("conflicting")["mean_settle"]                                              # doctest: +SKIP
    """
    sites = sites_of(model, anchors)
    if not 1 <= k < len(sites):
        raise OutOfRange(f"k={k}: with {len(sites)} anchors a window can be 1 to {len(sites) - 1}.")
    if train is not None:
        refuse_overlap(train, images, what="images that train the probes and images that are judged")
    # Labels as the model counts its classes; a model without a head counts nothing.
    if model.parts.head is not None and images.labels is not None:
        images = with_model_classes(images, model)
        train = None if train is None else with_model_classes(train, model)
    shared = {"tokens": tokens, "budget": budget, "progress": progress}
    features = collect(model, images, _with_output(model, sites), **shared)
    fitted = features if train is None else collect(model, train, _with_output(model, sites), **shared)
    answers = _answers(features)
    wanted, learnt, names = _targets(target, images, train, answers, _answers(fitted))
    shares = fractions if train is None else (fractions[0] + fractions[2], fractions[1], 0.0)
    split = split_images(learnt, shares, seed=seed)
    test = split.test if train is None else np.arange(len(images))
    if not len(test):
        raise BadData("nobody is judged: the test part is empty.")
    running = fit_running(
        only(fitted, sites),
        learnt,
        split,
        n_classes=len(names),
        weight_decays=weight_decays,
        progress=progress,
        **settings,
    )
    probability = running.probability(features, test)
    predictions = probability.argmax(-1)
    labels = wanted[test]
    groups = {"all": np.ones(len(test), bool)}
    if images.groups is not None:
        groups |= {str(name): images.groups[test] == name for name in np.unique(images.groups)}
    more = {"resamples": resamples, "seed": seed}
    rows_of_all = (predictions, probability, labels, groups)
    tables = {
        "groups": group_lines(*rows_of_all, k=k, settle_p=settle_p, draws=draws, more=more),
        "anchors": anchor_lines(*rows_of_all, running, sites, k=k, more=more),
    }
    tables["k_sweep"] = table_of(
        [{"group": name, **row} for name, where in groups.items() for row in sweep_of(predictions[where], ks, **more)]
    )
    if len(groups) > 2:
        member = images.groups[test]
        measures = {"decision": decision_layer(predictions, k), "settle": settle(predictions)}
        rows = [{"measure": word, **row} for word, at in measures.items() for row in groups_apart(at, member, **more)]
        tables["between"] = table_of(rows)
    if follow:
        tables["following"] = following_lines(predictions, follow, groups, n=len(images), test=test, more=more)
    first = reader(model, images)(test[:1]).to(model.device, model.dtype)
    width = max(rows.shape[1] for rows in only(features, sites).values())
    spent = anchor_cost(model, first, sites, classes=len(names), width=width, unit=cost)
    confidence = probability.max(-1)
    tables["exit"] = table_of(exit_curve(predictions, confidence, labels, spent, k=k, confidences=confidences, **more))
    if corruptions:
        tables["corruption"] = corruption_lines(
            model, images[test], corruptions, running, predictions, labels, sites, k=k, seed=seed, more=more, **shared
        )
    sure = settle_conf(predictions, probability, settle_p)
    ids, member = [images.ids[i] for i in test], None if images.groups is None else images.groups[test]
    tables["images"] = image_lines(ids, member, labels, predictions, sure, k=k)
    learner = None if train is None else train.name
    facts = {
        "anchors": sites,
        "tokens": tokens,
        "k": k,
        "settle_p": settle_p,
        "target": target if isinstance(target, str) else "label" if target is None else "given",
        "classes": list(names),
        "cost": cost,
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(test),
        "seed": seed,
        "weight_decays": list(running.weight_decays),
        "shuffled": shuffled_anchors(predictions, k=k, seed=seed),
    }
    if answers is not None:
        facts["last_probe_equals_model"] = float((predictions[:, -1] == answers[test]).mean())
    return Timeline(
        title=f"Decision timeline of {len(test)} images over {len(sites)} anchors ({tokens}, k = {k})",
        tables=tables,
        arrays={
            "predictions": predictions, "confidence": confidence, "probability": probability.astype(np.float32),
            "cost": spent, "test": test,
        },
        facts=facts,
        words=WORDS,
        caveats=CAVEATS,
        provenance=provenance(model=model, images=images, seed=seed, probes={"train": learner}),
    )  # fmt: skip


def _with_output(model: Any, sites: list[str]) -> list[str]:
    return [*sites, *(["hook_logits"] if model.parts.head is not None and "hook_logits" not in sites else [])]


def _answers(features: Features) -> np.ndarray | None:
    """The model's own classes, if it has a head."""
    return features["hook_logits"].argmax(1) if "hook_logits" in features else None


def _targets(
    target: str | np.ndarray | None,
    images: ImageSet,
    train: ImageSet | None,
    answers: np.ndarray | None,
    train_answers: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, list]:
    """Class numbers of the judged and of the training images, and the name of each number."""
    learner = images if train is None else train
    if target is None or (isinstance(target, str) and target == "label"):
        if images.labels is None or learner.labels is None:
            raise BadData(
                "the images have no labels. Give class folders or a table with labels, or target='predicted'."
            )
        count = max(int(images.labels.max()), int(learner.labels.max())) + 1
        return images.labels, learner.labels, list(images.class_names) or list(range(count))
    if isinstance(target, str) and target == "predicted":
        if answers is None or train_answers is None:
            raise BadData("target='predicted' is the model's own answer, and this model has no head.")
        count = int(max(answers.max(), train_answers.max())) + 1
        return (
            answers,
            train_answers,
            list(images.class_names) if len(images.class_names) >= count else list(range(count)),
        )
    if isinstance(target, str):
        for of in (images, learner):
            if target not in of.columns:
                raise unknown("column", target, ["label", "predicted", *of.columns])
        mine, theirs = np.asarray(images.columns[target]), np.asarray(learner.columns[target])
        names = np.unique(np.concatenate([mine, theirs]))
        return np.searchsorted(names, mine), np.searchsorted(names, theirs), names.tolist()
    given = np.asarray(target)
    if train is not None:
        raise BadData(
            "with train=, target= is the name of a column that both sets have: an array is about one of them."
        )
    if given.shape != (len(images),) or given.dtype.kind not in "iu" or given.min() < 0:
        raise ShapeMismatch(
            f"target= is one class number per image ({len(images)}), got {given.dtype} {list(given.shape)}."
        )
    return given, given, list(range(int(given.max()) + 1))


def partner_of_background(images: ImageSet) -> np.ndarray:
    """For the bundled scenes: the shape that goes with each image's background, as a class number.

    Raises:
        BadData: images that are no scenes.

    Example:
        >>> import mechvis
        >>> images = mechvis.data.scenes(4, group="consistent")
        >>> bool((partner_of_background(images) == images.labels).all())
        True
    """
    from mechvis.data.scene_factors import BACKGROUNDS

    column = images.columns.get("background")
    if column is None or not np.isin(column, BACKGROUNDS).all():
        raise BadData(f"{images.name!r} has no column of the scenes' backgrounds ({', '.join(BACKGROUNDS[:3])} ...).")
    return np.array([BACKGROUNDS.index(name) for name in column])
