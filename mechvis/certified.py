"""The top units of a sweep, from as few images as a stated guarantee allows.

    found = mechvis.certified_top(model, images, top=16, units="heads", edit="mean_positional")
    found.top(16, by="selected")
    print(certificate(found))

1. Everything is settled as for :func:`mechvis.sweep` (metric, labels, reference, edit): the effect of a unit on an
   image is the same number.
2. :func:`mechvis.elimination.eliminate` decides in rounds which units need more images; a round is one job of the
   engine, with the units that are still live, so memory budget, back-off and wave front come with it.
3. The effects of the selected units are measured again on images that had no part in their selection: the largest of
   many noisy means are too large on average.

With `out=` every finished piece of every round is kept. The decisions follow from the pieces, so the same call
continues an interrupted one and ends with the same answer.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mechvis import engine as engines
from mechvis.calibration import Calibration, calibrate
from mechvis.elimination import FIRST, TAILS, Elimination, check_settings, draw, eliminate, fresh
from mechvis.errors import ResultMismatch
from mechvis.results import Result
from mechvis.sweep_inputs import Prepared, image_table, prepare
from mechvis.units import Unit


def certified_top(
    model: Any,
    images: Any,
    *,
    top: int = 16,
    units: str | Sequence[Unit] = "heads",
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "zero",
    metric: str | Callable | Sequence[str | Callable] = "logit_diff",
    eps: float = 0.1,
    delta: float = 0.05,
    by: Literal["effect", "size"] = "effect",
    tails: Literal["student", "guarded", "bernstein"] = "guarded",
    value_range: float | None = None,
    audit: float = 0.05,
    fresh_images: int = 1024,
    max_images: int | None = None,
    control: bool = False,
    control_images: int = 4096,
    calibrated: bool = False,
    labels: Literal["given", "predicted"] | None = None,
    reference: Any = None,
    source: Any = None,
    layers: Iterable[int] | None = None,
    engine: Literal["wave", "plain"] = "wave",
    budget: str | int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Result:
    """Find the units of largest mean effect over all images without measuring every unit on every image.

    With probability 1 - delta each of the `top` returned units has a mean effect over the images given of at least
    theta - eps |theta|, where theta is the effect of the unit on rank `top` (:mod:`mechvis.elimination` says how, and
    what `tails` assumes).

    Args:
        model: a wrapped model with a head (for CLIP: `clip.classifier(class_names)`).
        images: an `ImageSet`, or pixels `[image channel height width]`.
        top: how many units to find; fewer than there are.
        units: as for :func:`mechvis.sweep`.
        edit: likewise.
        metric: likewise; where there are several, the first decides.
        eps: tolerance, as a share of the effect on rank `top`.
        delta: probability with which the guarantee may fail.
        by: the largest `effect`, or the largest absolute one (`size`).
        tails: `guarded`; `student` (several times fewer images, but a unit that matters on one image in a hundred is
            missed); `bernstein` (a bound for any distribution of known range; several times more).
        value_range: for `bernstein`: largest minus smallest possible effect, e.g. 2 for `prob` and `accuracy`.
        audit: share of units that are measured to the end if they are rejected; one that lies above a returned unit
            withdraws the certificate.
        fresh_images: images on which each returned unit's effect is measured again, where so many are left.
        max_images: images to draw at most; the result then may come without certificate.
        control: lower the variance by gradients (one backward pass on each of `control_images`).
        control_images: images with gradients; it helps only where it is several times what the last units need.
        calibrated: narrower intervals, chosen by simulation on the first 64 images; not certified.
        labels: as for :func:`mechvis.sweep`.
        reference: likewise.
        source: likewise.
        layers: likewise.
        engine: likewise.
        budget: likewise.
        out: folder that keeps finished pieces, and then the result; the same call continues an interrupted one.
        seed: of the order of the images, of the audit, of resampling, of the split and of the bootstrap.
        progress: show progress bars.
        allow_overlap: accept reference images that are evaluated too.

    Returns:
        Result: one row per unit and metric, the returned units first. `effect`, `low`, `high` (pointwise, 95 %) are for
        returned units those on fresh images. Further columns: `selected`, `status` (accepted, rejected, undecided),
        `audited`, `fresh`, and what was decided on, for the first metric: `decided_effect` with its simultaneous bounds
        `bound_low` and `bound_high`, `decided_n` images in `round`. `provenance["certificate"]` holds the guarantee and
        the cost; :func:`certificate` says it in words.

    Raises:
        OutOfRange: `top` not below the number of units, or another setting out of range.
        FailedCheck: no calibration is good enough.
        And those of :func:`mechvis.sweep`.

    Example:
        >>> found = mechvis.certified_top(model, images, top=4, eps=0.1)                       # doctest: +SKIP
        >>> found.top(4, by="selected")                                                        # doctest: +SKIP
    """
    prepared = prepare(
        model, images, units=units, edit=edit, metric=metric, labels=labels, reference=reference, source=source,
        layers=layers, engine=engine, seed=seed, allow_overlap=allow_overlap,
    )  # fmt: skip
    n_images, n_units = len(prepared.images), len(prepared.units)
    order = draw(n_images, getattr(prepared.images, "labels", None), seed)
    asked = {
        "top": top, "eps": eps, "delta": delta, "by": by, "tails": tails, "value_range": value_range, "audit": audit,
        "max_images": max_images, "control": control_images if control else 0, "calibrated": calibrated,
    }  # fmt: skip
    if out is not None and (Path(out) / "pieces").exists():
        raise ResultMismatch(f"{out} holds a full sweep. Use another output folder, or delete this one.")
    work = _Rounds(prepared, order, asked, out, {"engine": engine, "budget": budget, "progress": progress})
    started = time.perf_counter()
    settings: dict[str, Any] = {"eps": eps, "delta": delta, "by": by, "max_images": max_images}
    check_settings(
        n_units, top, n_images, audit=audit, tails=tails, value_range=value_range, **settings
    )  # before any work
    estimate = None
    if control:
        from mechvis.first_order import first_order

        folder = Path(out) / "gradients" if out else None
        where = order[:control_images]
        estimate = first_order(prepared, where, folder=folder, plan=work.plan if out else None, progress=progress)
    chosen = None
    if calibrated:
        pilot = work.measure(np.arange(n_units), order[:FIRST])
        chosen = calibrate(pilot, n_images, top, seed=seed, **settings)
    found = eliminate(
        work.measure, order, n_units, top, audit=audit, control=estimate, tails=tails, value_range=value_range,
        z=None if chosen is None else chosen.z, seed=seed, **settings,
    )  # fmt: skip
    decided = found.evaluations
    # Fewer fresh images than a decision needs would give a worse estimate than those that decided.
    again = [(which, where) for which, where in fresh(found, n_images, fresh_images) if len(where) >= FIRST]
    for which, where in again:
        work.measure(which, order[where.start : where.stop])
    seconds = round(time.perf_counter() - started, 3)
    facts = _facts(prepared, found, asked, chosen, n_images, 0 if estimate is None else estimate.shape[1])
    facts["evaluations"] |= {"fresh": sum(len(which) * len(where) for which, where in again)}
    facts["evaluations"]["total"] = decided + facts["evaluations"]["fresh"]
    facts["statement"] = _statement(facts)
    result = _result(prepared, found, work, again, order, facts, seconds, seed)
    if out is not None:
        result.save(Path(out))
    return result


def certificate(result: Result) -> str:
    """What a result of :func:`certified_top` guarantees, on what assumption, and what it cost, in words.

    Raises:
        ResultMismatch: the result has no certificate.
    """
    if "certificate" not in result.provenance:
        raise ResultMismatch(f"{result.title!r} is not the result of certified_top.")
    facts = result.provenance["certificate"]
    cost = facts["evaluations"]
    lines = [facts["statement"], f"Assumes: {facts['assumption']}."]
    if facts["calibration"]:
        simulated = facts["calibration"]
        lines.append(
            f"Calibrated, not certified: intervals of {simulated['z']:g} standard errors; {simulated['error']:.1%} of "
            f"{simulated['runs']} simulated runs failed, in a world made of the first {simulated['pilot']} images."
        )
    if facts["contradicted"]:
        lines.append(f"Contradicted by the audit: {', '.join(facts['contradicted'])} was rejected and lies above.")
    elif facts["audited"]:
        lines.append(f"Audit: rejected units measured to the end: {facts['audited']}; none of them lies above.")
    lines.append(
        f"{cost['total']:,} evaluations (unit x image): {cost['elimination']:,} to decide, {cost['audit']:,} audit, "
        f"{cost['fresh']:,} fresh. Uniform sampling to the same certificate: {cost['uniform']:,} "
        f"({cost['uniform'] / cost['elimination']:.1f} x what deciding took); "
        f"the full sweep: {cost['full']:,} ({cost['full'] / cost['total']:.1f} x the total)."
    )
    if cost["gradients"]:
        lines.append(f"Gradients for the control variate: {cost['gradients']:,} images, forward and backward.")
    return "\n".join(lines)


class _Rounds:
    """Measures some units on some images, one folder for each call, and keeps all numbers."""

    def __init__(self, prepared: Prepared, order: np.ndarray, asked: dict, out: Any, run: dict[str, Any]):
        self.prepared, self.run = prepared, run
        self.folder = None if out is None else Path(out) / "rounds"
        self.plan = None if out is None else {**prepared.plan(), "certified": asked}
        self.parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    def measure(self, units: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Effects on the first metric `[unit image]`."""
        name = self.prepared.metrics[0][0]
        for known, where, found in self.parts:
            if np.array_equal(known, units) and np.array_equal(where, images):
                return found[name]  # the pilot of a calibration is the first round
        number = len(self.parts) + 1
        chosen = [self.prepared.units[i] for i in units]
        plan = None if self.plan is None else {**self.plan, "round": number, "live": [int(i) for i in units]}
        found = engines.compute(
            self.prepared.job(chosen, images, plan),
            folder=None if self.folder is None else self.folder / f"{number:02d}",
            what=f"round {number}: {len(units)} units",
            **self.run,
        )
        self.parts.append((units, images, found))
        return found[name]


