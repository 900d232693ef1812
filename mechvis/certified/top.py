"""The top units of a sweep, from as few images as a stated guarantee allows.

    found = mechvis.certified_top(model, images, top=16, units="heads", edit="mean_positional")
    found.top(16, by="selected")
    print(certificate(found))

1. Everything is settled as for :func:`mechvis.sweep` (units, metric, targets, labels, reference, edit): the effect of a
   unit on an image is the same number.
2. :func:`mechvis.certified.elimination.eliminate` decides in rounds which units need more images; a round is one job of
   the engine, with the units that are still live, so memory budget, back-off and wave front come with it.
3. The effects of the selected units are measured again on images that had no part in their selection: the largest of
   many noisy means are too large on average.

With `out=` every finished piece of every round is kept. The decisions follow from the pieces, so the same call
continues an interrupted one and ends with the same answer, and processes that are given the same folder share every
round and come to the same decisions, each for itself.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mechvis.certified.bounds import FIRST
from mechvis.certified.calibration import calibrate
from mechvis.certified.elimination import Elimination, check_settings, eliminate, fresh
from mechvis.certified.order import draw
from mechvis.certified.rounds import Rounds, with_decisions
from mechvis.certified.words import facts_of
from mechvis.engine import Engine
from mechvis.errors import ResultMismatch
from mechvis.parallel.share import one_saves
from mechvis.results import Result
from mechvis.sweep import measure, with_targets
from mechvis.sweep_inputs import Prepared, Target, prepare
from mechvis.units import Unit


def certified_top(
    model: Any,
    images: Any,
    *,
    top: int = 16,
    units: str | Sequence[Unit] = "heads",
    groups: Any = None,
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "zero",
    metric: str | Callable | Sequence[str | Callable] = "logit_diff",
    targets: Target | Sequence[Target] | None = None,
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
    engine: Engine = "wave",
    budget: str | int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Result:
    """Find the units of largest mean effect over all images without measuring every unit on every image.

    With probability 1 - delta each of the `top` returned units has a mean effect over the images given of at least
    theta - eps |theta|, where theta is the effect of the unit on rank `top` (:mod:`mechvis.certified.elimination` says
    how, and :mod:`mechvis.certified.bounds` what `tails` assumes).

    Args:
        model: a wrapped model with a head (for CLIP: `clip.classifier(class_names)`).
        images: an `ImageSet`, or pixels `[image channel height width]`.
        top: how many units to find; fewer than there are.
        units: as for :func:`mechvis.sweep`.
        groups: likewise, for `patches`. A group counts on the images in which it has a patch.
        edit: likewise.
        metric: likewise; where there are several, the first decides.
        targets: likewise; of several the first decides, on the first metric (`logit_diff[circle]`).
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
        out: folder that keeps finished pieces, and then the result; the same call continues an interrupted one, and
            processes that are given the same folder share the work (docs/scale.md).
        seed: of the order of the images, of the audit, of resampling, of the split and of the bootstrap.
        progress: show progress bars.
        allow_overlap: accept reference images that are evaluated too.

    Returns:
        Result: one row per unit and metric, the returned units first. `effect`, `low`, `high` (pointwise, 95 %) are for
        returned units those on fresh images. Further columns: `selected`, `status` (accepted, rejected, undecided),
        `audited`, `fresh`, and what was decided on, for the first metric: `decided_effect` with its simultaneous bounds
        `bound_low` and `bound_high`, `decided_n` images in `round`. `provenance["certificate"]` holds the guarantee and
        the cost; :func:`mechvis.certified.certificate` says it in words.

    Raises:
        OutOfRange: `top` not below the number of units, or another setting out of range.
        FailedCheck: no calibration is good enough.
        And those of :func:`mechvis.sweep`.

    Example:
        >>> found = mechvis.certified_top(model, images, top=4, eps=0.1)                       # doctest: +SKIP
        >>> found.top(4, by="selected")                                                        # doctest: +SKIP
    """
    prepared = prepare(
        model, images, units=units, groups=groups, edit=edit, metric=metric, targets=targets, labels=labels,
        reference=reference, source=source, layers=layers, engine=engine, seed=seed, allow_overlap=allow_overlap,
    )  # fmt: skip
    n_images, n_units = len(prepared.images), len(prepared.units)
    names = [unit.name for unit in prepared.units]
    order = draw(n_images, getattr(prepared.images, "labels", None), seed)
    asked = {
        "top": top, "eps": eps, "delta": delta, "by": by, "tails": tails, "value_range": value_range, "audit": audit,
        "max_images": max_images, "control": control_images if control else 0, "calibrated": calibrated,
    }  # fmt: skip
    folder = None if out is None else Path(out)
    if folder is not None and (folder / "pieces").exists():
        raise ResultMismatch(f"{folder} holds a full sweep. Use another output folder, or delete this one.")
    started = time.perf_counter()
    settings: dict[str, Any] = {"eps": eps, "delta": delta, "by": by, "max_images": max_images}
    check_settings(
        n_units, top, n_images, audit=audit, tails=tails, value_range=value_range, **settings
    )  # before any work
    plan = None if folder is None else {**prepared.plan(), "certified": asked}
    run = {"engine": engine, "budget": budget, "progress": progress}
    work = Rounds(_round(prepared, plan, folder and folder / "rounds", run), prepared.metrics[0][0])
    estimate = None
    if control:
        from mechvis.certified.first_order import first_order

        estimate = first_order(
            prepared, order[:control_images], folder=folder and folder / "gradients", plan=plan, progress=progress
        )
    chosen = None
    if calibrated:
        pilot = work.measure(np.arange(n_units), order[:FIRST])
        chosen = calibrate(pilot, n_images, top, seed=seed, **settings)
    found = eliminate(
        work.measure, order, n_units, top, audit=audit, control=estimate, tails=tails, value_range=value_range,
        z=None if chosen is None else chosen.z, seed=seed, names=names, **settings,
    )  # fmt: skip
    # Fewer fresh images than a decision needs would give a worse estimate than those that decided.
    again = [(which, where) for which, where in fresh(found, n_images, fresh_images) if len(where) >= FIRST]
    for which, where in again:
        work.measure(which, order[where.start : where.stop])
    seconds = round(time.perf_counter() - started, 3)
    facts = facts_of(
        found, names, work.metric, n_images, asked, chosen=chosen,
        again=sum(len(which) * len(where) for which, where in again),
        gradients=0 if estimate is None else estimate.shape[1],
    )  # fmt: skip
    renewed = {int(unit): where.start for which, where in again for unit in which}
    result = _result(prepared, found, work, renewed, order, facts, seconds, seed)
    if folder is not None:
        one_saves(folder, lambda: result.save(folder))
    return result


def _round(prepared: Prepared, plan: dict | None, folder: Path | None, run: dict[str, Any]) -> Callable:
    """How a round is measured: one job of the engine, one folder for each."""

    def compute(units: np.ndarray, images: np.ndarray, number: int) -> dict[str, np.ndarray]:
        return measure(
            prepared,
            units=[prepared.units[i] for i in units],
            order=images,
            plan=None if plan is None else {**plan, "round": number, "live": [int(i) for i in units]},
            folder=None if folder is None else folder / f"{number:02d}",
            what=f"round {number}: {len(units)} units",
            **run,
        )

    return compute


def _result(
    prepared: Prepared, found: Elimination, work: Rounds, renewed: dict[int, int], order: np.ndarray,
    facts: dict[str, Any], seconds: float, seed: int,
) -> Result:  # fmt: skip
    measured = work.together(len(prepared.units), order, renewed)
    # The returned units first, then the rest as they were decided.
    score = np.abs(found.mean) if facts["by"] == "size" else found.mean
    rest = [i for i in np.argsort(-score, kind="stable") if i not in set(found.selected.tolist())]
    rows = [*found.selected.tolist(), *map(int, rest)]
    names = [name for name, _ in prepared.metrics]
    result = Result.from_values(
        f"{'_'.join(prepared.kinds)}_top",
        f"top {facts['top']} by {prepared.title}"
        + (f", certified within {facts['eps']:.3g}" if facts["certified"] else ", not certified"),
        [prepared.units[i].row() for i in rows],
        {name: measured.values[name][rows] for name in names},
        images=prepared.image_table()[measured.images.tolist()],
        provenance=prepared.provenance(certificate=facts, timings={"sweep": seconds}),
        baseline={name: float(np.nanmean(measured.values[f"clean/{name}"])) for name in names},
        seed=seed,
    )
    return with_targets(with_decisions(result, found, rows, measured, list(renewed), work.metric), prepared.targets)
