"""Zero-shot segmentation from heat maps, by the published protocol (methods.md 2.3, **C**).

For each image:

1. The class is the *predicted* one, not the true one.
2. Map: what heads write towards that class minus the mean over all classes, patch by patch; bilinear to the pixels of
   the mask (by the patch size); values below 0 become 0; then stretched to 0 .. 1. A map whose values are all equal
   (0 / 0 in the stretch) becomes 0 everywhere.
3. Foreground: pixels above the map's mean.

Measures over two classes, object and background, pooled over images: pixel accuracy, mean intersection over union, and
mean average precision of the continuous map (1 - map for the background). `ap="image"` averages the average precision
of each image instead, as one half of the code that the protocol descends from does it (**X**: pooled).

The same measures for the centre prior, for everything called background, and for the cosine of patch tokens stand
beside.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis import stats
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from probes.textspan.heat import heat_of_groups, patch_cosine
from probes.textspan.localise import CENTRE, centre_prior, upsampled
from probes.textspan.reading import LAYERS, Layers, tower_of
from probes.textspan.tasks import Task, check_tasks

BINS = 4096
"""Steps of the continuous map in the pooled average precision: enough that it differs from the exact one by < 1e-3."""
NOTHING = "all background"

WORDS = {
    "map": "what is turned into a segmentation",
    "pixel_accuracy": "share of pixels that are on the right side; low and high: 95 % interval over images",
    "miou": "mean of the intersection over union of object and background",
    "map_score": "mean average precision (mAP) of object and background by the continuous map",
    "n": "images",
}


@dataclass(kw_only=True)
class Pooled:
    """Counts over the pixels of all images so far."""

    hits: list[list[int]] = field(default_factory=list)
    """Per image: right pixels, intersection and union of the object, of the background, and all pixels."""
    steps: np.ndarray = field(default_factory=lambda: np.zeros((2, BINS)))
    """Pixels of the background and of the object by the value of the map."""
    precisions: list[float] = field(default_factory=list)
    """Average precision of each image."""

    def add(self, maps: Float[np.ndarray, "image height width"], masks: Bool[np.ndarray, "image height width"]) -> None:
        """Count some images: maps from 0 to 1."""
        for one, mask in zip(maps, masks, strict=True):
            found = one > one.mean()
            both, either = (found & mask).sum(), (found | mask).sum()
            neither, not_both = (~found & ~mask).sum(), (~found | ~mask).sum()
            self.hits.append([both + neither, both, either, neither, not_both, mask.size])
            places = np.minimum((one * BINS).astype(int), BINS - 1)
            counts = [np.bincount(places[where], minlength=BINS) for where in (~mask, mask)]
            own = np.stack(counts).astype(float)
            self.steps += own
            self.precisions.append(mean_precision(own))

    def scores(self, *, ap: Literal["pooled", "image"] = "pooled", seed: int = 0) -> dict[str, Any]:
        """The three measures with intervals over images where they are ratios of sums."""
        hits = np.array(self.hits, float)
        accuracy = stats.interval_of(lambda h: h[:, 0].sum() / h[:, 5].sum(), hits, resamples=1000, seed=seed)

        def miou(h: np.ndarray) -> float:
            sums = h.sum(0)
            return float(np.mean([sums[1] / sums[2] if sums[2] else 1.0, sums[3] / sums[4] if sums[4] else 1.0]))

        union = stats.interval_of(miou, hits, resamples=1000, seed=seed)
        score = mean_precision(self.steps) if ap == "pooled" else float(np.nanmean(self.precisions))
        return {
            "pixel_accuracy": accuracy[0], "low": accuracy[1], "high": accuracy[2],
            "miou": union[0], "miou_low": union[1], "miou_high": union[2], "map_score": score, "n": len(hits),
        }  # fmt: skip


def stretched(maps: Float[np.ndarray, "image height width"]) -> Float[np.ndarray, "image height width"]:
    """Steps 2 of the protocol after upsampling: clipped at 0, stretched to 0 .. 1; equal values become 0.

    Example:
        >>> stretched(np.array([[[-1.0, 0.0, 2.0]], [[3.0, 3.0, 3.0]]])).tolist()
        [[[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    maps = np.clip(finite("the maps", np.asarray(maps, float)), 0, None)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num((maps - low) / (high - low), nan=0.0, posinf=0.0)


def mean_precision(steps: Float[np.ndarray, "2 step"]) -> float:
    """Mean over object and background of the average precision, from counts of pixels by value.

    The background's is that of the turned map. NaN where one of them has no pixel.
    """
    background, thing = steps

    def precision(positive: np.ndarray, negative: np.ndarray) -> float:
        """From the largest value down: precision at each step, weighted by the recall that it adds."""
        if not positive.sum():
            return float("nan")
        hits, all_ = positive[::-1].cumsum(), (positive + negative)[::-1].cumsum()
        gained = positive[::-1] / positive.sum()
        return float((gained[gained > 0] * (hits / np.maximum(all_, 1))[gained > 0]).sum())

    return (precision(thing, background) + precision(background[::-1], thing[::-1])) / 2


def segmentation_scores(
    maps: Float[np.ndarray, "image down across"],
    masks: Bool[np.ndarray, "image height width"],
    *,
    ap: Literal["pooled", "image"] = "pooled",
    seed: int = 0,
) -> dict[str, Any]:
    """The protocol from step 2 on: raw maps of patches in, the three measures out.

    Raises:
        ShapeMismatch: not one mask per map.
        UnknownName: no such `ap`.
        NotFinite: NaN or Inf in the maps.
    """
    if ap not in ("pooled", "image"):
        raise unknown("average precision", ap, ("pooled", "image"))
    maps, masks = np.asarray(maps, float), np.asarray(masks, bool)
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks) or not len(maps):
        raise ShapeMismatch(f"maps {list(maps.shape)} and masks {list(masks.shape)}: one of each per image is needed.")
    pooled = Pooled()
    pooled.add(stretched(upsampled(finite("the maps", maps), masks.shape[1:])), masks)
    return pooled.scores(ap=ap, seed=seed)


def segmentation(
    clip: Any,
    images: ImageSet,
    task: Task,
    *,
    layers: Layers = LAYERS,
    groups: Mapping[str, Iterable[str]] | None = None,
    ap: Literal["pooled", "image"] = "pooled",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Record:
    """Segment the object by what heads write towards the predicted class.

    Args:
        clip: a wrapped CLIP model.
        images: images with masks.
        task: the classes; their truth is not used.
        layers: whose heads are added up.
        groups: name -> heads whose maps are measured too.
        ap: see the module.
        batch_size: images per forward pass.
        seed: of the intervals.
        progress: show a progress bar.

    Returns:
        Record: one row per kind of map.

    Raises:
        BadData: no masks.
        ShapeMismatch, UnknownName: a task about other images, heads that are none, no such `ap`.

    Example:
        >>> segmentation(clip, images, tasks["shape"]).table                               # doctest: +SKIP
    """
    tower = tower_of(clip)
    if images.read_mask is None:
        raise BadData(f"{images.name!r} has no masks, so there is no segmentation to compare with.")
    if ap not in ("pooled", "image"):
        raise unknown("average precision", ap, ("pooled", "image"))
    check_tasks({task.name: task}, len(images), task.prompts.shape[1])
    masks = images.masks_for(tower.preprocess).numpy()
    predicted = np.concatenate(
        [
            task.scores(clip.encode_image(images[start : start + 256]).double().cpu().numpy()).argmax(1)
            for start in range(0, len(images), 256)
        ]
    )
    every = np.arange(len(images))
    prompts = task.prompts - task.prompts.mean(0)
    settings = {"layers": layers, "batch_size": batch_size, "progress": progress}
    heats = heat_of_groups(clip, images, prompts, {"heads": None, **(groups or {})}, **settings)
    found = {name: heat.maps[every, predicted] for name, heat in heats.items()}
    if tower.parts.pooling is None and tower.parts.project is not None:
        cosine = patch_cosine(clip, images, task.prompts, batch_size=batch_size, progress=progress)
        found["cosine of patches"] = cosine[every, predicted] - cosine.mean(1)
    prior = centre_prior(found["heads"].shape[1:])
    # Above its mean, so that clipping at 0 leaves the middle of the image.
    found[CENTRE] = np.broadcast_to(prior - prior.mean(), found["heads"].shape)
    found[NOTHING] = np.zeros_like(found["heads"])
    rows = [{"map": name} | segmentation_scores(maps, masks, ap=ap, seed=seed) for name, maps in found.items()]
    return Record(
        kind="segmentation",
        title=f"Zero-shot segmentation by {task.name}, {len(images)} images",
        tables={"maps": pl.DataFrame(rows)},
        facts={"n": len(images), "task": task.name, "ap": ap, "mask_area": float(masks.mean())}
        | {"accuracy": float((predicted == task.target).mean())},
        words=WORDS,
        caveats=(
            "The class is the predicted one. Pixels above a map's mean count as object, whatever its size.",
            "Where objects are small, calling everything background has a high pixel accuracy: see its row.",
        ),
        provenance=provenance(model=tower, images=images, seed=seed),
    )
