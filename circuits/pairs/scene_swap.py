"""Pairs of bundled scenes: the same scene drawn again with another object, background or colour.

Exact: what is not part of the edit is equal pixel by pixel before preprocessing (`mechvis.data.scene_pairs`).

The two classes of a pair:

* `object`: the two shapes;
* `background`: the shape, and the shape that the *new* background goes with. The clean scene's background agrees with
  its shape (`group="consistent"`), so clean, both speak for the shape, and corrupt, the background speaks for the other
  class. That class is known from how the scene was made, not from what the model says;
* `colour`: the shape; what the model says on the corrupt half counts.
"""

from typing import Any

import numpy as np

from circuits.pairs.halves import pairs_of, preprocess_of
from circuits.pairs.pairs import Pairs
from mechvis.data.scenes import BACKGROUNDS, SHAPES, Change, Group, scene_pairs
from mechvis.errors import BadData
from mechvis.labels import with_model_classes


def scene_swap(
    model: Any,
    n: int = 256,
    *,
    change: Change = "object",
    seed: int = 0,
    correlation: float | None = None,
    group: Group | None = None,
    start: int = 0,
) -> Pairs:
    """Clean and corrupt scenes that differ in one factor.

    Args:
        model: a wrapped model; where it has class names they must include the shapes.
        n: pairs.
        change: `object`, `background` or `colour`.
        seed: number of the data set.
        correlation, group: of the clean scenes, see `mechvis.data.scenes`; for `background` they are `consistent`.
        start: number of the first pair.

    Raises:
        BadData: a setting out of range; another group or a correlation for `background`; classes without the shapes.
        UnknownName: another change.

    Example:
        >>> pairs = scene_swap(model, n=64, change="background", seed=7)                           # doctest: +SKIP
    """
    if change == "background":
        if correlation is not None or group not in (None, "consistent"):
            raise BadData(
                "a background swap starts from scenes whose background goes with their shape; leave correlation= and "
                "group= out. Other backgrounds have no class of their own: mechvis.data.scene_pairs and aligned(...)."
            )
        group = "consistent"
    preprocess = preprocess_of(model)
    drawn = scene_pairs(n, seed=seed, change=change, correlation=correlation, group=group, start=start)
    clean, corrupt = (with_model_classes(images, model) for images in (drawn.clean, drawn.corrupt))
    against = {"object": corrupt.labels, "background": None, "colour": None}[change]
    if change == "background":
        partner = [SHAPES[BACKGROUNDS.index(name)] for name in corrupt.columns["background"]]
        against = np.array([clean.class_names.index(name) for name in partner])
    return pairs_of(
        model,
        f"scenes, {change} swap",
        clean.pixels_for(preprocess),
        corrupt.pixels_for(preprocess),
        ids=clean.ids,
        clean_labels=clean.labels,
        corrupt_labels=against,
        masks=clean.masks_for(preprocess),
        corrupt_masks=corrupt.masks_for(preprocess),
    )
