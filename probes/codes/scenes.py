"""An example hierarchy: the bundled scenes as shape families, shapes, colours and backgrounds.

    scene -> round | straight | pointed | curved -> circle | ring | ... -> red circle | ... -> red circle, striped | ...

Scenes are drawn from independent factors, so any order of them is a tree; this one puts what is drawn as one object
first. As a graph, no order is preferred: `red circle` is below `circle` and below `red`, and a leaf of three factors
has six paths, each of which is right.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES
from mechvis.errors import BadData, unknown
from probes.codes.hierarchy import Hierarchy

FAMILIES = {
    "round": ("circle", "ring"),
    "straight": ("square", "cross"),
    "pointed": ("triangle", "star"),
    "curved": ("crescent", "heart"),
}
LEVELS = ("family", "shape", "colour", "background")
ROOT = "scene"


def scene_hierarchy(levels: Sequence[str] = LEVELS, *, graph: bool = False) -> Hierarchy:
    """The tree (or graph) over the factors of scenes, without embeddings.

    Args:
        levels: factors from above, each once; `family` only directly above `shape`.
        graph: every combination of factors, below each combination with one factor less; no `family` then.

    Raises:
        UnknownName: no such factor.
        BadData: a factor twice, a family that is not directly above the shape, or a family in a graph.

    Example:
        >>> tree = scene_hierarchy(("family", "shape", "colour"))
        >>> tree.names[:6], len(tree.leaves), tree.depth
        (('scene', 'round', 'straight', 'pointed', 'curved', 'circle'), 48, 3)
    """
    _check(levels)
    values = {"colour": COLOURS, "background": BACKGROUNDS, "shape": SHAPES, "family": tuple(FAMILIES)}
    below: dict[str, list[str]] = {}
    if graph:
        if "family" in levels:
            raise BadData("a family is not a factor of its own: leave it out of the levels of a graph.")
        for size in range(1, len(levels) + 1):
            for chosen in itertools.combinations(levels, size):
                for entries in itertools.product(*(values[level] for level in chosen)):
                    known = dict(zip(chosen, entries, strict=True))
                    for level in chosen:
                        above = {name: value for name, value in known.items() if name != level}
                        below.setdefault(_name(above), []).append(_name(known))
        return Hierarchy.of(below)
    combinations: list[dict[str, str]] = [{}]
    for level in levels:
        grown = []
        for known in combinations:
            options = FAMILIES[known["family"]] if level == "shape" and "family" in known else values[level]
            grown += [{**known, level: value} for value in options]
        for new in grown:
            parent = {name: value for name, value in new.items() if name != level}
            below.setdefault(_name(parent), []).append(_name(new))
        combinations = grown
    return Hierarchy.of(below)


def scene_concepts(images: Any, hierarchy: Hierarchy, levels: Sequence[str] = LEVELS) -> Int[np.ndarray, " image"]:
    """The leaf of each image of a set of scenes.

    Args:
        images: from `mechvis.data.scenes`.
        hierarchy: from :func:`scene_hierarchy` with the same levels.
        levels: those levels.

    Raises:
        BadData: images that are no scenes.

    Example:
        >>> scene_concepts(mechvis.data.scenes(4), tree)                                       # doctest: +SKIP
    """
    _check(levels)
    if images.labels is None or not {"colour", "background"} <= set(images.columns):
        raise BadData(f"{images.name!r} has no shape, colour and background: these are no scenes.")
    family = {shape: name for name, shapes in FAMILIES.items() for shape in shapes}
    shapes = [images.class_names[i] for i in images.labels]
    columns = {
        "shape": shapes,
        "family": [family[shape] for shape in shapes],
        "colour": images.columns["colour"].tolist(),
        "background": images.columns["background"].tolist(),
    }
    place = {name: i for i, name in enumerate(hierarchy.names)}
    rows = [{level: columns[level][i] for level in levels} for i in range(len(images))]
    names = [_name(row) for row in rows]
    if strange := [name for name in names if name not in place]:
        raise unknown("concept", strange[0], hierarchy.names)
    return np.array([place[name] for name in names])


def scene_texts(hierarchy: Hierarchy) -> list[str]:
    """A caption-like text for each concept after the root, for :func:`probes.codes.place_by_texts`.

    Example:
        >>> scene_texts(scene_hierarchy(("shape", "background")))[8]
        'a circle on a striped background'
    """
    texts = []
    for name in hierarchy.names[1:]:
        thing, _, background = name.rpartition(", ")
        if not thing and background in BACKGROUNDS:
            texts.append(f"a {background} background")
        else:
            texts.append(f"a {thing} on a {background} background" if thing else f"a {background}")
    return texts


def _check(levels: Sequence[str]) -> None:
    for level in levels:
        if level not in LEVELS:
            raise unknown("level", level, LEVELS)
    if not len(levels) or len(set(levels)) != len(levels):
        raise BadData(f"levels={list(levels)}: give each factor once, at least one.")
    if "family" in levels and list(levels[levels.index("family") + 1 :])[:1] != ["shape"]:
        raise BadData(f"levels={list(levels)}: 'family' groups shapes, so 'shape' comes directly below it.")


def _name(known: dict[str, str]) -> str:
    """What a concept is called: its factors as one would say them; different concepts get different names."""
    if not known:
        return ROOT
    if set(known) == {"family"}:
        return known["family"]
    thing = known.get("shape", known.get("family", ""))
    said = " ".join(part for part in (known.get("colour", ""), thing) if part)
    if "background" not in known:
        return said
    return f"{said}, {known['background']}" if said else known["background"]