def _facts(
    prepared: Prepared, found: Elimination, asked: dict, chosen: Calibration | None, n_images: int, gradients: int
) -> dict[str, Any]:
    names = [unit.name for unit in prepared.units]
    return {
        **asked,
        "metric": prepared.metrics[0][0],
        "units": len(names),
        "images": n_images,
        "certified": found.certified and chosen is None,
        "calibrated": found.certified and chosen is not None,
        "exhausted": found.exhausted,
        "selected": [names[i] for i in found.selected],
        "tolerance": found.tolerance,
        "shortfall": found.shortfall if np.isfinite(found.shortfall) else None,
        "audited": int(found.audited.sum()),
        "contradicted": [names[i] for i in found.contradicted],
        "assumption": TAILS[asked["tails"]] if chosen is None else "the first images look like all images",
        "calibration": None if chosen is None else asdict(chosen),
        "rounds": list(found.rounds),
        "evaluations": {
            "elimination": found.evaluations - found.audit_evaluations,
            "audit": found.audit_evaluations,
            "gradients": gradients,
            "uniform": found.uniform,
            "full": len(names) * n_images,
        },
    }


def _statement(facts: dict[str, Any]) -> str:
    top, metric, sure = facts["top"], facts["metric"], f"With probability {1 - facts['delta']:.3g}"
    what = "absolute mean effect" if facts["by"] == "size" else "mean effect"
    rank = f"the {what} on rank {top} of {facts['units']} units over all {facts['images']:,} images"
    if facts["contradicted"]:
        return f"No certificate: the audit found units above some of the {top} returned ones."
    if not (facts["certified"] or facts["calibrated"]):
        gap = "an unknown amount" if facts["shortfall"] is None else f"more than {facts['shortfall']:.4g}"
        return (
            f"No certificate: {facts['rounds'][-1]['images']:,} images did not suffice for a tolerance of "
            f"{facts['eps']:.3g}. {sure} no returned unit lies {gap} below {rank} ({metric})."
        )
    within = f"more than {facts['eps']:.3g} of it below" if facts["eps"] else "below"
    drawn = f"{facts['rounds'][-1]['images']:,} were drawn"
    if facts["exhausted"]:
        drawn = "all were drawn for the last decisions, which are exact"
    return f"{sure} none of the {top} returned units lies {within} {rank} ({metric}); {drawn}."


