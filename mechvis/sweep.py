"""Sweeps: ablate each unit on each image and see how far the metric falls.

    effects = mechvis.sweep(model, images, units="heads", edit="mean_positional", metric="logit_diff")
    effects.top(10); effects.plot(); effects.save("runs/heads")

effect = metric(clean) - metric(edited); positive means that the unit supports the behaviour. Every effect comes with an
interval over images and a correction for the number of units.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mechvis import engine as engines
from mechvis.parallel.share import one_saves
from mechvis.results import Result
from mechvis.sweep_inputs import EDITS, Prepared, Target, prepare
from mechvis.units import KINDS, Unit


def sweep(
    model: Any,
    images: Any,
    *,
    units: str | Sequence[Unit] = "heads",
    groups: Any = None,
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "zero",
    metric: str | Callable | Sequence[str | Callable] = "logit_diff",
    targets: Target | Sequence[Target] | None = None,
    labels: Literal["given", "predicted"] | None = None,
    reference: Any = None,
    source: Any = None,
    layers: Iterable[int] | None = None,
    engine: engines.Engine = "wave",
    screen: Literal["bf16"] | None = None,
    recheck: int | float | None = None,
    screen_share: float = 1.0,
    budget: str | int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Result:
    """Ablate each unit on each image; one row of the result per unit and metric.

    Args:
        model: a wrapped model with a head (for CLIP: `clip.classifier(class_names)`).
        images: an `ImageSet`, or pixels `[image channel height width]`.
        units: `heads`, `result`, `attn_out`, `mlp_out`, `neurons`, `tokens` (residual stream x token), `patches`
            (residual stream x group of patches), `pool_heads` (of an attention pooling), of a model with dictionaries
            (`sae.splice`) also `latents` and `errors`, or a list. Tokens and patches become maps over the image with
            `mechvis.patches.patch_maps`.
        groups: for `patches`: a grid of cells such as `(4, 4)`, `"object"` for object and background by the images'
            masks, masks or label maps `[image height width]`, or lists of tokens; see
            :func:`mechvis.patches.patch_groups`.
        edit: what takes the unit's place: `zero`; `mean` (over reference images and tokens); `mean_positional` (over
            reference images, per token); `resample` (another image of the set, drawn by `seed`); `patch` (the same
            position in `source`, e.g. the corrupt half of aligned pairs).
        metric: name(s) from `mechvis.metrics.METRICS`, or functions of the same signature. Several cost no extra
            forward.
        targets: measure against these classes for every image instead of its label or prediction: names (for a
            zero-shot head: its class names or prompts) or indices; a pair (target, contrast) also fixes the contrast of
            `logit_diff`. Each metric becomes one per target, e.g. `logit[circle]`, from the same forwards; the table's
            column `target` says which. `kl` and `js` know no target and stay as they are.
        labels: measure against the `given` labels or the model's `predicted` classes; by default the labels if the
            set has them.
        reference: images for the means (an `ImageSet`, pixels, or `Means`). If left out, a third of `images`, drawn by
            `seed`, is set aside for it and not evaluated.
        source: for `patch`: images aligned one to one with `images`.
        layers: only units of these layers.
        engine: `wave`, its slow twin `plain`, or `compiled` (blocks by `torch.compile`: :mod:`mechvis.wave.halves`).
        screen: `bf16`: measure all units in bfloat16 and only the top again in float32; the columns `precision` and
            `screened_effect` and the printed result say what to believe (see :mod:`mechvis.screen`).
        recheck: with `screen`: how many units to measure again, or which share of them (a float); default: a sixteenth,
            at least four.
        screen_share: with `screen`: share of the images to screen on.
        budget: memory for activations, e.g. `"8GB"`.
        out: folder that keeps finished pieces, and then the result; the same call continues an interrupted one, and
            processes that are given the same folder share the work (docs/scale.md); each returns the whole result.
        seed: of resampling, of the split, and of the bootstrap.
        progress: show a progress bar.
        allow_overlap: accept reference images that are evaluated too.

    Returns:
        Result: effects in the metric's unit, with intervals, per-image values and provenance.

    Raises:
        UnknownName, OutOfRange, BadData, BadImages, SplitOverlap, ResultMismatch, OutputNotWritable, OutOfMemory.

    Example:
        >>> effects = mechvis.sweep(model, images, units="heads", edit="zero", metric="logit_diff")   # doctest: +SKIP
        >>> effects.top(3)                                                                            # doctest: +SKIP
    """
    prepared = prepare(
        model,
        images,
        units=units,
        groups=groups,
        edit=edit,
        metric=metric,
        targets=targets,
        labels=labels,
        reference=reference,
        source=source,
        layers=layers,
        engine=engine,
        seed=seed,
        allow_overlap=allow_overlap,
    )
    if screen is not None:
        from mechvis.screen import screened

        return screened(
            prepared,
            screen=screen,
            recheck=recheck,
            share=screen_share,
            engine=engine,
            budget=budget,
            out=out,
            progress=progress,
        )
    n, listed = len(prepared.images), prepared.units
    started = time.perf_counter()
    found = measure(
        prepared,
        engine=engine,
        budget=budget,
        folder=Path(out) / "pieces" if out else None,
        plan=prepared.plan() if out else None,
        progress=progress,
        what=f"{edit} {'/'.join(prepared.kinds)}",
    )
    seconds = time.perf_counter() - started
    result = Result.from_values(
        f"{'_'.join(prepared.kinds)}_sweep",
        prepared.title,
        [unit.row() for unit in listed],
        {name: found[name] for name, _ in prepared.metrics},
        images=prepared.image_table(),
        provenance=prepared.provenance(
            timings={"sweep": round(seconds, 3), "rows_per_second": round(n * len(listed) / seconds, 1)}
        ),
        baseline={name: float(found[f"clean/{name}"].mean()) for name, _ in prepared.metrics},
        seed=seed,
    )
    result = with_targets(result, prepared.targets)
    if out:
        one_saves(Path(out), lambda: result.save(Path(out)))
    return result


def measure(
    prepared: Prepared,
    *,
    plan: dict[str, Any] | None,
    folder: Path | None,
    units: Sequence[Unit] | None = None,
    order: np.ndarray | None = None,
    **run: Any,
) -> dict[str, np.ndarray]:
    """The numbers of a prepared sweep, as :func:`mechvis.engine.compute` gives them; an effect is NaN where a group of
    patches has no patch in an image.

    Args:
        prepared: the sweep.
        plan: what identifies it in a ledger.
        folder: where the ledger is.
        units: some of the units, sorted by layer; default: all.
        order: positions of the images to use; default: all.
        run: the other arguments of `compute`.
    """
    units, groups = prepared.units if units is None else units, prepared.groups
    if groups is None or not groups.per_image:
        return engines.compute(prepared.job(units, order, plan), folder=folder, **run)
    order = np.arange(len(prepared.images)) if order is None else order
    index = [unit.index for unit in units]
    if run.get("engine") == "plain":
        found = _image_by_image(prepared, units, order, plan=plan, folder=folder, **run)
    else:
        found = engines.compute(prepared.job(units, order, plan), folder=folder, **run)
    absent = ~groups.members.any(2).numpy()[order][:, index].T
    return {
        name: value if name.startswith("clean/") else np.where(absent, np.nan, value) for name, value in found.items()
    }


def _image_by_image(
    prepared: Prepared,
    units: Sequence[Unit],
    order: np.ndarray,
    *,
    plan: dict[str, Any] | None,
    folder: Path | None,
    **run: Any,
) -> dict[str, np.ndarray]:
    """The plain twin of groups that differ between images: one image at a time its groups are lists of tokens."""
    parts = []
    for image in order:
        # Where a group has no patch any token will do: the number is dropped.
        own = [replace(unit, tokens=prepared.groups.tokens(unit.index, image) or (0,)) for unit in units]
        at = None if folder is None else folder / f"{image:08d}"
        parts.append(engines.compute(prepared.job(own, np.array([image]), plan), folder=at, **run))
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def with_targets(result: Result, targets: Mapping[str, str]) -> Result:
    """The table with a column that says which class a metric is about; empty where it is about none."""
    import polars as pl

    if not targets:
        return result
    column = pl.Series("target", [targets.get(metric) for metric in result.table["metric"]], dtype=pl.String)
    return replace(result, table=result.table.with_columns(column))


__all__ = ["EDITS", "KINDS", "sweep"]
