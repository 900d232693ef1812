"""Rank models on data without labels, by where in the network their circuits draw from (Inside-Out; methods.md 4.2).

1. Each model's edges are scored on the same images (:mod:`circuits.comparison.graphs`).
2. DDB to the output, to the deep layers and to everything, each with an interval over images.
3. Beside it what is known without looking inside: average confidence, negative entropy, and, with labelled images of
   the kind that the models were trained on, their accuracy there and ATC.
4. Where accuracies on the images are known (labels, or numbers), the correlation of every score with them over the
   models: R squared, Spearman, Kendall, with intervals.

Only models of a similar recipe compare: DDB grows along training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from circuits.attribution.eap import Rule
from circuits.comparison.agreement import FEWEST, agreement
from circuits.comparison.baselines import answers, thresholded_confidence
from circuits.comparison.ddb import Preset, ddb
from circuits.comparison.depth import TARGETS, bands_of, layer_dependency
from circuits.comparison.graphs import means_for, scores_on, settings_of
from circuits.comparison.record import Comparison
from circuits.edges.graph import EdgeGraph
from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES, bootstrap

SCORES = ("ddb_out", "ddb_deep", "ddb_global", "id_accuracy", "confidence", "negative_entropy", "atc")
"""Columns of the table that are correlated with accuracy, as far as they are there."""


def compare_models(
    models: Mapping[str, Any] | Sequence[Any],
    images: Any,
    *,
    id_images: Any = None,
    accuracies: Mapping[str, float] | None = None,
    mean_images: Any = None,
    mean_share: float = 0.25,
    preset: Preset = "mechvis",
    steps: int | None = None,
    rule: Rule | None = None,
    tau: float = 0.3,
    bands: Any = None,
    per_source: bool = False,
    resamples: int = RESAMPLES,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Dependency depth bias of several models on one set of images, beside label-free baselines.

    Args:
        models: name -> wrapped model; or a list of wrapped models, named by their titles. Instead of a wrapped model,
            what `mechvis.load` takes, or a function without arguments that gives one: then one at a time is in memory.
        images: the images that the models are to be ranked on; 100 to 400. Labels are used for one thing only: if there
            are any, the true accuracy.
        id_images: labelled images of the kind that the models were trained on: gives `id_accuracy` and `atc`.
        accuracies: true accuracy per model, instead of what the labels give.
        mean_images: see :func:`circuits.comparison.graphs.data_graph`.
        mean_share: see there.
        preset: `inside-out` for the released settings: left rule, 5 steps, means of the images themselves, ratios
            without logarithm, uneven bands at 12 layers.
        steps: of the integration.
        rule: of the integration.
        tau: share of the layers in each band.
        bands: instead of tau, see :func:`circuits.comparison.ddb.ddb`.
        per_source: divide each band by its number of components; needed where models differ in architecture.
        resamples: of the intervals.
        budget: memory for activations.
        seed: of the share that means are made of, and of the bootstrap.
        progress: show a progress bar.

    Returns:
        A :class:`Comparison`; `table` has per score a column and its ends (`ddb_out`, `ddb_out_low`, `ddb_out_high`),
        `ddb_out_bias` (what noise does to it), `n`, and `accuracy` where it is known.

    Raises:
        BadData: no model, two of one name, accuracies of other models, `id_images` without labels, models of different
            architecture without `per_source`.
        OutOfRange: bands that the model does not have; an accuracy that is no share.
        UnsupportedModel, SplitOverlap, NotFinite, UnknownName.

    Example:
        >>> found = circuits.compare_models({"a": "runs/a", "b": "runs/b"}, images)                # doctest: +SKIP
        >>> found.table.sort("ddb_out", descending=True)                                           # doctest: +SKIP
    """
    named = _named(models)
    true = _checked(accuracies, named)
    if id_images is not None and getattr(id_images, "labels", None) is None:
        raise BadData("id_images give the accuracy at home, so they need labels; these have none.")
    shown, means = means_for(images, mean_images, mean_share, preset, seed)
    options = {"tau": tau, "bands": bands, "per_source": per_source, "preset": preset}
    rows, layers, facts, heads = [], {}, {}, {}
    with track(len(named), "models", " models", show=progress) as bar:
        for name, given in named.items():
            model = _ready(name, given)
            # What cannot be compared is said before minutes are spent on it.
            heads[name] = list(EdgeGraph.of(model).n_heads)
            bands_of(len(heads[name]), tau, bands, released=preset == "inside-out")
            _refuse_mixture(heads, per_source)
            scores = scores_on(model, shown, means, preset=preset, steps=steps, rule=rule, budget=budget)
            layers[f"layers/{name}"] = layer_dependency(scores).per_image
            row = {"model": name, "n": len(scores), **_baselines(model, images, id_images, resamples, seed)}
            if name in true:
                row = {key: value for key, value in row.items() if not key.startswith("accuracy")}
                row["accuracy"] = true[name]
            for targets in TARGETS:
                found = ddb(scores, targets=targets, resamples=resamples, seed=seed, **options)
                key = f"ddb_{targets}"
                row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high, f"{key}_bias": found.bias}
            rows.append(row)
            facts[name] = {"title": model.title, "fingerprint": model.fingerprint}
            bar.update(1)
    table = _ordered(pl.DataFrame(rows, infer_schema_length=None))
    steps, rule = settings_of(preset, steps, rule)
    settings = {
        "preset": preset,
        "steps": steps,
        "rule": rule,
        "tau": tau,
        "bands": bands,
        "per_source": per_source,
        "mean_images": len(means),
        "means": "own" if means is shown else "apart",
    }
    return Comparison(
        kind="models",
        title=f"{len(named)} models on {getattr(images, 'name', 'pixels')}",
        table=table,
        correlations=_correlations(table, resamples, seed),
        arrays=layers,
        provenance=provenance(
            images=images if hasattr(images, "fingerprint") else None,
            seed=seed,
            settings=settings,
            models=facts,
            n_heads=heads,
        ),
    )


