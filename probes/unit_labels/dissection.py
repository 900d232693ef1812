"""Network Dissection: units as detectors of regions.

1. Per unit, a threshold that a share of 0.005 of all its patch values exceeds, over the whole data set (**K**).
2. Its maps, bilinearly enlarged to the masks' size, are cut at the threshold.
3. IoU with each concept's masks, intersection and union summed over the data set; the best concept is the label, and
   the unit a detector of it if IoU > 0.04.

For a transformer the map is the patch grid. A share of 0.005 of the patches is far smaller than most concepts, so IoU
has a ceiling well below 1: compare with the ceiling (`best possible`, if every active pixel were inside) and with the
same unit on shuffled images, both of which are in the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.record import finite

Masks = Callable[[np.ndarray], Bool[np.ndarray, "image concept height width"]]

QUANTILE = 0.005
DETECTOR = 0.04
_UNITS = 64
"""Units whose enlarged maps are in memory together."""


def thresholds(maps: Float[np.ndarray, "image unit down across"], quantile: float = QUANTILE) -> np.ndarray:
    """Value of each unit that a share `quantile` of its patches, over all images, exceeds `[unit]`.

    Raises:
        OutOfRange: a share outside (0, 1).
    """
    if not 0 < quantile < 1:
        raise OutOfRange(f"quantile={quantile}: give the share of patches above the threshold, e.g. 0.005.")
    return np.quantile(np.moveaxis(maps, 1, 0).reshape(maps.shape[1], -1), 1 - quantile, axis=1)


def iou(
    maps: Float[np.ndarray, "image unit down across"],
    masks: Masks | Bool[np.ndarray, "image concept height width"],
    *,
    quantile: float = QUANTILE,
    batch_size: int = 32,
) -> tuple[Float[np.ndarray, "unit concept"], Float[np.ndarray, "unit concept"]]:
    """IoU of every unit with every concept over a data set, and the largest that as many active pixels could reach.

    Args:
        maps: values of units on the patches, e.g. from `unit_maps`.
        masks: `[image concept height width]`, or a function from image places to them (masks of a large set are made
            when they are needed).
        quantile: share of patches above a unit's threshold (**K**: 0.005).
        batch_size: images at once.

    Returns:
        (IoU, ceiling), both `[unit concept]`.

    Raises:
        ShapeMismatch: maps without the four axes, or masks of other images.
        OutOfRange: see :func:`thresholds`.
        NotFinite: NaN or Inf in the maps.
    """
    maps = np.asarray(maps)
    if maps.ndim != 4 or 0 in maps.shape:
        raise ShapeMismatch(f"maps are [image unit down across], got {list(maps.shape)}.")
    limits, n_units = thresholds(finite("the maps", maps), quantile), maps.shape[1]
    both = active = there = 0
    for start in range(0, len(maps), batch_size):
        part = np.arange(start, min(start + batch_size, len(maps)))
        where = np.asarray(masks(part) if callable(masks) else masks[part])
        if where.ndim != 4 or len(where) != len(part):
            raise ShapeMismatch(
                f"masks of {len(part)} images are [image concept height width], got {list(where.shape)}."
            )
        seen = where.reshape(len(part), where.shape[1], -1)
        there = there + seen.sum((0, 2))
        found = [_overlap(maps[part, i : i + _UNITS], limits[i : i + _UNITS], where) for i in range(0, n_units, _UNITS)]
        both = both + np.concatenate([inside for inside, _ in found])
        active = active + np.concatenate([on for _, on in found])
    either = active[:, None] + there[None, :] - both
    best = np.minimum(active[:, None], there[None, :])
    most = np.maximum(active[:, None], there[None, :])
    return both / np.maximum(either, 1), best / np.maximum(most, 1)


def _overlap(maps: np.ndarray, limits: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels on in each unit and concept, and on in each unit, over some images."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    large = F.interpolate(tensor, size=masks.shape[2:], mode="bilinear", align_corners=False).numpy()
    on = rearrange(large > limits[None, :, None, None].astype(np.float32), "i u y x -> u (i y x)")
    seen = rearrange(masks, "i c y x -> (i y x) c")
    return on.astype(np.float32) @ seen.astype(np.float32), on.sum(1)


def network_dissection(
    maps: Float[np.ndarray, "image unit down across"],
    masks: Masks | Bool[np.ndarray, "image concept height width"],
    units: Sequence[str],
    concepts: Sequence[str],
    *,
    quantile: float = QUANTILE,
    detector: float = DETECTOR,
    shuffles: int = 3,
    seed: int = 0,
    batch_size: int = 32,
) -> pl.DataFrame:
    """The best concept of every unit by IoU, beside the best on shuffled images.

    Args:
        units: names, one per map.
        concepts: names, one per mask.
        detector: a unit is a detector above this IoU (**K**: 0.04), if it is also above what shuffled images give.
        shuffles: shuffled assignments of maps to images for the control; the largest of their best IoUs counts.
        seed: of the shuffles.
        quantile: see :func:`iou`.
        batch_size: see :func:`iou`.

    Returns:
        One row per unit: label, IoU, its ceiling, the control, whether it is a detector.

    Raises:
        ShapeMismatch: another number of names.
    """
    found, ceiling = iou(maps, masks, quantile=quantile, batch_size=batch_size)
    if found.shape != (len(units), len(concepts)):
        raise ShapeMismatch(f"IoU of {list(found.shape)}, names of {len(units)} units and {len(concepts)} concepts.")
    generator = np.random.default_rng(seed)
    control = np.zeros(len(units))
    for _ in range(shuffles):
        order = generator.permutation(len(maps))
        control = np.maximum(control, iou(maps[order], masks, quantile=quantile, batch_size=batch_size)[0].max(1))
    best = found.argmax(1)
    value = found[np.arange(len(units)), best]
    return pl.DataFrame(
        {
            "unit": list(units),
            "label": [concepts[i] for i in best],
            "iou": value,
            "ceiling": ceiling[np.arange(len(units)), best],
            "shuffled": control,
            "detector": (value > detector) & (value > control),
            "n": np.full(len(units), len(maps)),
        }
    )


def settings_in_words(quantile: float, detector: float) -> dict[str, Any]:
    """What the columns of :func:`network_dissection` hold."""
    return {
        "iou": f"intersection over union of the {quantile:.1%} most active patches with the concept's masks",
        "ceiling": "the largest IoU that so many active pixels could reach",
        "shuffled": "largest IoU with any concept when maps and images do not belong together",
        "detector": f"IoU above {detector} and above the shuffled one",
    }
