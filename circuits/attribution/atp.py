"""Attribution patching: a first-order estimate of what patching every component would do (methods.md 5.3).

    AtP(n) = (a_n(clean) - a_n(base)) . dM/da_n |clean        summed over the component's tokens and units

Two forwards and one backward for *all* components. Positive: the component supports the behaviour. Two repairs of AtP*
(Kramár et al. 2024; ideas **A**, constants **K**):

* *QK fix* (`qk_fix`, on by default): for queries and keys the softmax is computed again with the patched ones, and the
  gradient is taken behind it, at the pattern. Since `z = pattern v` is linear, that is `(z - z(q')) . dM/dz`, and no
  pattern is stored. Where the softmax is saturated plain AtP sees nothing (two tokens, score 12 -> -12: true effect
  2.000, AtP 0.0003, with the fix 2.000, **P**).
* *GradDrop* (`grad_drop`): direct and indirect effects of opposite sign can cancel in the gradient. For each layer its
  writes are left out of the backward pass; the sizes of the estimates are averaged over these passes (divided by L - 1,
  since a component's own layer gives nothing). It gives sizes, not signed effects: it is for not missing anything.

How far the numbers are off is measured, not assumed: the top and a random sample are patched exactly, and the rank and
sign agreement is part of the result.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribution.agreement import agreement, chosen
from circuits.patching.inside_head import short_way, z_of
from circuits.patching.units import PARTS, HeadPart, row_of
from circuits.task import Task
from mechvis import edits
from mechvis.errors import BadData, EffectlessEdit, NotFinite, RefusedMethod, unknown
from mechvis.metrics import WITHOUT_TARGET
from mechvis.progress import track
from mechvis.results import Result
from mechvis.units import KINDS, Unit

Units = Literal["heads", "q", "k", "v", "attn_out", "mlp_out", "neurons", "tokens"]
SITES = {kind: site for kind, site in {**KINDS, **PARTS}.items() if kind not in ("result", "pattern")}
"""Kind of component -> its site inside a block."""


def atp(
    task: Task,
    *,
    units: Units | Sequence[Units] = "heads",
    qk_fix: bool = True,
    grad_drop: bool = False,
    verify: int | None = 32,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Estimated effect of every component of one or more kinds.

    Args:
        task: images, ablation, metric (:func:`circuits.task`). Ablation by `mean` or `mean_positional` is known for
            heads, `attn_out` and `mlp_out` only.
        units: `heads`, `q`, `k`, `v`, `attn_out`, `mlp_out`, `neurons`, `tokens` (residual stream x token), or several.
        qk_fix: for queries and keys, take the gradient behind the softmax.
        grad_drop: average sizes over passes without one layer each: sizes, not signed effects.
        verify: how many components to patch exactly, half from the top and half at random; None or 0 for none.
        seed: of the bootstrap and of the random components.
        progress: show a progress bar.

    Returns:
        Result: one row per component, effects in the metric's unit, per-image values; a column `exact` and
        `provenance["agreement"]` where components were patched exactly.

    Raises:
        RefusedMethod: a metric that compares with the clean run (`kl`, `js`): its gradient there is zero.
        UnknownName, BadData, OutOfRange, NotFinite.

    Example:
        >>> circuits.atp(task, units=["heads", "mlp_out"]).top(5, by="size")                      # doctest: +SKIP
    """
    kinds = [units] if isinstance(units, str) else list(units)
    _check(task, kinds)
    values, listed = atp_values(task, kinds, qk_fix=qk_fix, grad_drop=grad_drop, progress=progress)
    if not values.any():
        raise BadData(f"every component scores exactly 0: the gradient of {task.metric_name} is zero on the clean run.")
    name = f"|{task.metric_name}|" if grad_drop else task.metric_name
    title = "AtP*" if grad_drop else "AtP"
    result = Result.from_values(
        "attribution_patching",
        f"{title} of {', '.join(kinds)} ({task.ablation})",
        [row_of(unit) | {"kind": unit.kind} for unit in listed],
        {name: values},
        images=task.image_table(),
        provenance=task.provenance(attribution={"method": title, "qk_fix": qk_fix, "grad_drop": grad_drop}),
        baseline={name: float(task.full.mean())},
        seed=seed,
    )
    if not verify:
        return result
    top, random = chosen(values.mean(1), verify, seed)
    places = np.concatenate([top, random])
    exact = exact_effects(task, [listed[i] for i in places], progress=progress).mean(1)
    return _with_exact(result, places, np.abs(exact) if grad_drop else exact, len(top))


