"""The CIGMA score of every head, with the guards that keep it honest (methods.md 1.1 step 4, 1.2, 1.4).

For every head h, ablate it and look again at the three views of each image:

    cigma(h)     = mean( BIG - BIG^(-h) )                  positive: without the head, less context dependence  [N]
    damage(h)    = mean JS( q_-bg, q_-bg^(-h) )            change where only the object is visible              [X]
    guarded(h)   = cigma(h) - damage(h)                    a pure context head has damage near 0                [X]
    delta_fig(h) = mean( FIG - FIG^(-h) )                  positive: the head carried the object                [X]
    acc_drop(h)  = accuracy - accuracy^(-h)                                                                     [X]

Why the guard: a head whose removal destroys *all* evidence makes both predictions flat, so BIG^(-h) goes to 0 and the
raw score is maximal (methods.md 1.4, pitfall 1). The raw score is always reported beside the guarded one.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from circuits.information import WITHOUT_CONTEXT, Fill, information, three_views
from mechvis.axes import Mask
from mechvis.data.images import ImageSet
from mechvis.engine import Job, compute
from mechvis.errors import BadData, NotFinite, ShapeMismatch, unknown
from mechvis.means import Means
from mechvis.metrics import jensen_shannon
from mechvis.units import Unit, units_of
from mechvis.wave import wave

Mode = Literal["zero", "mean_positional"]
MODES = ("zero", "mean_positional")
SCORES = ("guarded", "cigma", "damage", "delta_fig", "acc_drop")


def score_heads(
    model: Any,
    images: ImageSet,
    masks: Mask,
    *,
    mode: Mode = "zero",
    fill: Fill = "mean",
    tau: float = 1.0,
    means: Means | None = None,
    removed: Sequence[Unit] = (),
    units: Sequence[Unit] | None = None,
    order: np.ndarray | None = None,
    engine: Literal["wave", "plain"] = "wave",
    budget: str | int | None = None,
    folder: Path | None = None,
    plan: dict[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Per-image scores of every head, `[unit image]` in nats (acc_drop: 0/1), and clean values under `clean/`.

    Args:
        model: a wrapped model with a head.
        images: labelled images.
        masks: object masks at the model's resolution.
        mode: what takes a head's place.
        fill: what removed pixels become.
        tau: softmax temperature.
        means: reference means of `attn.hook_z`, for `mean_positional`.
        removed: heads that are ablated throughout (greedy re-scoring).
        units: heads to score; all by default.
        order: positions of the images to use, in this order; all by default.
        engine: `wave`, or its slow twin `plain`.
        budget: memory for activations.
        folder: keep finished pieces here.
        plan: identifies the job in the folder.
        progress: show a progress bar.
    """
    places = np.arange(len(images)) if order is None else np.asarray(order)
    labels = images.label_tensor[torch.from_numpy(places)]
    listed = list(units) if units is not None else units_of(model, "heads")

    def measure(clean: Tensor, edited: Tensor, part: range) -> dict[str, Tensor]:
        own = labels[part.start : part.stop]
        before, after = information(clean, own, tau=tau), information(edited, own, tau=tau)
        visible = (clean[WITHOUT_CONTEXT].double() / tau).softmax(-1)
        damage = jensen_shannon(visible, (edited[:, WITHOUT_CONTEXT].double() / tau).softmax(-1))
        score = before.big - after.big
        return {
            "guarded": score - damage,
            "cigma": score,
            "damage": damage,
            "delta_fig": before.fig - after.fig,
            "acc_drop": before.correct - after.correct,
            "clean/big": before.big,
            "clean/fig": before.fig,
            "clean/correct": before.correct,
        }

    job = Job(
        model=model,
        n_images=len(places),
        views=views_of(model, images, masks, fill, places),
        n_views=3,
        units=listed,
        replace=replacement_of(mode, means),
        measure=measure,
        base=removed,
        plan=plan,
    )
    what = f"scoring heads ({mode}{f', {len(removed)} removed' if removed else ''})"
    return compute(job, engine=engine, budget=budget, folder=folder, progress=progress, what=what)


def views_of(
    model: Any, images: ImageSet, masks: Mask, fill: Fill, order: np.ndarray | None = None
) -> Callable[[range], Tensor]:
    """Reads the three views of some images; `order`: which images the positions are about."""
    if len(masks) != len(images):
        raise ShapeMismatch(f"{len(images)} images but {len(masks)} masks.")
    order = np.arange(len(images)) if order is None else order

    def views(part: range) -> Tensor:
        which = order[part.start : part.stop]
        pixels = images[which].pixels_for(model.preprocess)
        # Means and blurs are made in at least single precision, also for a model in half precision.
        pixels = pixels.to(torch.promote_types(model.dtype, torch.float32))
        return three_views(pixels, masks[torch.from_numpy(which)], fill)

    return views


def replacement_of(mode: Mode, means: Means | None) -> Callable:
    """What takes a head's place.

    Raises:
        UnknownName: not a mode.
        BadData: `mean_positional` without means.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "zero":
        return lambda views, part: lambda site: None
    if means is None:
        raise BadData("mode='mean_positional' needs means= from reference images.")
    return lambda views, part: lambda site: means[site][None]


@torch.no_grad()
def joint_logits(
    model: Any,
    images: ImageSet,
    masks: Mask,
    sets: Sequence[tuple[Sequence[Unit], Mode]],
    *,
    fill: Fill = "mean",
    means: Means | None = None,
    batch_size: int = 32,
) -> Iterator[tuple[range, list[Tensor]]]:
    """Logits of the three views with several sets of heads ablated, each set together, batch by batch.

    Images are read once for all sets, and no logits are kept: a million images need no more memory than a batch.

    Args:
        model: a wrapped model with a head.
        images: any images.
        masks: object masks at the model's resolution.
        sets: heads that are ablated together, and how.
        fill: what removed pixels become.
        means: reference means of `attn.hook_z`, for `mean_positional`.
        batch_size: images per batch.

    Yields:
        Positions of the images, and per set the logits `[view image class]`.
    """
    model._check_mode()
    views = views_of(model, images, masks, fill)
    jobs = [(list(heads), replacement_of(mode, means)) for heads, mode in sets]
    for start in range(0, len(images), batch_size):
        part = range(start, min(start + batch_size, len(images)))
        seen = views(part)
        pixels = model.inputs(seen.flatten(0, 1).to(model.device, model.dtype))
        found = [wave(model.parts, pixels, [], replace(seen, part), base=heads)[0] for heads, replace in jobs]
        for (heads, _), logits in zip(jobs, found, strict=True):
            if not torch.isfinite(logits).all():
                names = ", ".join(unit.name for unit in heads) or "nothing"
                raise NotFinite(f"ablating {names} gives NaN or Inf on one of the images {part.start} to {part.stop}.")
        yield part, [logits.unflatten(0, (3, len(part))) for logits in found]