def _named(models: Any) -> dict[str, Any]:
    if not isinstance(models, Mapping):
        names = [str(model) if isinstance(model, str | Path) else model.title or model.parts.family for model in models]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadData(f"two of the models are called {twice!r}; pass a dict, name -> model.")
        models = dict(zip(names, models, strict=True))
    if not models:
        raise BadData("there is no model to compare.")
    return dict(models)


def _checked(accuracies: Mapping[str, float] | None, named: Mapping[str, Any]) -> dict[str, float]:
    if accuracies is None:
        return {}
    if strange := sorted(set(accuracies) ^ set(named)):
        raise BadData(f"accuracies and models have different names; only one of the two has {strange[0]!r}.")
    for name, value in accuracies.items():
        if not 0 <= value <= 1:
            raise OutOfRange(f"the accuracy of {name!r} is {value}; it is a share between 0 and 1.")
    return {name: float(value) for name, value in accuracies.items()}


def _ready(name: str, given: Any) -> Any:
    """The model itself."""
    if isinstance(given, str | Path):
        from mechvis.models.load import load

        given = load(given)
    elif callable(given) and not hasattr(given, "parts") and not hasattr(given, "classifier"):
        given = given()
    if not hasattr(given, "parts"):
        raise BadData(
            f"{name!r} is a {type(given).__name__}, no wrapped classifier. Use mechvis.load(...); for CLIP "
            "clip.classifier(class_names)."
        )
    return given


def _refuse_mixture(heads: Mapping[str, list[int]], per_source: bool) -> None:
    first, *others = heads.items()
    for name, own in others:
        if own != first[1] and not per_source:
            raise BadData(
                f"{name!r} has {len(own)} layers with {sum(own)} heads in all, {first[0]!r} {len(first[1])} with "
                f"{sum(first[1])}: their bands hold different numbers of components. Pass per_source=True."
            )


def _baselines(model: Any, images: Any, id_images: Any, resamples: int, seed: int) -> dict[str, float]:
    """Means over images with their intervals."""
    found = answers(model, images)
    if id_images is not None:
        home = answers(model, id_images)
        found |= {"id_accuracy": home["accuracy"], "atc": thresholded_confidence(home, found)}
    row = {}
    for name, values in found.items():
        mean = bootstrap(values, resamples=resamples, seed=seed)
        row |= {name: mean.effect[0], f"{name}_low": mean.low[0], f"{name}_high": mean.high[0]}
    return {name: float(value) for name, value in row.items()}


def _ordered(table: pl.DataFrame) -> pl.DataFrame:
    """Scores first, then what is known of them; NaN becomes null."""
    first = ["model", *(name for name in (*SCORES, "accuracy") if name in table.columns), "n"]
    table = table.select(*first, *(name for name in table.columns if name not in first))
    return table.with_columns(pl.col(pl.Float64).fill_nan(None))


def _correlations(table: pl.DataFrame, resamples: int, seed: int) -> pl.DataFrame | None:
    if "accuracy" not in table.columns or table["accuracy"].drop_nulls().len() < FEWEST:
        return None
    scores = {name: table[name].to_numpy() for name in SCORES if name in table.columns}
    return agreement(scores, table["accuracy"].to_numpy(), resamples=resamples, seed=seed)
