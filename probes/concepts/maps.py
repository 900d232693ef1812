"""Concept maps against object masks: is a concept the object, or what is around it?

The map of a concept is its code in every place (patch or crop). Against the mask of the object it has an AUROC per
image: 1, the concept is stronger on the object than anywhere else; 0, it is the background; .5, neither.

Three controls say what such a figure is worth:

* **Masks of other images.** Objects stand in the middle, so a map that only knows the middle scores high. `moves` is
  the AUROC against the image's own mask minus that against the other images' masks: does the map go where the object
  goes?
* **The middle itself** as a map.
* **Random directions** in the activations (`h . v`). Tokens of the object differ from the others in many directions at
  once, so some directions drawn at random look like the object: the share of them that would be called so is given.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite
from mechvis.stats import Estimate, bootstrap


def object_places(masks: Any, grid: tuple[int, int], share: float = 0.5) -> Bool[np.ndarray, "image place"]:
    """Which places of a grid are on the object: at least this share of their pixels.

    Args:
        masks: bool `[image height width]`.
        grid: places (down, across); the masks' size is a multiple of it, or is cut into cells as equal as possible.
        share: of the pixels.

    Raises:
        ShapeMismatch: not masks.
        OutOfRange: a share outside (0, 1].

    Example:
        >>> object_places(np.array([[[True, True, False, False]] * 4]), (2, 2)).tolist()
        [[True, False, True, False]]
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise ShapeMismatch(f"bool masks [image height width] are wanted, got {masks.dtype} {list(masks.shape)}.")
    if not 0 < share <= 1:
        raise OutOfRange(f"share={share} lies above 0 and is at most 1.")
    down, across = grid
    rows = np.array_split(np.arange(masks.shape[1]), down)
    columns = np.array_split(np.arange(masks.shape[2]), across)
    cells = [masks[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((1, 2)) for r in rows for c in columns]
    return np.stack(cells, axis=1) >= share


def map_auroc(
    maps: Float[np.ndarray, "image place concept"], on_object: Bool[np.ndarray, "image place"]
) -> Float[np.ndarray, "concept image"]:
    """AUROC of every map against the object, image by image; NaN where an image has no object or nothing else.

    Raises:
        ShapeMismatch: maps and object do not fit.
        NotFinite: NaN or Inf in the maps.

    Example:
        >>> map_auroc(np.array([[[0.9], [0.1], [0.5]]]), np.array([[True, False, False]]))
        array([[1.]])
    """
    from scipy.stats import rankdata

    maps = np.asarray(maps, np.float64)
    if maps.ndim != 3 or maps.shape[:2] != np.shape(on_object):
        raise ShapeMismatch(
            f"maps [image place concept] and an object [image place] are wanted, got {list(maps.shape)} and "
            f"{list(np.shape(on_object))}."
        )
    ranks = rankdata(finite("the maps", maps), axis=1)
    inside = on_object.sum(1)
    outside = on_object.shape[1] - inside
    total = (ranks * on_object[..., None]).sum(1).T - inside * (inside + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((inside > 0) & (outside > 0), total / (inside * outside), np.nan)


def against_masks(
    maps: Float[np.ndarray, "image place concept"],
    activations: Float[np.ndarray, "image place d"] | None,
    on_object: Bool[np.ndarray, "image place"],
    grid: tuple[int, int],
    *,
    random: int = 100,
    seed: int = 0,
) -> tuple[pl.DataFrame, dict[str, float]]:
    """Mean AUROC of each concept's map with its interval, and what it is called, beside the controls.

    A concept is `object` if its AUROC lies above .5 and it moves with the object, both for sure (95 % intervals over
    images); `background` if both lie below for sure; else `neither`.

    Args:
        maps: codes.
        activations: what they are codes of; None: no random directions.
        on_object: from :func:`object_places`.
        grid: places (down, across).
        random: how many random directions.
        seed: of these and of the bootstrap.

    Returns:
        A table with one row per concept (`auroc`, `moves`, each with `_low` and `_high`; `auroc_n`, `what`), and the
        controls by name.

    Raises:
        BadData: no image has an object and something else.
    """
    own = map_auroc(maps, on_object)
    if np.isnan(own).all():
        raise BadData("no image has both places on the object and places off it: look at the masks and the grid.")
    moves = own - elsewhere(maps, on_object)
    mean, moved = bootstrap(own, seed=seed), bootstrap(moves, seed=seed)
    down, across = np.meshgrid(np.linspace(-1, 1, grid[0]), np.linspace(-1, 1, grid[1]), indexing="ij")
    middle = np.broadcast_to(-(down**2 + across**2).round(9).reshape(1, -1, 1), (*maps.shape[:2], 1))
    controls = {"centre": float(np.nanmean(map_auroc(middle, on_object)))}
    if activations is not None and random:
        directions = np.random.default_rng(seed).normal(size=(activations.shape[-1], random))
        drawn = activations @ directions
        theirs = map_auroc(drawn, on_object)
        found = bootstrap(theirs, seed=seed), bootstrap(theirs - elsewhere(drawn, on_object), seed=seed)
        called = _what(*found)
        low, high = (float(end) for end in np.quantile(found[0].effect, [0.025, 0.975]))
        controls |= {"random_low": low, "random_high": high}
        controls |= {f"random_{what}": float((called == what).mean()) for what in ("object", "background")}
    table = pl.DataFrame(
        {
            "auroc": mean.effect,
            "auroc_low": mean.low,
            "auroc_high": mean.high,
            "auroc_n": mean.n,
            "moves": moved.effect,
            "moves_low": moved.low,
            "moves_high": moved.high,
            "what": _what(mean, moved),
        }
    )
    return table, controls


def elsewhere(
    maps: Float[np.ndarray, "image place concept"], on_object: Bool[np.ndarray, "image place"], others: int = 10
) -> Float[np.ndarray, "concept image"]:
    """Mean AUROC of every map against the masks of other images; NaN with one image."""
    n = len(maps)
    steps = range(1, min(others, n - 1) + 1)
    if n < 2:
        return np.full((maps.shape[2], n), np.nan)
    total, counts = np.zeros((maps.shape[2], n)), np.zeros((maps.shape[2], n))
    for step in steps:
        found = map_auroc(maps, np.roll(on_object, step, axis=0))
        known = ~np.isnan(found)
        total[known] += found[known]
        counts += known
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _what(auroc: Estimate, moves: Estimate) -> np.ndarray:
    on, off = (auroc.low > 0.5) & (moves.low > 0), (auroc.high < 0.5) & (moves.high < 0)
    return np.where(on, "object", np.where(off, "background", "neither"))
