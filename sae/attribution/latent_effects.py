"""Effects of latents on a metric, estimated for all of them at once and measured for some.

For an image, with f the latents (per token), f0 what would stand there instead (zero, or the latents of a corrupt
image) and M the metric:

    gradient   Σ_tokens (f - f0) dM/df                the error term held (sparse feature circuits, Marks et al. 2024)
    direct     Σ_tokens (f - f0) d · dM/d stream      d the latent's direction, the stream that of the read-out with its
                                                      norm frozen: no later block takes part
    exact      M(clean) - M(f replaced by f0)         by `mechvis.sweep`, for some latents

All have the sign of an effect: positive where the latent supports the behaviour. One backward pass gives the first for
every latent and for the error term, whose share says how much of the behaviour the dictionary does not see. How well
the estimates agree with the truth is measured on the latents that `exact` chose: the largest by `gradient` and as many
drawn from all active ones, since agreement on the largest alone would flatter.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr
from torch import Tensor

from mechvis import metrics as metric_functions
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch, unknown
from mechvis.labels import with_model_classes
from mechvis.models.parts import SpliceParts
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, interval_of
from mechvis.sweep import sweep
from mechvis.units import Unit
from sae.attribution.direct import frozen_read_out, stream_directions
from sae.splicing.values import site_of_latents

WORDS = {
    "gradient": "sum over tokens of the latent (minus what stands in its place) times the metric's slope, mean over "
    "images, in the metric's unit",
    "direct": "the same by the direct path: what the latent writes, read by the head with its norm frozen",
    "exact": "metric(clean) - metric(latent replaced), mean over images; null where it was not measured",
    "code": "mean of the latent over images and tokens",
    "fires": "share of images in which the latent is above zero at some token",
    "n": "images",
    "gradient_spearman": "rank correlation of the estimate with `exact` over the latents that were measured",
    "share": "the error term's estimate over the sum of all estimates' absolute values",
}


class LatentAttribution(Record):
    """Effects of the latents of a dictionary on a metric; see :func:`latent_attribution`."""

    KIND = "latent_attribution"

    def top(self, n: int = 10, by: str = "gradient") -> pl.DataFrame:
        """The latents with the largest absolute effect.

        Raises:
            OutOfRange: n below 1.
            UnknownName: no such column.
        """
        if n < 1:
            raise OutOfRange(f"n={n}: at least one.")
        if by not in ("gradient", "direct", "exact"):
            raise unknown("estimate", by, ("gradient", "direct", "exact"))
        return self.table.filter(pl.col(by).is_not_null()).sort(pl.col(by).abs(), descending=True).head(n)

    def figures(self) -> list:
        """The largest effects."""
        from mechvis.plots.bars import bars
        from mechvis.report.blocks import Figure

        top = self.top(12)
        figure = bars(
            [f"latent {latent}" for latent in top["latent"]],
            top["gradient"].to_numpy(),
            low=top["gradient_low"].to_numpy(),
            high=top["gradient_high"].to_numpy(),
            label=f"gradient x activation ({self.facts['metric']})",
        )
        return [Figure(figure, "The largest estimated effects, with 95 % intervals over images.")]


def latent_attribution(
    model: Any,
    images: Any,
    *,
    site: str | None = None,
    metric: str | Callable = "logit_diff",
    labels: str | None = None,
    corrupt: Any = None,
    exact: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> LatentAttribution:
    """Effect of every latent of a spliced dictionary on a metric, and how far the estimates are to be believed.

    Args:
        model: from `sae.splice`, with the error term and a head (for CLIP splice `clip.classifier(class_names)`).
        images: an `ImageSet`, or pixels.
        site: of the latents, where the model has several dictionaries.
        metric: from `mechvis.metrics`, or a function of the same signature.
        labels: `given` labels or `predicted` classes, as in `mechvis.sweep`.
        corrupt: images aligned one to one: attribution patching with their latents; None: zero.
        exact: latents to measure: so many largest by `gradient`, and as many drawn from all active ones.
        batch_size: images per pass.
        seed: of what is drawn, and of the bootstrap.
        progress: show a progress bar.

    Returns:
        LatentAttribution: a row per active latent, the largest first; the table `error_term`; values per image in
        `arrays`.

    Raises:
        BadData: no head, no dictionary, or no latent is active.
        RefusedMethod: without the error term, or a metric whose slope is zero at the clean run.
        ShapeMismatch, NotFinite, UnknownName.

    Example:
        >>> found = latent_attribution(sae.splice(model, dictionary), images)                      # doctest: +SKIP
        >>> found.top(5), found.facts["gradient_spearman"]                                         # doctest: +SKIP
    """
    splice = _splice_of(model, site)
    name, function = metric_functions.get(metric)
    _check(model, images, corrupt, name, function, exact)
    if isinstance(images, ImageSet) and labels != "predicted":
        images = with_model_classes(images, model)
    found = _estimates(model, splice, images, corrupt, function, labels, batch_size, progress)
    active = np.flatnonzero(found["fires"] > 0)
    if not active.size:
        raise BadData(f"no latent of {splice.site} is active on these images, so there is nothing to attribute.")
    estimate = {key: found[key].mean(1) for key in ("gradient", "direct") if key in found}
    chosen = _to_measure(estimate["gradient"], active, exact, seed)
    truth, n_truth = None, 0
    if len(chosen):
        layer = model.graph[splice.site].layer
        swept = sweep(
            model,
            images,
            units=[Unit(layer, "latents", int(i), at=splice.site) for i in chosen],
            edit="zero" if corrupt is None else "patch",
            source=corrupt,
            metric=metric,
            labels=labels,
            progress=progress,
        )
        by_unit = {row: i for i, row in enumerate(swept.table["latent"].to_list())}
        truth = swept.values[name][[by_unit[int(i)] for i in chosen]]
        n_truth = len(chosen)
    agreement = _agreement(found, chosen, truth, seed)
    table = _table(found, estimate, active, chosen, truth, seed)
    error = bootstrap(found["error"], seed=seed)
    total = sum(abs(v) for v in (*estimate["gradient"][active], error.effect[0]))
    errors = pl.DataFrame(
        {
            "gradient": error.effect,
            "gradient_low": error.low,
            "gradient_high": error.high,
            "share": [float(error.effect[0] / total) if total else 0.0],
            "n": error.n,
        }
    )
    return LatentAttribution(
        title=f"Effects of {len(active)} active latents at {splice.site} on {name}",
        tables={"latents": table, "error_term": errors},
        arrays={
            "latent": active.astype(np.int64),
            **{key: found[key][active] for key in ("gradient", "direct") if key in found},
            "error": found["error"],
            **({} if truth is None else {"measured": chosen.astype(np.int64), "exact": truth}),
        },
        facts={
            "metric": name,
            "site": splice.site,
            "instead": "zero" if corrupt is None else "latents of the corrupt image",
            "active": len(active),
            "measured": n_truth,
            **agreement,
        },
        words=WORDS,
        caveats=_caveats(agreement, "direct" in found, n_truth),
        provenance=provenance(
            model=model, images=images if isinstance(images, ImageSet) else None, seed=seed, dictionary=splice.identity
        ),
    )


def _splice_of(model: Any, site: str | None) -> SpliceParts:
    name = site_of_latents(model, site)
    splice = next(splice for splice in model.parts.splices if splice.latents_site == name)
    if not splice.error:
        raise RefusedMethod(
            f"the dictionary at {splice.site} is spliced without its error term, so the model is another one. Use "
            "sae.splice(model, dictionary)."
        )
    if model.graph[splice.site].layer is None:
        raise RefusedMethod(f"{splice.site} is in no block; effects of its latents are those of edits at {name}.")
    return splice


def _check(model: Any, images: Any, corrupt: Any, name: str, function: Callable, exact: int) -> None:
    if model.parts.head is None:
        raise BadData("attribution needs logits, and this model has no head. For CLIP: clip.classifier(class_names).")
    if name in metric_functions.WITHOUT_TARGET and function is metric_functions.METRICS[name]:
        raise RefusedMethod(f"{name!r} compares with the clean run, and there its slope is exactly zero.")
    if function is metric_functions.METRICS.get("accuracy"):
        raise RefusedMethod("'accuracy' has no slope; use 'logit_diff' or 'logprob'.")
    if len(images) == 0:
        raise BadData("attribution needs at least one image.")
    if corrupt is not None and len(corrupt) != len(images):
        raise ShapeMismatch(f"{len(corrupt)} corrupt images for {len(images)}: one each.")
    if exact < 0:
        raise OutOfRange(f"exact={exact}: 0 or more latents.")


def _estimates(
    model: Any,
    splice: SpliceParts,
    images: Any,
    corrupt: Any,
    function: Callable,
    labels: str | None,
    batch_size: int,
    progress: bool,
) -> dict[str, np.ndarray]:
    """`[latent image]` estimates, `[1 image]` of the error term, `[latent]` code and fires."""
    names = [splice.latents_site, splice.error_site]
    last = f"blocks.{len(model.parts.blocks) - 1}.hook_resid_post"
    along = None
    with contextlib.suppress(RefusedMethod):
        along = stream_directions(model, splice).detach()
    seen = [*names, last, *([splice.reads] if splice.reads != splice.site else [splice.site])]
    parts: dict[str, list[Tensor]] = {"gradient": [], "error": [], "direct": []}
    code = fires = 0
    given = getattr(images, "labels", None) is not None and labels != "predicted"
    if labels == "given" and not given:
        raise BadData("labels='given', but the images have no labels.")
    with track(len(images), "latent attribution", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            run = model.run(some, capture=seen, grad=True)
            own = some.label_tensor if given else None
            classes = metric_functions.classes_of(run.logits.detach(), own)
            values = function(run.logits, *classes, run.logits.detach())
            if not torch.isfinite(values).all():
                raise NotFinite(f"the metric is NaN or Inf on an image from {start} on.")
            slopes = torch.autograd.grad(values.sum(), [run.cache[name] for name in names])
            f, e = (run.cache[name].detach() for name in names)
            change, missed = f, e
            if corrupt is not None:
                other = model.run(corrupt[start : start + batch_size], capture=names).cache
                change, missed = f - other[names[0]], e - other[names[1]]
            parts["gradient"].append((slopes[0] * change).sum(1).T.double().cpu())
            parts["error"].append((slopes[1] * missed).flatten(1).sum(1)[None].double().cpu())
            if along is not None:
                read = run.cache[seen[-1]].detach()
                read = read.flatten(2) if read.ndim == 4 else read
                slope = _slope_of_stream(model, run.cache[last].detach(), function, classes)
                at = slope @ along.to(slope).T
                scale = splice.scale(read)
                at = at if scale is None else at * scale[..., :1].to(at)
                parts["direct"].append((at * change.to(at)).sum(1).T.double().cpu())
            code = code + f.double().sum((0, 1)).cpu()
            fires = fires + (f > 0).any(1).double().sum(0).cpu()
            tokens = f.shape[1]
            bar.update(len(f))
    found = {key: torch.cat(value, 1).numpy() for key, value in parts.items() if value}
    return {**found, "code": (code / (len(images) * tokens)).numpy(), "fires": (fires / len(images)).numpy()}


def _slope_of_stream(model: Any, stream: Tensor, function: Callable, classes: tuple[Tensor, Tensor]) -> Tensor:
    """dM/d stream at the read-out, the norm's scale held."""
    with torch.enable_grad():
        x = stream.requires_grad_(True)
        logits = frozen_read_out(model)(x)
        (slope,) = torch.autograd.grad(function(logits, *classes, logits.detach()).sum(), x)
    return slope