def _with_exact(result: Result, places: np.ndarray, exact: np.ndarray, n_top: int) -> Result:
    import polars as pl

    is_top = np.arange(len(places)) < n_top
    estimated = result.rows()["effect"].to_numpy()[places]
    column = np.full(result.table.height, np.nan)
    column[places] = exact
    return replace(
        result,
        table=result.table.with_columns(pl.Series("exact", column).fill_nan(None)),
        provenance={**result.provenance, "agreement": agreement(estimated, exact, top=is_top, random=~is_top)},
    )


def atp_values(
    task: Task, kinds: Sequence[str], *, qk_fix: bool = True, grad_drop: bool = False, progress: bool = False
) -> tuple[Float[np.ndarray, "unit image"], list[Unit]]:
    """Estimates per image, and the unit of each row; see :func:`atp`."""
    n_layers = task.graph.n_layers
    passes: list[int | None] = list(range(n_layers)) if grad_drop else [None]
    found, units = [], []
    size = max(1, task.rows_at_once() // 2)
    with track(len(task) * len(passes), "AtP", " images", show=progress) as bar:
        for start in range(0, len(task), size):
            at = slice(start, min(start + size, len(task)))
            total: Any = 0
            for dropped in passes:
                values, units = _one_pass(task, at, kinds, qk_fix=qk_fix, dropped=dropped)
                total = total + (values.abs() / max(1, n_layers - 1) if grad_drop else values)
                bar.update(at.stop - at.start)
            found.append(total)
    values = torch.cat(found, dim=1).double().cpu().numpy()
    if not np.isfinite(values).all():
        unit, image = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise NotFinite(f"the estimate of {units[unit].name} is NaN or Inf on image {task.ids[image]!r}.")
    return values, units


def _one_pass(
    task: Task, at: slice, kinds: Sequence[str], *, qk_fix: bool, dropped: int | None
) -> tuple[Float[Tensor, "unit image"], list[Unit]]:
    """Estimates of some images from one backward pass, without the writes of one layer in it."""
    model, n_layers = task.model, task.graph.n_layers
    fixed = [kind for kind in kinds if kind in ("q", "k")] if qk_fix else []
    needed = {*kinds, *(["heads", "q", "k", "v"] if fixed else [])}
    sites = [f"blocks.{layer}.{SITES[kind]}" for layer in range(n_layers) for kind in sorted(needed)]
    cut = []
    if dropped is not None:
        cut = [edits.call(f"blocks.{dropped}.{SITES[kind]}", Tensor.detach) for kind in ("attn_out", "mlp_out")]
    with warnings.catch_warnings():
        # Leaving a write out of the backward pass changes no value, as it should.
        warnings.simplefilter("ignore", EffectlessEdit)
        run = model.run(task.clean[at], edits=cut, capture=sites, grad=True)
    clean = run.output.detach()
    value = task.metric(run.output, task.target[at], task.contrast[at], clean)
    if not torch.isfinite(value).all():
        raise NotFinite(f"the metric is NaN or Inf on images {task.ids[at.start]!r} to {task.ids[at.stop - 1]!r}.")
    listed = list(run.cache)
    gradients = torch.autograd.grad(value.sum(), [run.cache[name] for name in listed], allow_unused=True)
    gradient = dict(zip(listed, gradients, strict=True))
    base = base_values(task, at, sites)
    parts, units = [], []
    with torch.no_grad():
        for layer in range(n_layers):
            for kind in kinds:
                site = f"blocks.{layer}.{SITES[kind]}"
                own = run.cache[site].detach()
                if kind in fixed:
                    score = _behind_softmax(task, layer, kind, run.cache, base, gradient, at)
                elif gradient[site] is None:
                    score = _summed(torch.zeros_like(own), kind)
                else:
                    score = _summed((own - base[site]) * gradient[site], kind)
                parts.append(score)
                units += _units(layer, kind, len(score))
    return torch.cat(parts), units


def _behind_softmax(
    task: Task, layer: int, kind: str, cache: Any, base: dict[str, Tensor], gradient: dict, at: slice
) -> Float[Tensor, "head image"]:
    """The QK fix: what the patched query or key does to z, and how the metric answers to z."""
    attn = task.model.parts.blocks[layer].attn
    inside = f"blocks.{layer}.attn.hook_"
    own = {word: cache[inside + word].detach() for word in "qkv"}
    layout = None
    if task.model.parts.layout is not None:
        layout = task.model.parts.layout(tuple(task.clean.shape[2:]))
    other = {**own, kind: base[inside + kind].expand_as(own[kind])}
    change = z_of(attn, own, layout, explicit=False) - z_of(attn, other, layout, explicit=False)
    at_z = gradient[inside + "z"]
    return _summed(change if at_z is None else change * at_z, "heads") * (0 if at_z is None else 1)


def _summed(product: Tensor, kind: str) -> Float[Tensor, "unit image"]:
    """Over everything but images and the kind's own axis."""
    if kind in ("attn_out", "mlp_out"):
        return product.flatten(1).sum(1)[None]
    if kind == "tokens":
        return product.sum(-1).T
    if kind == "neurons":
        return product.sum(1).T
    return product.sum((1, 3)).T


def _units(layer: int, kind: str, n: int) -> list[Unit]:
    """The units of a layer."""
    if kind in PARTS:
        return [HeadPart(layer, kind, index) for index in range(n)]
    return [Unit(layer, kind, None if kind in ("attn_out", "mlp_out") else index) for index in range(n)]


def base_values(task: Task, at: slice, sites: Sequence[str]) -> dict[str, Tensor]:
    """What takes a component's place at these sites, per image (or one row for all).

    Args:
        task: whose ablation counts.
        at: which images.
        sites: canonical names.
    """
    if task.corrupt is not None:
        return dict(task.model.run(task.corrupt[at], capture=list(sites)).cache)
    if task.fixed is None:
        shapes = task.model.run(task.clean[at][:1], capture=list(sites)).cache
        return {site: torch.zeros_like(value) for site, value in shapes.items()}
    found = {}
    for site in sites:
        layer, kind = int(site.split(".")[1]), site.split(".", 2)[2]
        if kind == SITES["heads"]:
            found[site] = task.fixed.z[layer]
        elif kind == SITES["mlp_out"]:
            found[site] = task.fixed.mlp[layer]
        elif kind == SITES["attn_out"]:
            block = task.model.parts.blocks[layer]
            out = block.attn.out(task.fixed.z[layer].flatten(2))
            found[site] = (out if block.scale1 is None else block.scale1(out)).detach()
        else:
            # Only sites that serve the QK fix get here, and `_check` refuses that.
            raise BadData(f"means of {site} are not known to this task.")
    return found


@torch.no_grad()
def exact_effects(task: Task, units: Sequence[Unit], *, progress: bool = False) -> Float[np.ndarray, "unit image"]:
    """Exact effect of patching single components, each by a run of its own.

    Args:
        task: images, ablation, metric.
        units: components, as :func:`atp_values` lists them.
        progress: show a progress bar.
    """
    found = np.empty((len(units), len(task)))
    sites = sorted({unit.site for unit in units})
    size = max(1, task.rows_at_once() // 2)
    with track(len(units) * len(task), "exact patching", " rows", show=progress) as bar, warnings.catch_warnings():
        # A component that is the same on both halves has no effect, and that is an answer.
        warnings.simplefilter("ignore", EffectlessEdit)
        for start in range(0, len(task), size):
            at = slice(start, min(start + size, len(task)))
            clean = task.model.run(task.clean[at]).output
            base = base_values(task, at, sites)
            classes = task.target[at], task.contrast[at]
            before = task.metric(clean, *classes, clean)
            for row, unit in enumerate(units):
                values = base[unit.site].expand(at.stop - at.start, *base[unit.site].shape[1:])
                edit = unit.edit("patch", values={unit.site: values})
                output = task.model.run(task.clean[at], edits=[edit]).output
                found[row, at] = (before - task.metric(output, *classes, clean)).double().cpu().numpy()
                bar.update(at.stop - at.start)
    return found


def _check(task: Task, kinds: Sequence[str]) -> None:
    if not kinds:
        raise BadData("no kind of component given; for example units='heads'.")
    for kind in kinds:
        if kind not in SITES:
            raise unknown("kind of component", kind, SITES)
    if len(set(kinds)) != len(kinds):
        raise BadData(f"units={list(kinds)} repeats a kind.")
    if task.metric_name in WITHOUT_TARGET:
        raise RefusedMethod(
            f"attribution patching with {task.metric_name!r}: the metric compares with the clean run, and there its "
            "gradient is exactly zero. Use 'logit_diff', or circuits.eap(method='ig')."
        )
    known = ("heads", "attn_out", "mlp_out")
    if task.fixed is not None and (strange := [kind for kind in kinds if kind not in known]):
        raise BadData(
            f"ablation={task.ablation!r} has means of heads and writes only, not of {strange[0]!r}. Use pairs, "
            "'resample' or 'zero'."
        )
    if any(kind in ("q", "k") for kind in kinds) and not short_way(task.model, list(range(task.graph.n_layers))):
        raise BadData(
            f"{task.model.parts.family} has a norm between the mixed values and the output projection that sees all "
            "heads: a patched query changes other heads too. Use 'heads' or 'v'."
        )
