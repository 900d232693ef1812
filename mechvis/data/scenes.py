"""Procedural scenes: images whose every factor is known, so that an interpretability claim can be checked.

A scene is one coloured shape on a textured background. The data set answers: *does the model read the object or its
surroundings?* Shape and background agree as often as you ask, every object comes with its exact mask, and pairs of
images differ in one factor only. What a scene consists of is in `scene_factors`, how it is drawn in `scene_drawing`.
"""

from dataclasses import dataclass

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess, plain_scaling
from mechvis.data.scene_drawing import Show, render, render_masks
from mechvis.data.scene_factors import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    TEMPLATES,
    VERSION,
    Change,
    Group,
    SceneFactors,
    captions,
    sample_factors,
    swap,
)
from mechvis.errors import unknown

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "IMAGE_SIZE",
    "SHAPES",
    "TEMPLATES",
    "VERSION",
    "Change",
    "Group",
    "SceneFactors",
    "ScenePairs",
    "Show",
    "captions",
    "render",
    "render_masks",
    "sample_factors",
    "scene_pairs",
    "scene_set",
    "scenes",
    "swap",
]


def scenes(
    n: int = 256,
    *,
    seed: int = 0,
    correlation: float | None = None,
    group: Group | None = None,
    show: Show = "both",
    start: int = 0,
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """The bundled data set: shapes on textures, labelled by shape, grouped by whether the background agrees.

    Images are drawn when read. The ids are `scenes/<seed>/<number>`, so image sets with disjoint numbers of one seed,
    or with different seeds, share no image.

    Args:
        n: Number of images.
        seed: Number of the data set, 0 or more.
        correlation: Probability that the background is the shape's partner texture; None or 0 is independent.
        group: Draw only "consistent" or only "conflicting" scenes.
        show: "both", "object" (on flat grey) or "background" (no object; then the set has no masks).
        start: Number of the first image.
        preprocess: The set's own preprocessing; by default that of the bundled models (mean and std 0.5).

    Returns:
        Images, labels (shape), masks, groups ("consistent" or "conflicting"), captions and the factors as columns.

    Raises:
        BadData: If a setting is out of range.

    Example:
        >>> images = scenes(8, seed=7)
        >>> images.read(0).shape, images.groups[0] in ("consistent", "conflicting")
        ((64, 64, 3), True)
    """
    factors = sample_factors(n, seed=seed, correlation=correlation, group=group, start=start)
    recipe = f"scenes version={VERSION} seed={seed} start={start} correlation={correlation or 0} group={group}"
    ids = tuple(f"scenes/{seed}/{number:06d}" for number in range(start, start + n))
    return scene_set(factors, name="scenes", ids=ids, recipe=recipe, show=show, preprocess=preprocess)


def scene_set(
    factors: SceneFactors,
    *,
    name: str,
    ids: tuple[str, ...],
    recipe: str,
    show: Show = "both",
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """An image set of exactly these scenes, for factors that were chosen by hand.

    Args:
        factors: One row per image.
        name: Name of the set.
        ids: One name per image.
        recipe: Text that fixes the images; it stands in for the pixels in the set's hash.
        show: What to draw, see `render`.
        preprocess: The set's own preprocessing; by default that of the bundled models (mean and std 0.5).

    Example:
        >>> factors = sample_factors(2, seed=0)
        >>> len(scene_set(factors, name="mine", ids=("a", "b"), recipe="two scenes of seed 0"))
        2
    """
    if show not in ("both", "object", "background"):
        raise unknown("rendering", show, ("both", "object", "background"))

    def read(row: int) -> np.ndarray:
        return render(factors[row : row + 1], show=show)[0][0]

    def read_mask(row: int) -> np.ndarray:
        return render_masks(factors[row : row + 1])[0]

    names = {"background": BACKGROUNDS, "colour": COLOURS}
    columns = {name: np.array(values)[getattr(factors, name)] for name, values in names.items()}
    columns |= {name: getattr(factors, name) for name in ("size", "x", "y", "angle")}
    return ImageSet(
        name=name,
        ids=ids,
        read=read,
        rows=np.arange(len(factors), dtype=np.int64),
        labels=factors.shape,
        class_names=SHAPES,
        read_mask=None if show == "background" else read_mask,
        groups=np.where(factors.consistent, "consistent", "conflicting"),
        captions=captions(factors),
        columns=columns,
        preprocess=preprocess or plain_scaling(IMAGE_SIZE, IMAGE_SIZE),
        recipe=f"{recipe} show={show}",
    )


@dataclass(frozen=True, kw_only=True)
class ScenePairs:
    """Aligned images that differ in one factor: row ``i`` of both sets is the same scene but for `change`."""

    clean: ImageSet
    """The scenes as drawn."""
    corrupt: ImageSet
    """The same scenes with one factor replaced."""
    change: Change
    """Which factor: "object", "background" or "colour"."""

    def __len__(self) -> int:
        return len(self.clean)


def scene_pairs(
    n: int = 256,
    *,
    seed: int = 0,
    change: Change = "object",
    correlation: float | None = None,
    group: Group | None = None,
    start: int = 0,
    preprocess: Preprocess | None = None,
) -> ScenePairs:
    """Clean and corrupt scenes that are equal pixel for pixel outside the edited factor.

    An object swap draws another shape in the same place, size and colour (pixels outside both objects are equal); a
    background swap another texture in the same tones (pixels of the object are equal); a colour edit another object
    colour (pixels outside the object are equal).

    Args:
        n: Number of pairs.
        seed: Number of the data set, 0 or more.
        change: "object", "background" or "colour".
        correlation: See `scenes`; holds for the clean images.
        group: See `scenes`; holds for the clean images.
        start: Number of the first pair.
        preprocess: Both sets' own preprocessing; by default that of the bundled models (mean and std 0.5).

    Raises:
        BadData: If a setting is out of range.
        UnknownName: If `change` is none of the three.

    Example:
        >>> pairs = scene_pairs(4, seed=0, change="background")
        >>> bool((pairs.clean.labels == pairs.corrupt.labels).all())
        True
    """
    factors = sample_factors(n, seed=seed, correlation=correlation, group=group, start=start)
    numbers = range(start, start + n)
    recipe = f"scenes version={VERSION} seed={seed} start={start} correlation={correlation or 0} group={group}"
    clean_ids = tuple(f"scenes/{seed}/{number:06d}" for number in numbers)
    return ScenePairs(
        clean=scene_set(factors, name="scenes", ids=clean_ids, recipe=recipe, preprocess=preprocess),
        corrupt=scene_set(
            swap(factors, change, seed=seed),
            name=f"scenes, {change} swapped",
            ids=tuple(f"{name}/{change}" for name in clean_ids),
            recipe=f"{recipe} swap={change}",
            preprocess=preprocess,
        ),
        change=change,
    )
