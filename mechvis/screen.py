"""Screening: all units in bfloat16, then the ones that matter again in float32.

    effects = mechvis.sweep(model, images, units="heads", screen="bf16", recheck=12)
    effects.rows().filter(pl.col("precision") == "float32")

1. *Screen*: the sweep under `torch.autocast`: the blocks' products in bfloat16, while the stream, the norms' input, the
   embedding, the read-out and the change that an ablated unit makes stay float32 (see `mechvis.wave`). The user's
   weights are read, never converted in place.
2. *Rank*: units by the absolute mean effect on the first metric.
3. *Re-check*: the first ones once more in float32, on all images. Their rows hold these numbers alone.
4. *Report*: rank correlation of the two precisions over the re-checked units, how many of the top stayed, and how many
   leading units no unit that was not re-checked can reach, if their deviation is no larger than the largest seen.

A row says in `precision` which one its effect has, and in `screened_effect` what the screening said. Units are selected
and then measured on the same images, so the effects of the first ones are a little too large where images are few; the
guarantee is `mechvis.certified_top`'s business.

Autocast rather than a bfloat16 copy of the model: one block of a ViT-B/16 (4 images of 197 tokens, one thread, a CPU
with avx512_bf16) took 126 ms in float32, 38 ms as a bfloat16 copy, 38 ms under autocast (41 with the weights cast
anew), where products reach 87 and 397 GFLOP/s. Autocast needs no copy of the model (bfloat16 weights are kept beside it
while it lasts, half its size), works for every family and head, and rounds the stream less. What a wave front does
otherwise while it lasts is in :mod:`mechvis.wave.lowered`. The head sweep of a ViT-B/16 on 2 images took 46.8 s in
float32 and 14.8 s as a screening; 9 of the 144 heads again, mostly of early layers, 6.1 s.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.parallel.share import one_saves
from mechvis.results import Result
from mechvis.sweep import measure, with_targets
from mechvis.sweep_inputs import Prepared

PRECISIONS = {"bf16": torch.bfloat16}


def screened(
    prepared: Prepared,
    *,
    screen: str = "bf16",
    recheck: int | float | None = None,
    share: float = 1.0,
    engine: str = "wave",
    budget: str | int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """A sweep whose units are screened in low precision and of which the top is measured again in float32.

    Args:
        prepared: the sweep, from `mechvis.sweep_inputs.prepare`.
        screen: `bf16`.
        recheck: how many units to measure again, or which share of them (a float); None: a sixteenth, at least four.
        share: of the images that the screening uses, drawn by the sweep's seed.
        engine, budget, out, progress: as for :func:`mechvis.sweep`.

    Returns:
        Result: with the columns `precision` (`float32`, `bfloat16`) and `screened_effect`, and `provenance["screen"]`:
        `spearman`, `kept`, `safe` and what they are in words (`statement`).

    Raises:
        BadData: the model is not float32.
        OutOfRange: nothing or too much to re-check, or no images to screen on.

    Example:
        >>> effects = mechvis.sweep(model, images, screen="bf16", recheck=12)                      # doctest: +SKIP
        >>> print(effects.provenance["screen"]["statement"])                                       # doctest: +SKIP
    """
    dtype, n_units, n = _checked(prepared, screen), len(prepared.units), len(prepared.images)
    recheck = min(n_units, max(4, n_units // 16)) if recheck is None else recheck
    again, some = _count(recheck, n_units, "recheck"), _count(float(share), n, "screen_share")
    seed, settings = prepared.settings["seed"], {"screen": screen, "recheck": again, "screened_images": some}
    order = np.random.default_rng(seed).permutation(n)[:some]
    order.sort()
    folder = None if out is None else Path(out)
    common = {"engine": engine, "budget": budget, "progress": progress}
    plan = None if out is None else {**prepared.plan(), **settings}
    times = [time.perf_counter()]
    with torch.autocast(prepared.model.device.type, dtype=dtype):
        rough = measure(
            prepared,
            order=order,
            plan=plan,
            folder=folder and folder / "screen",
            what=f"screening in {screen}",
            **common,
        )
    times.append(time.perf_counter())
    names = [name for name, _ in prepared.metrics]
    means = {name: _means(rough[name]) for name in names}
    # A group of patches that no screened image has is unknown, so it is measured.
    size = np.nan_to_num(np.abs(means[names[0]]), nan=np.inf)
    chosen = np.sort(np.argsort(-size, kind="stable")[:again])
    fine = measure(
        prepared,
        units=[prepared.units[i] for i in chosen],
        order=np.arange(n),
        plan=plan and {**plan, "live": chosen.tolist()},
        folder=folder and folder / "pieces",
        what=f"{again} units in float32",
        **common,
    )
    times.append(time.perf_counter())
    facts = {
        **settings,
        **agreement(means[names[0]], _means(fine[names[0]]), chosen, _means(fine[names[0]][:, order])),
        "how": f"autocast to {str(dtype).removeprefix('torch.')}, stream and read-out in float32",
        "metric": names[0],
        "images": n,
        "units": n_units,
    }
    facts["statement"] = _statement(facts)
    seconds = {"screen": round(times[1] - times[0], 3), "recheck": round(times[2] - times[1], 3)}
    result = Result.from_values(
        f"{'_'.join(prepared.kinds)}_sweep",
        f"{prepared.title}, screened in {screen}, {again} of {n_units} in float32",
        [unit.row() for unit in prepared.units],
        {name: _merged(rough[name], order, fine[name], chosen, n) for name in names},
        images=prepared.image_table(),
        provenance=prepared.provenance(timings=seconds, screen=facts),
        baseline={name: float(fine[f"clean/{name}"].mean()) for name in names},
        seed=seed,
    )
    result = with_targets(_with_precision(result, means, chosen, dtype), prepared.targets)
    if out is not None:
        one_saves(Path(out), lambda: result.save(Path(out)))
    return result


def agreement(
    screened: np.ndarray, measured: np.ndarray, chosen: np.ndarray, same_images: np.ndarray | None = None
) -> dict[str, Any]:
    """How far the screening can be believed, from the units that were measured again.

    Args:
        screened: mean effect of every unit `[unit]` by the screening; NaN where unknown.
        measured: mean effect of the chosen units in float32.
        chosen: which units these are.
        same_images: their float32 effect on the images of the screening, where these are not all.

    Returns:
        `spearman`: rank correlation of absolute effects over the chosen units (None where they do not vary); `kept`:
        share of the first half of the chosen units, by the screening, that are in the first half in float32 too;
        `deviation`: largest difference of a chosen unit's two effects on the same images, in the metric's unit;
        `safe`: how many of the first units, in float32, lie above everything that was not chosen by more than that.

    Example:
        >>> found = agreement(np.array([3.0, 2.0, 0.1]), np.array([3.1, 1.9]), np.array([0, 1]))
        >>> found["spearman"], found["kept"], found["safe"]
        (1.0, 1.0, 2)
    """
    before, after = np.abs(screened[chosen]), np.abs(measured)
    known = np.isfinite(before) & np.isfinite(after)
    deviation = np.abs(screened[chosen] - (measured if same_images is None else same_images))[known]
    largest = float(deviation.max()) if known.any() else 0.0
    first = -(-int(known.sum()) // 2)
    tops = [set(np.argsort(-values[known], kind="stable")[:first].tolist()) for values in (before, after)]
    rest = np.abs(np.delete(screened, chosen))
    reach = float(rest.max()) + largest if len(rest) else -1.0
    return {
        "spearman": _spearman(before[known], after[known]),
        "kept": len(tops[0] & tops[1]) / first if first else None,
        "kept_of": first,
        "deviation": largest,
        "safe": int((after[np.isfinite(after)] > reach).sum()),
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation with ties at their mean rank."""
    import polars as pl

    if len(a) < 2:
        return None
    ranks = [pl.Series(values).rank("average").to_numpy() for values in (a, b)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return round(float(np.corrcoef(*ranks)[0, 1]), 9)


def _statement(facts: dict[str, Any]) -> str:
    rank = "no rank correlation" if facts["spearman"] is None else f"rank correlation {facts['spearman']:.3f}"
    kept = "" if facts["kept"] is None else f", {facts['kept']:.0%} of their first {facts['kept_of']} stayed there"
    return (
        f"screened in {facts['screen']} on {facts['screened_images']} of {facts['images']} images, "
        f"{facts['recheck']} of {facts['units']} units measured again in float32. Of these: {rank}{kept}; largest "
        f"deviation {facts['deviation']:.2g} on {facts['metric']}; the first {facts['safe']} are out of reach of the "
        "units that were not measured again"
    )


def _checked(prepared: Prepared, screen: str) -> torch.dtype:
    if screen not in PRECISIONS:
        raise unknown("screening precision", screen, PRECISIONS)
    found = {str(p.dtype).removeprefix("torch.") for p in prepared.model.parameters() if p.is_floating_point()}
    if found != {"float32"}:
        raise BadData(
            f"screening lowers the precision of a float32 model and checks against it; this one is "
            f"{' and '.join(sorted(found))}. Sweep it without screen=."
        )
    return PRECISIONS[screen]


def _count(asked: int | float, total: int, what: str) -> int:
    """A number, or a share (a float) of a total."""
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        raise BadData(f"{what}={asked!r}: expected a number, or a share such as 0.25.")
    if isinstance(asked, float):
        if not 0 < asked <= 1:
            raise OutOfRange(f"{what}={asked}: a share lies above 0 and is at most 1.")
        return max(1, round(asked * total))
    if not 1 <= asked <= total:
        raise OutOfRange(f"{what}={asked}: there are {total}.")
    return asked


def _means(values: np.ndarray) -> np.ndarray:
    """Mean over the images that count `[unit]`; NaN where none does."""
    n = np.isfinite(values).sum(1)
    return np.divide(np.nansum(values, 1, dtype=np.float64), n, out=np.full(len(values), np.nan), where=n > 0)


def _merged(rough: np.ndarray, order: np.ndarray, fine: np.ndarray, chosen: np.ndarray, n: int) -> np.ndarray:
    values = np.full((len(rough), n), np.nan, dtype=fine.dtype)
    values[:, order] = rough
    values[chosen] = fine
    return values


def _with_precision(result: Result, means: dict[str, np.ndarray], chosen: np.ndarray, dtype: torch.dtype) -> Result:
    import polars as pl

    n_units, metrics = len(next(iter(means.values()))), len(means)
    precision = np.full(n_units, str(dtype).removeprefix("torch."), dtype=object)
    precision[chosen] = "float32"
    table = result.table.with_columns(
        pl.Series("precision", precision.tolist() * metrics, dtype=pl.String),
        pl.Series("screened_effect", np.concatenate([means[name] for name in means])).cast(pl.Float64).fill_nan(None),
    )
    return replace(result, table=table)


__all__ = ["PRECISIONS", "agreement", "screened"]
