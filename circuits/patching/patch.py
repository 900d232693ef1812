"""Activation patching: which parts of a model carry the difference between two images.

1. *Noise*: run the clean image with the corrupt value of one unit put in. How much of the behaviour is lost says how
   far the unit is *necessary*.
2. *Denoise*: run the corrupt image with the clean value put in. How much of the behaviour comes back says how far the
   unit is *sufficient*.
3. *Normalise* by the whole difference `M(clean) - M(corrupt)`, M being the metric:

       noise   = (M(clean) - M(patched)) / (M(clean) - M(corrupt))
       denoise = (M(patched) - M(corrupt)) / (M(clean) - M(corrupt))

   1 means that the unit alone makes the whole difference, 0 that it makes none; below 0 it works against it.

The two directions differ where parts stand in for each other (OR: noising each finds nothing) and where they need each
other (AND: denoising each finds nothing), so both are run and both are in the table. Source: methods.md 5.1 (**K**).

All of it runs in the wave front of `mechvis.sweep`: a pair under a patch enters the network where it differs from the
unpatched run. The plain twin (`engine="plain"`) is one `model.run(edits=[edits.patch(...)])` per unit.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from circuits.pairs.classes import PairClasses, pair_classes
from circuits.pairs.pairs import Pairs
from circuits.patching import ratios
from circuits.patching.groups import object_groups
from circuits.patching.job import Patching, patching
from circuits.patching.result import result_of
from circuits.patching.units import split_units
from mechvis import engine as engines
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown
from mechvis.parallel.share import one_saves
from mechvis.results import Result
from mechvis.sweep import measure
from mechvis.sweep_inputs import Target
from mechvis.units import Unit

DIRECTIONS = {"both": ("noise", "denoise"), "noise": ("noise",), "denoise": ("denoise",)}


def patch(
    model: Any,
    pairs: Pairs,
    *,
    units: str | Sequence[str | Unit] = "heads",
    groups: Any = None,
    direction: Literal["both", "noise", "denoise"] = "both",
    metric: str | Callable | Sequence[str | Callable] = "logit_diff",
    targets: Target | Sequence[Target] | None = None,
    layers: Iterable[int] | None = None,
    aggregate: Literal["ratio_of_means", "mean_of_ratios"] = "ratio_of_means",
    tiny: float = 0.05,
    max_undistinguished: float = 0.5,
    engine: engines.Engine = "wave",
    budget: str | int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Patch each unit on each pair, in both directions; one row per unit, metric and direction.

    Args:
        model: a wrapped model with a head (for CLIP: `clip.classifier(class_names)`).
        pairs: from `circuits.pairs`.
        units: `heads` (z), `q`, `k`, `v`, `pattern` (of single heads, see `circuits.patching.inside_head`), `result`,
            `attn_out`, `mlp_out`, `neurons`, `tokens` (residual stream x token), `patches` (residual stream x group of
            tokens, see `groups`), `pool_heads`; or a sequence of kinds, `Unit`s and `HeadPart`s.
        groups: for `patches`: `"object"` (object, background and prefix, see `circuits.patching.groups`), or whatever
            `mechvis.sweep` takes.
        direction: `both`, `noise` or `denoise`.
        metric: name(s) from `mechvis.metrics.METRICS`, or functions of the same signature. The target is the clean
            class of the pair, the contrast its corrupt class (labels, or predictions where there are none; where both
            are one class, the best other class of the clean run). `kl` and `js` compare with the clean run.
        targets: measure against these classes instead, as in `mechvis.sweep`.
        layers: only units of these layers.
        aggregate: which order of averaging `effect` is: `ratio_of_means` (mean effect over mean difference; the
            interval is a bootstrap over pairs that resamples both) or `mean_of_ratios` (mean of per-pair shares; pairs
            with a tiny difference left out). Both are columns in any case; see `circuits.patching.ratios`.
        tiny: pairs whose `|M(clean) - M(corrupt)|` is below this share of its mean count as tiny.
        max_undistinguished: largest share of pairs for whose halves the model may predict one class.
        engine: `wave`, its slow twin `plain`, or `compiled`.
        budget: memory for activations, e.g. `"8GB"`.
        out: folder that keeps finished pieces, and then the result; the same call continues an interrupted one.
        seed: of the bootstrap.
        progress: show a progress bar.

    Returns:
        Result: its metrics are called `logit_diff[noise]`, `logit_diff[denoise]`, .... Columns beside the usual ones:
        `direction`; `ratio_of_means` and `mean_of_ratios`, one of which is `effect`; `raw`, `raw_low`, `raw_high` (mean
        effect in the metric's unit, with its interval). `values` are per-pair shares whose mean is `effect`;
        `images` has M(clean) and M(corrupt) of each pair; `provenance["patching"]` counts tiny and undistinguished
        pairs. Tokens and patches become maps with `mechvis.patches.patch_maps(result, "logit_diff[noise]")`.

    Raises:
        BadData: the metric is the same on both halves of all pairs (or its differences cancel); the model does not tell
            too many pairs apart; units, groups or masks that do not go together.
        UnknownName, OutOfRange, ShapeMismatch, NotFinite, ResultMismatch, OutOfMemory.

    Example:
        >>> pairs = circuits.pairs.scene_swap(model, n=128, change="object")                       # doctest: +SKIP
        >>> found = circuits.patch(model, pairs, units=["heads", "q", "k", "v", "mlp_out"])        # doctest: +SKIP
        >>> found.top(5, metric="logit_diff[denoise]")                                             # doctest: +SKIP
    """
    _check(direction, aggregate, tiny, max_undistinguished, engine)
    layers = None if layers is None else list(layers)
    split = split_units(model, units, layers, groups)
    known = pair_classes(model, pairs)
    undistinguished = int(known.undistinguished.sum())
    if undistinguished > max_undistinguished * len(pairs):
        raise BadData(
            f"the model predicts one class for both halves of {undistinguished} of {len(pairs)} pairs ({pairs.name}), "
            f"more than max_undistinguished={max_undistinguished:g}: there is little difference to explain. Choose "
            "pairs that it tells apart (circuits.pairs.check_pairs says which), or raise the share."
        )
    if isinstance(groups, str) and groups == "object":
        groups = object_groups(model, pairs)
    lots = [
        patching(
            model, pairs, known, way, units=listed, part=part, groups=groups, metric=metric, targets=targets,
            layers=layers, engine=engine, seed=seed,
        )
        for way in DIRECTIONS[direction]
        for part, listed in split
    ]  # fmt: skip
    totals = {name: _totals(name, function, known, aggregate) for name, function in lots[0].metrics}
    started = time.perf_counter()
    found = [(lot, _measured(lot, engine, budget, out, progress)) for lot in lots]
    seconds = round(time.perf_counter() - started, 3)
    result = result_of(
        pairs, known, found, totals, aggregate=aggregate, tiny=tiny, seed=seed, timings={"patching": seconds}
    )
    if out:
        one_saves(Path(out), lambda: result.save(Path(out)))
    return result


