"""Which concept does every unit detect, and how sure is that: labels with held-out scores and controls.

1. Activations of all units over all images, and presence of all concepts.
2. On one half of the images a method chooses each unit's concept.
3. On the other half the unit and its concept are correlated (or any other measure), with an interval over images.
4. Controls, through the same steps: concepts shuffled over images (what the procedure finds where there is nothing: the
   best of many concepts on one half, judged on the other), and the label with another unit.

A detector is a unit whose interval lies above the 95 % quantile of the shuffled control. A label is a name for what
goes with the unit's activation; what the unit does is another question (`probes.unit_labels.output_side`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import stdtr

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES, benjamini_hochberg
from probes.unit_labels.choose import CHOICES, Chosen, choose
from probes.unit_labels.concepts import Concepts, concept_masks, concepts_of
from probes.unit_labels.measures import MEASURES
from probes.unit_labels.panels import pick_images
from probes.unit_labels.record import WORDS, UnitLabels
from probes.unit_labels.units import Activations, Reduce, activations, unit_maps

TOPS = {"soft_wpmi": 100, "wpmi": 28}
"""Top images of the methods that take some; never more than half of the images to choose on."""


def label_units(
    model: Any,
    images: Any,
    concepts: Concepts | None = None,
    *,
    sites: str | Sequence[str] = "blocks.*.mlp.hook_post",
    reduce: Reduce,
    units: Sequence[int] | None = None,
    dictionary: Any = None,
    truth: Concepts | None = None,
    method: str = "soft_wpmi",
    measure: str = "pearson",
    settings: dict[str, Any] | None = None,
    shuffles: int = 5,
    shown: int = 6,
    seed: int = 0,
    progress: bool = True,
) -> UnitLabels:
    """Label units and judge the labels on images that the choice did not see.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`; half to choose labels on, half to judge them.
        concepts: of these images, from `concepts_of` or `concepts_from_texts`; None: labels and columns of words.
        sites: which units, see :func:`probes.unit_labels.units.activations`.
        reduce: how tokens become one number: `max`, `mean`, `cls`, `none`.
        units: which units of every site; None: all.
        dictionary: an encoder whose latents are the units.
        truth: presences with the same names to judge by, where `concepts` are a model's cosines; None: `concepts`.
        method: how labels are chosen: one concept by `soft_wpmi`, `wpmi`, `rank_reorder`, `cosine`, `cosine_cubed`,
            `correlation` (the largest Pearson correlation) or `network_dissection` (IoU with the images' masks); a
            weighted sum by `linear`; a logical combination by `logical`.
        measure: how labels are judged, by name (`probes.unit_labels.measures`); Pearson over the full set by default.
        settings: of the method; `top` of soft_wpmi is made smaller where there are fewer images.
        shuffles: shuffled runs of the whole procedure.
        shown: units whose images are kept for figures, best first.
        seed: of the halves, shuffles and bootstrap.
        progress: show a progress bar.

    Returns:
        UnitLabels: one row per unit.

    Raises:
        UnknownName: no such method or measure.
        ShapeMismatch: concepts of other images, or a truth with other names.
        BadData: fewer than 8 images.
        OutOfRange: no shuffle.

    Example:
        >>> found = label_units(mechvis.load("scenes-vit"), images, reduce="max")           # doctest: +SKIP
        >>> found.detectors("background").head(3)                                           # doctest: +SKIP
    """
    if not hasattr(images, "pixels_for"):
        raise BadData(f"labels need an ImageSet (images with names), got {type(images).__name__}.")
    concepts = concepts_of(images) if concepts is None else concepts
    _check(images, concepts, truth, method, measure, shuffles)
    found = activations(
        model, images, sites, reduce=reduce, units=units, dictionary=dictionary, progress=progress
    )  # fmt: skip
    judge = concepts if truth is None else truth
    order = np.random.default_rng(seed).permutation(len(images))
    select, held = np.sort(order[: len(images) // 2]), np.sort(order[len(images) // 2 :])
    options = dict(settings or {})
    if method in TOPS:
        options["top"] = min(options.get("top", TOPS[method]), len(select) // 2)
    where = _where(model, images, concepts, found, dictionary) if method == "network_dissection" else None

    def procedure(shift: np.ndarray) -> tuple[Chosen, np.ndarray]:
        """Labels, and what they say of the held-out images, with the concepts of images `shift`."""
        more = {} if where is None else where(select, shift[select])
        chosen = choose(method, found.values[select], concepts.presence[shift[select]], concepts, **options, **more)
        return chosen, chosen.predict(judge.presence[shift[held]])

    chosen, presence = procedure(np.arange(len(images)))
    held_out = measured(measure, found.values[held], presence)
    generator = np.random.default_rng(seed + 1)
    null = np.concatenate(
        [
            measured(measure, found.values[held], procedure(generator.permutation(len(images)))[1])
            for _ in range(shuffles)
        ]
    )
    limit = float(np.nanquantile(null, 0.95)) if np.isfinite(null).any() else float("nan")
    low, high = _interval(measure, found.values[held], presence, seed)
    n_units = len(found.units)
    others = (np.arange(n_units) + 1 + generator.integers(0, max(n_units - 1, 1), n_units)) % n_units
    random_unit = measured(measure, found.values[held][:, others], presence)
    p = _p(held_out, len(held)) if measure in ("pearson", "spearman") else np.full(n_units, np.nan)
    table = pl.DataFrame(
        {
            "unit": found.units,
            "label": chosen.labels,
            "source": chosen.sources,
            "score": chosen.scores,
            "held_out": held_out,
            "low": low,
            "high": high,
            "p": p,
            "q": benjamini_hochberg(p),
            "random_unit": random_unit,
            "detector": np.nan_to_num(low, nan=-np.inf) > limit,
            "n": np.full(n_units, len(held)),
        }
    ).with_columns(pl.col(pl.Float64).fill_nan(None))
    kept = [found.units[i] for i in np.argsort(-np.nan_to_num(held_out, nan=-np.inf))[:shown]]
    picked = [pick_images(column, seed=seed) for column in found.values.T]
    arrays = {"top": np.stack([one.top for one in picked])}
    for place, unit in enumerate(kept):
        arrays |= _panel(model, images, found, found.units.index(unit), dictionary, place, seed)
    return UnitLabels(
        title=f"Labels of {n_units} units by {method}",
        tables={"units": table, "sources": _by_source(table)},
        arrays=arrays,
        facts={
            "method": method,
            "measure": measure,
            "reduce": reduce,
            "concepts": len(concepts),
            "judged_by": "labels" if judge.kind == "labels" else judge.kind,
            "shuffled_95": limit,
            "shuffled_mean": float(np.nanmean(null)) if np.isfinite(null).any() else float("nan"),
            "shown": kept,
            "settings": options,
        }
        if np.isfinite(limit)
        else _undefined(measure),
        words=WORDS,
        caveats=(
            f"Chosen on {len(select)} images, judged on {len(held)} others; both are of one kind, and say nothing "
            "about images of another kind.",
            "A label says what goes with a unit's activation, not what the unit does.",
            *(
                ("Concepts are a model's cosines with texts: its mistakes are in the labels.",)
                if concepts.kind == "cosine"
                else ()
            ),
        ),
        provenance=provenance(
            model=model, images=images, seed=seed, sites=list(dict.fromkeys(s for s, _ in found.places))
        ),
    )


def measured(
    measure: str, values: Float[np.ndarray, "image unit"], presence: Float[np.ndarray, "image unit"]
) -> Float[np.ndarray, " unit"]:
    """A measure of every unit with its own concept; column by column, Pearson for all at once."""
    if measure == "pearson":
        a, c = values - values.mean(0, dtype=np.float64), presence - presence.mean(0)
        length = np.sqrt((a**2).sum(0) * (c**2).sum(0))
        return np.where(length > 0, (a * c).sum(0) / np.where(length > 0, length, 1), np.nan)
    function = MEASURES[measure]
    columns = zip(values.T.astype(np.float64), presence.T.astype(np.float64), strict=True)
    return np.array([function(a, c) for a, c in columns])


def _interval(
    measure: str, values: np.ndarray, presence: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap over images, the same resamples for all units. Pearson from moments, all units at once;
    other measures by 200 resamples each."""
    generator = np.random.default_rng(seed)
    n = len(values)
    if measure == "pearson":
        rows = generator.integers(0, n, (resamples, n))
        weights = np.stack([np.bincount(row, minlength=n) for row in rows]).astype(np.float64) / n
        a, c = values - values.mean(0, dtype=np.float64), presence - presence.mean(0)
        first, second = weights @ a, weights @ c
        both = weights @ (a * c) - first * second
        spread = np.sqrt(np.maximum((weights @ a**2 - first**2) * (weights @ c**2 - second**2), 0))
        draws = np.where(spread > 1e-15, both / np.where(spread > 1e-15, spread, 1), np.nan)
    else:
        rows = generator.integers(0, n, (min(resamples, 200), n))
        draws = np.stack([measured(measure, values[row], presence[row]) for row in rows])
    enough = np.isfinite(draws).mean(0) >= 0.95
    ends = np.full((2, values.shape[1]), np.nan)
    if enough.any():
        ends[:, enough] = np.nanquantile(draws[:, enough], [0.025, 0.975], axis=0)
    return ends[0], ends[1]


def _where(model: Any, images: Any, concepts: Concepts, found: Activations, dictionary: Any) -> Callable[..., dict]:
    """Maps of the units and masks of the concepts, for images to choose on and the images whose masks they get."""
    masks = concept_masks(images, concepts, model.preprocess)
    maps = unit_maps(model, images, found.places, dictionary=dictionary)
    return lambda select, shifted: {"maps": maps[select], "masks": lambda part: masks(shifted[part])}


def _p(r: np.ndarray, n: int) -> np.ndarray:
    """Two-sided p of a correlation by Student's t."""
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.abs(r) * np.sqrt((n - 2) / np.maximum(1 - r**2, 1e-300))
    return np.where(np.isfinite(r), 2 * stdtr(n - 2.0, -t), np.nan)


def _by_source(table: pl.DataFrame) -> pl.DataFrame:
    """How many units and detectors each source has."""
    return (
        table.group_by("source")
        .agg(
            pl.len().alias("units"),
            pl.col("detector").sum().alias("detectors"),
            pl.col("held_out").max().alias("best"),
            pl.col("label").n_unique().alias("labels"),
        )
        .sort("detectors", descending=True)
    )


def _panel(
    model: Any, images: Any, found: Activations, unit: int, dictionary: Any, place: int, seed: int
) -> dict[str, np.ndarray]:
    """Images, values and maps of one unit, as arrays of the record."""
    picked = pick_images(found.values[:, unit], seed=seed)
    arrays = {}
    for name, rows in (("top", picked.top), ("ranged", picked.ranged)):
        chosen = images[rows]
        pixels = model.preprocess.unnormalise(chosen.pixels_for(model.preprocess))
        drawn = (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        arrays[f"panel{place}/{name}/images"] = drawn
        arrays[f"panel{place}/{name}/values"] = found.values[rows, unit]
        if found.reduce in ("max", "mean"):
            maps = unit_maps(model, chosen, [found.places[unit]], dictionary=dictionary)
            arrays[f"panel{place}/{name}/maps"] = maps[:, 0]
    return arrays


def _check(images: Any, concepts: Concepts, truth: Concepts | None, method: str, measure: str, shuffles: int) -> None:
    if method not in CHOICES:
        raise unknown("method", method, CHOICES)
    if method == "linear" and measure not in ("pearson", "spearman", "cosine"):
        raise BadData(f"a weighted sum of concepts is no presence, which {measure} is about; use measure='pearson'.")
    if measure not in MEASURES:
        raise unknown("measure", measure, MEASURES)
    if len(images) < 8:
        raise BadData(f"{len(images)} images: half are needed to choose labels, half to judge them; give 8 or more.")
    if shuffles < 1:
        raise OutOfRange(f"shuffles={shuffles}: without the shuffled control no label can be told from chance.")
    for what, one in {"concepts": concepts, "truth": truth}.items():
        if one is not None and len(one.presence) != len(images):
            raise ShapeMismatch(f"{what} of {len(one.presence)} images, and {len(images)} images.")
    if truth is not None and truth.names != concepts.names:
        raise ShapeMismatch("truth and concepts must have the same names in the same order.")


def _undefined(measure: str) -> dict[str, Any]:
    raise BadData(
        f"{measure} is undefined for every unit and concept on these images (constant units, or concepts that half of "
        "the images lack?). Use more images."
    )
