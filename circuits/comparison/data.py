"""Watch one model over data without labels: does its circuit move further than chance? (Inside-Out; methods.md 4.3)

1. Edges are scored on the reference images and on each other set (:mod:`circuits.comparison.graphs`).
2. The noise floor: distances between disjoint random halves of the reference images, at each window size.
3. The circuit shift score of each set, at the floor's number of images, and its p-value against the floor.
4. Beside it average confidence, negative entropy, ATC; and where labels are known the accuracy, and over the sets the
   correlation of every score with it.

`mean_from`: what a cut edge carries must come from one source on both sides. `"reference"` (**X**, default): means of
reference images, the same for all sets; every image is scored once. `"own"`: each set's own means, as in the released
code (**C**); then every draw of the floor is measured anew with its own means, which costs twice `draws` times a set.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from circuits.attribution.eap import Rule
from circuits.comparison.agreement import FEWEST, agreement
from circuits.comparison.alarm import Alarm
from circuits.comparison.baselines import answers, thresholded_confidence
from circuits.comparison.css import CircuitShift, shift_of
from circuits.comparison.ddb import Preset
from circuits.comparison.distances import Distance
from circuits.comparison.floor import FEWEST_DRAWS, noise_floor
from circuits.comparison.graphs import means_for, own_means, scores_on, settings_of
from circuits.comparison.record import Comparison
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES, bootstrap

MeanFrom = Literal["reference", "own"]
SCORES = ("css", "matched", "confidence", "negative_entropy", "atc")
"""Columns of the table that are correlated with accuracy."""


def compare_data(
    model: Any,
    reference: Any,
    others: Mapping[str, Any],
    *,
    distance: Distance = "spearman",
    top_mass: float = 0.95,
    mean_from: MeanFrom = "reference",
    mean_images: Any = None,
    mean_share: float = 0.25,
    preset: Preset = "mechvis",
    steps: int | None = None,
    rule: Rule | None = None,
    window: int | None = None,
    draws: int | None = None,
    threshold: Alarm | float | None = None,
    resamples: int = RESAMPLES,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Comparison:
    """Circuit shift scores of several sets of images against a reference set, with the noise floor.

    Args:
        model: a wrapped model with a head.
        reference: images as the model knows them; after the share for the means, at least twice as many as `window`.
        others: name -> images. Labels are used for the accuracy only.
        distance: see :mod:`circuits.comparison.distances`.
        top_mass: share of the absolute mass that the compared edges carry; 1 for all edges.
        mean_from: whose means cut edges carry, see the module.
        mean_images: images of the means, for `mean_from="reference"`; default: a random share of `reference`, which
            then is not scored.
        mean_share: that share.
        preset: `inside-out` for the released left rule with 5 steps (and `mean_from="own"` for its means).
        steps: of the integration.
        rule: of the integration.
        window: images a side in the draws; default: as many as each set has, at most half of the scored reference.
        draws: of the noise floor, at least 20; default 200, with `mean_from="own"` 20.
        threshold: an :class:`Alarm` (from `circuits.comparison.alarm_threshold`), or a shift: alarm above it, besides
            the floor.
        resamples: of the intervals of the baselines and correlations.
        budget: memory for activations.
        seed: of the share for the means, of the draws, of the bootstrap.
        progress: show a progress bar.
        allow_overlap: accept sets that share images with the reference.

    Returns:
        A :class:`Comparison`; `table` has one row per set, the reference first: `css` (all images), `matched` with
        `low` and `high` over the draws, `n`, `floor` and `floor_99`, `p`, `alarm`, and the baselines.

    Raises:
        BadData: no other set, too few images, means without sense, an alarm that was set at another number of images.
        SplitOverlap: a set shares images with the reference, or means with what is measured.
        UnknownName, OutOfRange, UnsupportedModel, NotFinite.

    Example:
        >>> found = circuits.compare_data(model, known, {"monday": monday, "tuesday": tuesday})    # doctest: +SKIP
        >>> found.table.filter(pl.col("alarm"))                                                    # doctest: +SKIP
    """
    if mean_from not in ("reference", "own"):
        raise unknown("source of means", mean_from, ("reference", "own"))
    own = mean_from == "own"
    if own and mean_images is not None:
        raise BadData(
            "mean_from='own' makes means of each set itself; leave mean_images out, or mean_from='reference'."
        )
    if not others or "reference" in others:
        raise BadData("pass at least one other set to compare with the reference, under another name than 'reference'.")
    draws = draws if draws is not None else FEWEST_DRAWS if own else 200
    if draws < FEWEST_DRAWS:
        raise OutOfRange(f"draws={draws}: a noise floor needs at least {FEWEST_DRAWS}.")
    if not allow_overlap:
        for name, other in others.items():
            if isinstance(reference, ImageSet) and isinstance(other, ImageSet):
                refuse_overlap(reference, other, what=f"the reference and {name!r}")
    measure = {"preset": preset, "steps": steps, "rule": rule, "budget": budget}
    compared = {"kind": distance, "top_mass": top_mass}
    shown, means = (reference, None) if own else means_for(reference, mean_images, mean_share, "mechvis", seed)
    known = {"reference": answers(model, reference)} | {name: answers(model, images) for name, images in others.items()}
    floors: dict[int, Any] = {}
    found: dict[str, CircuitShift] = {}
    weights = {}
    with track(len(others) + 1, "data sets", " sets", show=progress) as bar:
        weigh, whole = _weighed(model, shown, means, measure)
        weights["reference"] = whole
        bar.update(1)
        for name, images in others.items():
            n = window or min(len(images), len(shown) // 2)
            if isinstance(threshold, Alarm) and threshold.n != n:
                raise BadData(
                    f"the alarm was set at {threshold.n} images a side, and {name!r} is compared at {n}: shifts fall "
                    f"with the number of images. Pass window={threshold.n}, or set the alarm at {n}."
                )
            if n not in floors:
                floors[n] = noise_floor(weigh, len(shown), n, draws=draws, seed=seed, **compared)
            other, weights[name] = _weighed(model, images, means, measure)
            found[name] = shift_of(whole, weights[name], other, len(images), *floors[n], n, seed=seed, **compared)
            bar.update(1)
    limit = threshold.threshold if isinstance(threshold, Alarm) else threshold
    table = _table(found, floors, known, limit, resamples, seed)
    steps, rule = settings_of(preset, steps, rule)
    settings = {
        "distance": distance,
        "top_mass": top_mass,
        "mean_from": mean_from,
        "mean_images": None if means is None else len(means),
        "preset": preset,
        "steps": steps,
        "rule": rule,
        "draws": draws,
        "threshold": limit,
    }
    arrays = {f"weights/{name}": value for name, value in weights.items()}
    arrays |= {f"floor/{n}": floor for n, (floor, _) in floors.items()}
    arrays |= {f"shift/{name}": shift.draws for name, shift in found.items()}
    return Comparison(
        kind="data",
        title=f"{len(others)} data sets against {getattr(reference, 'name', 'pixels')}",
        table=table,
        correlations=_correlations(table, resamples, seed),
        arrays=arrays,
        provenance=provenance(
            model=model, images=reference if isinstance(reference, ImageSet) else None, seed=seed, settings=settings
        ),
    )


def _weighed(model: Any, images: Any, means: Any, measure: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
    """Weights of the edges as a function of the images, and those of all images."""
    if means is None:
        weigh = own_means(model, images, **measure)
        return weigh, weigh(np.arange(len(images)))
    scores = scores_on(model, images, means, **measure)
    return scores.of, scores.weights


def _table(
    found: Mapping[str, CircuitShift],
    floors: Mapping[int, Any],
    known: Mapping[str, Any],
    threshold: float | None,
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    floor, _ = floors[max(floors)]
    rows = [
        {"set": "reference", "role": "reference", "css": 0.0, "matched": float(floor.mean()), "n": max(floors)}
        | {"low": float(np.quantile(floor, 0.025)), "high": float(np.quantile(floor, 0.975))}
        | {"floor": float(floor.mean()), "floor_99": float(np.quantile(floor, 0.99)), "p": None, "alarm": False}
    ]
    for name, shift in found.items():
        limit = shift.limit if threshold is None else max(shift.limit, threshold)
        rows.append(
            {"set": name, "role": "other", "css": shift.value, "matched": shift.matched, "n": shift.n}
            | {"low": shift.low, "high": shift.high, "floor": shift.floor_mean, "floor_99": shift.limit}
            | {"p": shift.p, "alarm": bool(shift.matched > limit)}
        )
    for row in rows:
        row |= {"images": len(known[row["set"]]["confidence"])}
        values = dict(known[row["set"]])
        if "accuracy" in known["reference"]:
            values["atc"] = thresholded_confidence(known["reference"], values)
        for name, per_image in values.items():
            mean = bootstrap(per_image, resamples=resamples, seed=seed)
            row |= {name: float(mean.effect[0]), f"{name}_low": float(mean.low[0]), f"{name}_high": float(mean.high[0])}
    table = pl.DataFrame(rows, infer_schema_length=None)
    first = ["set", "role", "css", "matched", "low", "high", "n", "floor", "floor_99", "p", "alarm"]
    first += [name for name in ("accuracy", "confidence", "negative_entropy", "atc") if name in table.columns]
    table = table.select(*first, *(name for name in table.columns if name not in first))
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def _correlations(table: pl.DataFrame, resamples: int, seed: int) -> pl.DataFrame | None:
    """Over the other sets; the reference is at distance 0 from itself by definition."""
    if "accuracy" not in table.columns:
        return None
    sets = table.filter((pl.col("role") == "other") & pl.col("accuracy").is_not_null())
    if sets.height < FEWEST:
        return None
    scores = {name: sets[name].to_numpy() for name in SCORES if name in sets.columns}
    return agreement(scores, sets["accuracy"].to_numpy(), resamples=resamples, seed=seed)