def _to_measure(estimate: np.ndarray, active: np.ndarray, exact: int, seed: int) -> np.ndarray:
    """The largest, and as many others at random."""
    order = active[np.argsort(-np.abs(estimate[active]), kind="stable")]
    rest = order[exact:]
    drawn = np.random.default_rng(seed).permutation(rest)[:exact]
    return np.sort(np.concatenate([order[:exact], drawn]))


def _agreement(found: dict, chosen: np.ndarray, truth: np.ndarray | None, seed: int) -> dict[str, float]:
    if truth is None or len(chosen) < 3:
        return {}
    facts: dict[str, float] = {}
    for key in ("gradient", "direct"):
        if key not in found:
            continue
        estimate = found[key][chosen]
        for word, statistic in (("spearman", _spearman), ("pearson", _pearson)):
            value, low, high = interval_of(
                lambda a, b, s=statistic: s(a.mean(0), b.mean(0)), estimate.T, truth.T, resamples=300, seed=seed
            )
            if np.isfinite([value, low, high]).all():
                facts |= {f"{key}_{word}": value, f"{key}_{word}_low": low, f"{key}_{word}_high": high}
    return facts


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def _table(
    found: dict, estimate: dict, active: np.ndarray, chosen: np.ndarray, truth: np.ndarray | None, seed: int
) -> pl.DataFrame:
    columns: dict[str, Any] = {"latent": active.astype(np.int64)}
    for key in estimate:
        one = bootstrap(found[key][active], seed=seed)
        columns |= {key: one.effect, f"{key}_low": one.low, f"{key}_high": one.high}
    where = {int(latent): i for i, latent in enumerate(chosen)} if truth is not None else {}
    measured = bootstrap(truth, seed=seed) if truth is not None else None
    for key, word in (("exact", "effect"), ("exact_low", "low"), ("exact_high", "high")):
        numbers = [float(getattr(measured, word)[where[i]]) if i in where else None for i in active.tolist()]
        columns[key] = pl.Series(key, numbers, dtype=pl.Float64)
    columns |= {"code": found["code"][active], "fires": found["fires"][active]}
    columns["n"] = np.full(len(active), found["gradient"].shape[1])
    return pl.DataFrame(columns).fill_nan(None).sort(pl.col("gradient").abs(), descending=True)


def _caveats(agreement: dict[str, float], direct: bool, n: int) -> tuple[str, ...]:
    said = []
    if "gradient_spearman" in agreement:
        a = agreement
        said.append(
            f"On the {n} latents that were measured the gradient's ranks correlate with the truth by "
            f"{a['gradient_spearman']:.2f} [{a['gradient_spearman_low']:.2f}, {a['gradient_spearman_high']:.2f}]"
            + (f", those of the direct path by {a['direct_spearman']:.2f}." if "direct_spearman" in a else ".")
        )
    else:
        said.append("Nothing was measured (or too little): these are first-order estimates, and saturation fools them.")
    if direct:
        said.append("The direct path leaves out every later block: for early dictionaries it says little.")
    return tuple(said)
