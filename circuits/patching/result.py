"""From what the engine measured to a `Result`: shares in both orders of averaging, effects in the metric's unit, and
what must be known of the pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuits.pairs.classes import PairClasses
from circuits.pairs.pairs import Pairs
from circuits.patching import ratios
from circuits.patching.job import Patching
from circuits.patching.units import row_of
from mechvis import patches, stats
from mechvis.errors import NotFinite
from mechvis.provenance import provenance
from mechvis.results import FALSE_DISCOVERY_RATE, Result
from mechvis.sweep import with_targets

Found = Sequence[tuple[Patching, Mapping[str, np.ndarray]]]
"""Each lot of units in each direction, with its numbers."""

Totals = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""M(clean) and M(corrupt) per pair, by metric."""


def result_of(
    pairs: Pairs,
    known: PairClasses,
    found: Found,
    totals: Totals,
    *,
    aggregate: str,
    tiny: float,
    seed: int,
    timings: dict[str, float],
) -> Result:
    """The result of activation patching; its columns are described at :func:`circuits.patching.patch.patch`."""
    import polars as pl

    first = found[0][0]
    tables, values, targets = [], {}, {}
    for name, (clean, corrupt) in totals.items():
        for way in dict.fromkeys(lot.direction for lot, _ in found):
            own = [(lot, numbers[name]) for lot, numbers in found if lot.direction == way]
            metric = f"{name}[{way}]"
            raw = np.concatenate([_signed(lot, numbers, name) for lot, numbers in own])
            rows = pl.DataFrame([row_of(unit) for lot, _ in own for unit in lot.listed], infer_schema_length=None)
            columns, values[metric] = _columns(raw, clean - corrupt, aggregate, tiny, seed)
            tables.append(
                rows.with_columns(pl.lit(metric).alias("metric"), pl.lit(way).alias("direction")).hstack(columns)
            )
            if name in first.targets:
                targets[metric] = first.targets[name]
    kinds = list(dict.fromkeys(word for lot, _ in found for word in ([lot.part] if lot.part else lot.kinds)))
    facts = _facts(pairs, known, found, totals, aggregate, tiny)
    result = Result(
        kind="activation_patching",
        title=f"activation patching of {', '.join(kinds)}, {pairs.name}: share of the difference clean - corrupt",
        table=pl.concat(tables),
        values=values,
        images=_images(pairs, known, first, totals),
        provenance=provenance(
            model=first.model, images=pairs, seed=seed, sweep=_sweep_facts(found), patching=facts, timings=timings
        ),
    )
    return with_targets(result, targets)


def _signed(lot: Patching, numbers: np.ndarray, name: str) -> np.ndarray:
    """Effects in the metric's unit, positive where patching moves the output towards the half that was put in."""
    unknown = np.isnan(numbers) & ~lot.absent
    if unknown.any():
        unit, image = np.argwhere(unknown)[0]
        raise NotFinite(f"{name} is NaN on pair {image} with {row_of(lot.listed[unit])['unit']} patched.")
    # The engine gives M(base) - M(patched).
    return (1 if lot.direction == "noise" else -1) * numbers.astype(np.float64)


def _columns(raw: np.ndarray, total: np.ndarray, aggregate: str, tiny: float, seed: int) -> tuple[Any, np.ndarray]:
    """Columns of the table, and the per-pair shares whose mean is the effect."""
    import polars as pl

    both = {
        "ratio_of_means": ratios.ratio_of_means(raw, total, seed=seed),
        "mean_of_ratios": ratios.mean_of_ratios(raw, total, tiny=tiny, seed=seed),
    }
    (chosen, shares), plainly = both[aggregate], stats.bootstrap(raw, seed=seed)

    def column(values: np.ndarray) -> Any:
        return pl.Series(values).fill_nan(None)

    columns = pl.DataFrame(
        {
            "effect": chosen.effect,
            "low": column(chosen.low),
            "high": column(chosen.high),
            "n": chosen.n,
            "excluded": chosen.excluded,
            "p": column(chosen.p),
            "significant": stats.benjamini_hochberg(chosen.p) <= FALSE_DISCOVERY_RATE,
            **{order: column(found.effect) for order, (found, _) in both.items()},
            "raw": plainly.effect,
            "raw_low": column(plainly.low),
            "raw_high": column(plainly.high),
        }
    )
    return columns, shares


def _images(pairs: Pairs, known: PairClasses, first: Patching, totals: Totals) -> Any:
    """One row per pair: its classes, the metric on both halves, and the tokens of its groups."""
    import polars as pl

    names = pairs.class_names

    def named(classes: Any) -> list[str]:
        return [names[i] if i < len(names) else str(i) for i in classes.tolist()]

    columns: dict[str, Any] = {
        "id": list(pairs.ids),
        "clean_class": named(known.target),
        "corrupt_class": named(known.contrast),
    }
    for name, (clean, corrupt) in totals.items():
        columns |= {f"clean {name}": clean, f"corrupt {name}": corrupt}
    more = first.image_table().drop("id")
    return pl.DataFrame(columns).hstack(more)


def _facts(
    pairs: Pairs, known: PairClasses, found: Found, totals: Totals, aggregate: str, tiny: float
) -> dict[str, Any]:
    return {
        "pairs": pairs.name,
        "n": len(pairs),
        "directions": list(dict.fromkeys(lot.direction for lot, _ in found)),
        "aggregate": aggregate,
        "interval": (
            "bootstrap over pairs, numerator and denominator resampled together"
            if aggregate == "ratio_of_means"
            else "bootstrap over pairs"
        ),
        "undistinguished": int(known.undistinguished.sum()),
        "one_class": int(known.one_class.sum()),
        "tiny_share": tiny,
        "metrics": {
            name: {
                "clean": float(clean.mean()),
                "corrupt": float(corrupt.mean()),
                "tiny": int(ratios.is_tiny(clean - corrupt, tiny).sum()),
                "reversed": int((clean < corrupt).sum()),
            }
            for name, (clean, corrupt) in totals.items()
        },
    }


def _sweep_facts(found: Found) -> dict[str, Any]:
    """What was asked of the sweep engine, and where patches are (for `mechvis.patches.patch_maps`)."""
    first = found[0][0]
    units = [unit for lot, _ in found if lot.direction == first.direction for unit in lot.listed]
    named = {f"{unit.kind} {unit.name}" for unit in units}
    facts = {**first.settings, "units": sorted(named) if len(named) < 1000 else len(named)}
    facts["direction"] = "/".join(dict.fromkeys(lot.direction for lot, _ in found))
    if (where := patches.where(units, first.groups, first.parts)) is not None:
        facts["patches"] = where
    return facts