def _result(
    prepared: Prepared, found: Elimination, work: _Rounds, again: list, order: np.ndarray, facts: dict, seconds: float,
    seed: int,
) -> Result:  # fmt: skip
    import polars as pl

    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    used = np.sort(np.unique(np.concatenate([place[where] for _, where, _ in work.parts])))
    column = np.full(len(order), -1)
    column[order[used]] = np.arange(len(used))
    n_units = len(prepared.units)
    renewed = np.zeros(n_units, dtype=bool)
    for which, _ in again:
        renewed[which] = True
    # In the order of the rounds: the calls for fresh images come last.
    decisions, later = work.parts[: len(work.parts) - len(again)], work.parts[len(work.parts) - len(again) :]
    values, seen, baseline = {}, np.zeros(n_units, dtype=np.int64), {}
    for name, _ in prepared.metrics:
        rows = np.full((n_units, len(used)), np.nan, dtype=decisions[0][2][name].dtype)
        clean = np.full(len(used), np.nan)
        for parts, fresh_only in ((decisions, False), (later, True)):
            for units, where, numbers in parts:
                at = column[where]
                clean[at] = numbers[f"clean/{name}"]
                keep = np.ones(len(units), dtype=bool) if fresh_only else ~renewed[units]
                rows[np.ix_(units[keep], at)] = numbers[name][keep]
        values[name], baseline[name] = rows, float(np.nanmean(clean))
    for units, where, _ in decisions:
        seen[units[~renewed[units]]] += len(where)
    for units, where, _ in later:
        seen[units] += len(where)
    # The returned units first, then the rest as they were decided.
    score = np.abs(found.mean) if facts["by"] == "size" else found.mean
    rest = [i for i in np.argsort(-score, kind="stable") if i not in set(found.selected.tolist())]
    rows = [*found.selected.tolist(), *map(int, rest)]
    result = Result.from_values(
        f"{'_'.join(prepared.kinds)}_top",
        f"top {facts['top']} by {prepared.title}"
        + (f", certified within {facts['eps']:.3g}" if facts["certified"] else ", not certified"),
        [prepared.units[i].row() for i in rows],
        {name: array[rows] for name, array in values.items()},
        images=image_table(prepared.images)[order[used].tolist()],
        provenance=prepared.provenance(certificate=facts, timings={"sweep": seconds}),
        baseline=baseline,
        seed=seed,
    )
    first = facts["metric"]
    added = pl.DataFrame(
        {
            "unit": [prepared.units[i].name for i in rows],
            "selected": np.isin(rows, found.selected),
            "status": [found.status[i] for i in rows],
            "audited": found.audited[rows],
            "fresh": renewed[rows],
            "round": found.round[rows],
            "decided_n": found.n[rows],
            "measured": seen[rows],
            "decided_effect": found.mean[rows],
            "bound_low": [float(v) if np.isfinite(v) else None for v in found.low[rows]],
            "bound_high": [float(v) if np.isfinite(v) else None for v in found.high[rows]],
        },
        schema_overrides={"bound_low": pl.Float64, "bound_high": pl.Float64},
    )
    # What was decided on belongs to the metric that decided. An image that was not measured is not an excluded one.
    own = ["decided_effect", "bound_low", "bound_high"]
    table = result.table.join(added, on="unit", how="left", maintain_order="left").with_columns(
        (pl.col("measured") - pl.col("n")).alias("excluded"),
        *(pl.when(pl.col("metric") == first).then(pl.col(name)).alias(name) for name in own),
    )
    return replace(result, table=table.drop("measured"))
