"""Do maps find the object? Pointing and AUROC against masks, with the baselines that any map has to beat.

* `pointing`: does the pixel with the largest value lie on the object?
* `auroc`: chance that a pixel of the object has a larger value than one of the background. Below one half, the map is
  about the background.

Baselines (a map that is no better than these has found nothing): the *centre prior*, a map that falls off from the
middle of the image, which does well wherever photographers centre their objects; the *mask area*, a map that points at
random; and the same maps about *another text* of the property.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mechvis import stats
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from probes.textspan.heat import heat_of_groups, patch_cosine
from probes.textspan.reading import LAYERS, Layers, tower_of
from probes.textspan.tasks import Task, check_tasks

ALL, CENTRE, AREA = "all heads", "centre prior", "mask area"

WORDS = {
    "map": "what is laid over the image",
    "task": "the property whose right text of each image the map is about",
    "pointing": "share of images whose largest value lies on the object; low and high: 95 % interval over images",
    "auroc": "chance that a pixel of the object has a larger value than one of the background, mean over images",
    "n": "images with an object and a background",
}


def upsampled(maps: Float[np.ndarray, "image down across"], size: tuple[int, int]) -> np.ndarray:
    """Maps of patches as maps of pixels, bilinear (methods.md 2.3, **C**)."""
    maps = torch.from_numpy(np.ascontiguousarray(maps, dtype=float))[:, None]
    return torch.nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


def localised(
    maps: Float[np.ndarray, "image down across"], masks: Bool[np.ndarray, "image height width"]
) -> dict[str, Float[np.ndarray, " image"]]:
    """`pointing` and `auroc` of one map per image; NaN where a mask is empty or full.

    Several largest pixels count by the share of them that lie on the object, equal values as half a hit.

    Raises:
        ShapeMismatch: not one mask per map.
        NotFinite: NaN or Inf in the maps.

    Example:
        >>> mask = np.zeros((1, 4, 4), bool)
        >>> mask[0, :2, :2] = True
        >>> localised(np.array([[[1.0, 0.0], [0.0, 0.0]]]), mask)["pointing"]
        array([1.])
    """
    maps, masks = finite("the maps", np.asarray(maps, float)), np.asarray(masks, bool)
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks):
        raise ShapeMismatch(f"maps {list(maps.shape)} and masks {list(masks.shape)}: one of each per image is needed.")
    values = upsampled(maps, masks.shape[1:]).reshape(len(maps), -1)
    on = masks.reshape(len(masks), -1)
    area = on.sum(1)
    ranks = rankdata(values, axis=1)
    top = values >= values.max(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = ((ranks * on).sum(1) - area * (area + 1) / 2) / (area * (on.shape[1] - area))
        pointing = (top & on).sum(1) / top.sum(1)
    known = (area > 0) & (area < on.shape[1])
    return {"pointing": np.where(known, pointing, np.nan), "auroc": np.where(known, auroc, np.nan)}


def centre_prior(grid: tuple[int, int]) -> Float[np.ndarray, "down across"]:
    """Minus the distance from the middle of the image, in units of its sides.

    Example:
        >>> centre_prior((3, 3)).argmax()
        np.int64(4)
    """
    down, across = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
    return -np.hypot(down[:, None], across[None, :])


def localisation(
    clip: Any,
    images: ImageSet,
    tasks: Mapping[str, Task],
    *,
    groups: Mapping[str, Any] | None = None,
    layers: Layers = LAYERS,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Record:
    """How well heat maps find the object, for each property, with baselines.

    Args:
        clip: a wrapped CLIP model.
        images: images with masks.
        tasks: properties of these images.
        groups: name -> heads, whose maps are measured apart; besides all heads of the layers.
        layers: whose heads.
        batch_size: images per forward pass.
        seed: of the intervals.
        progress: show a progress bar.

    Returns:
        Record: one row per map and task.

    Raises:
        BadData: no masks.
        ShapeMismatch, UnknownName: tasks about other images, heads that are none.

    Example:
        >>> localisation(clip, images, tasks, groups=found.labels()).table                 # doctest: +SKIP
    """
    tower = tower_of(clip)
    if images.read_mask is None:
        raise BadData(f"{images.name!r} has no masks: what a map should find is not known. Pass masks= to the loader.")
    masks = images.masks_for(tower.preprocess).numpy()
    check_tasks(tasks, len(images), next(iter(tasks.values())).prompts.shape[1] if tasks else 0)
    rows, kept = [], {}
    # Against the mean over the classes: what a map says of this text, not of all texts.
    prompts = {name: task.prompts - task.prompts.mean(0) for name, task in tasks.items()}
    settings = {"layers": layers, "batch_size": batch_size, "progress": progress}
    heats = heat_of_groups(
        clip, images, np.concatenate(list(prompts.values())), {ALL: None, **(groups or {})}, **settings
    )
    every, start = np.arange(len(images)), 0
    for name, task in tasks.items():
        right, wrong = start + task.target, start + (task.target + 1) % len(task.classes)
        start += len(task.classes)
        maps = {group: heat.maps[every, right] for group, heat in heats.items()}
        maps[f"{ALL}, another text"] = heats[ALL].maps[every, wrong]
        if tower.parts.pooling is None and tower.parts.project is not None:
            cosine = patch_cosine(clip, images, task.prompts, batch_size=batch_size, progress=progress)
            maps["cosine of patches"] = cosine[every, task.target] - cosine.mean(1)
        maps[CENTRE] = np.broadcast_to(centre_prior(maps[ALL].shape[1:]), maps[ALL].shape)
        scores = {group: localised(each, masks) for group, each in maps.items()}
        area = masks.mean((1, 2))
        scores[AREA] = {"pointing": np.where((area > 0) & (area < 1), area, np.nan)}
        scores[AREA]["auroc"] = np.where((area > 0) & (area < 1), 0.5, np.nan)
        rows += [{"map": group, "task": name} | _estimated(each, seed) for group, each in scores.items()]
        kept |= {f"{name}/{group}": each for group, each in maps.items()}
    return Record(
        kind="localisation",
        title=f"Heat maps against object masks, {len(images)} images",
        tables={"maps": pl.DataFrame(rows)},
        arrays={name: np.ascontiguousarray(each, dtype=np.float32) for name, each in kept.items()},
        facts={"n": len(images), "mask_area": float(masks.mean())},
        words=WORDS,
        caveats=(
            "Maps are about the right text of each image, minus the mean over the texts of the property.",
            "A patch may hold what was written there from elsewhere: that a map lies on the object does not say that "
            "the model needs these pixels.",
        ),
        provenance=provenance(model=tower, images=images, seed=seed),
    )


def _estimated(scores: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    found = stats.bootstrap(np.stack([scores["pointing"], scores["auroc"]]), seed=seed)
    return {
        "pointing": found.effect[0], "low": found.low[0], "high": found.high[0],
        "auroc": found.effect[1], "auroc_low": found.low[1], "auroc_high": found.high[1], "n": int(found.n[0]),
    }  # fmt: skip