def _measured(
    lot: Patching, engine: str, budget: str | int | None, out: str | Path | None, progress: bool
) -> dict[str, np.ndarray]:
    return measure(
        lot,
        engine=lot.engine(engine),
        budget=budget,
        folder=Path(out) / "pieces" / lot.word if out else None,
        plan=lot.plan() if out else None,
        progress=progress,
        what=f"{lot.direction} {lot.part or '/'.join(lot.kinds)}",
    )


def _check(direction: str, aggregate: str, tiny: float, share: float, engine: str) -> None:
    for what, given, valid in (
        ("direction", direction, DIRECTIONS),
        ("aggregate", aggregate, ratios.ORDERS),
        ("engine", engine, engines.ENGINES),
    ):
        if given not in valid:
            raise unknown(what, given, valid)
    for name, value in (("tiny", tiny), ("max_undistinguished", share)):
        if not 0 <= value <= 1:
            raise OutOfRange(f"{name}={value} is a share, between 0 and 1.")


def _totals(name: str, function: Callable, known: PairClasses, aggregate: str) -> tuple[np.ndarray, np.ndarray]:
    """M(clean) and M(corrupt) of each pair.

    Raises:
        BadData: they do not differ.
        ShapeMismatch, NotFinite: the metric is not one number per pair.
    """
    halves = []
    for what, logits in (("clean", known.clean), ("corrupt", known.corrupt)):
        values = function(logits, known.target, known.contrast, known.clean)
        if not isinstance(values, Tensor) or values.shape != (len(logits),):
            seen = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeMismatch(f"the metric {name!r} gives {seen} for {len(logits)} {what} images; one number each.")
        if not torch.isfinite(values).all():
            raise NotFinite(
                f"the metric {name!r} is NaN or Inf on {int((~torch.isfinite(values)).sum())} {what} images."
            )
        halves.append(values.double().cpu().numpy())
    clean, corrupt = halves
    total, size = clean - corrupt, max(np.abs(clean).max(), np.abs(corrupt).max())
    rounding = 64 * torch.finfo(known.clean.dtype).eps * size
    if np.abs(total).max() <= rounding:
        raise BadData(
            f"{name} is the same on both halves of all {len(total)} pairs (mean {clean.mean():.4g}), so no unit can "
            "change it and every share would be 0 / 0. Choose another metric, other targets or other pairs."
        )
    if aggregate == "ratio_of_means" and abs(total.mean()) <= rounding:
        raise BadData(
            f"the differences of {name} between the halves cancel: their mean is {total.mean():.2g}, their mean size "
            f"{np.abs(total).mean():.4g}. Measure each pair against its own classes (leave targets= out), or use "
            "aggregate='mean_of_ratios'."
        )
    return clean, corrupt
