"""Is a hierarchy of embeddings shaped as hierarchical pursuit assumes? Three checks, each with a number.

* **Orthogonal**: a difference should be orthogonal to its parent: cos(a_j - a_i, a_i) near 0.
* **Cones**: what lies below a concept should lie around it: `inside` is the share of descendants that are closer (by
  cosine) to their ancestor than to each of its siblings; `disjoint` the share of sibling pairs whose cones do not meet
  (the smallest around each that holds its descendants). In a graph, a sibling that is above the descendant too does not
  count, nor do pairs of siblings that share a descendant.
* **Room**: depth + branching - 1 dimensions are needed for a path and the siblings at its end.

Source: methods.md 2.6 (**N**; how cones are measured: **X**). The root is the origin and has no direction, so concepts
of the first level are left out of the first check.
"""

import itertools

import numpy as np
import polars as pl

from mechvis.errors import BadData
from mechvis.record import Record
from probes.codes.hierarchy import Hierarchy
from probes.codes.words import unit


def geometry(hierarchy: Hierarchy) -> Record:
    """The three checks, per level.

    Args:
        hierarchy: with embeddings.

    Returns:
        Record: a row per level (of the child, or of the ancestor): `edges`, mean and largest |cos| between difference
        and parent, `inside`, `disjoint`, with the counts they rest on. Facts: `needed` and `width`.

    Raises:
        BadData: no embeddings.
        ShapeMismatch: a concept at the origin has no direction; names it by number.

    Example:
        >>> geometry(hierarchy).table["cosine"].to_list()                                      # doctest: +SKIP
    """
    if hierarchy.embeddings is None:
        raise BadData("this hierarchy has no embeddings yet: use .placed(...), or place_by_images, place_by_texts.")
    directions = np.zeros_like(hierarchy.embeddings)
    directions[1:] = unit(hierarchy.embeddings[1:], "concept after the root:")
    differences = unit(hierarchy.differences, "difference")
    cosines = np.array([d @ directions[parent] for d, (parent, _) in zip(differences, hierarchy.edges, strict=True)])
    below = {node: sorted(hierarchy.descendants(node)) for node in range(len(hierarchy.names))}
    reach = np.array([_reach(directions, node, below[node]) for node in range(len(hierarchy.names))])
    levels = hierarchy.levels
    rows = []
    for level in range(1, hierarchy.depth + 1):
        own = [i for i, (parent, child) in enumerate(hierarchy.edges) if levels[child] == level and parent]
        inside = [
            value
            for node in np.flatnonzero(levels == level)
            for value in _inside(directions, int(node), below, hierarchy)
        ]
        apart = [
            bool(np.arccos(np.clip(directions[a] @ directions[b], -1, 1)) > reach[a] + reach[b])
            for parent in range(len(hierarchy.names))
            for a, b in itertools.combinations(hierarchy.children(parent), 2)
            if levels[a] == levels[b] == level and not set(below[a]) & set(below[b])
        ]
        rows.append(
            {
                "level": level,
                "concepts": int((levels == level).sum()),
                "edges": len(own),
                "cosine": float(np.abs(cosines[own]).mean()) if own else None,
                "cosine_most": float(np.abs(cosines[own]).max()) if own else None,
                "descendants": len(inside),
                "inside": float(np.mean(inside)) if inside else None,
                "siblings": len(apart),
                "disjoint": float(np.mean(apart)) if apart else None,
            }
        )
    widest = max(map(len, hierarchy.below))
    return Record(
        kind="hierarchy_geometry",
        title=f"Geometry of {len(hierarchy.names)} concepts under {hierarchy.names[0]!r}",
        tables={"levels": pl.DataFrame(rows, infer_schema_length=None)},
        facts={
            "needed": hierarchy.depth + widest - 1,
            "width": hierarchy.embeddings.shape[1],
            "enough room": hierarchy.embeddings.shape[1] >= hierarchy.depth + widest - 1,
            "tree": hierarchy.is_tree,
        },
        words={
            "level": "edges from the root",
            "cosine": "mean |cos| between a difference and its parent, over `edges`; 0 is orthogonal",
            "cosine_most": "the largest of them",
            "inside": "share of (ancestor, descendant) pairs whose descendant is closer to the ancestor than to each "
            "of its siblings",
            "disjoint": "share of sibling pairs whose cones do not meet",
            "needed": "depth + branching - 1, the width that a path and its siblings need",
        },
        caveats=("Where differences are far from orthogonal to their parents, a path's coefficients trade off.",),
    )


def _reach(directions: np.ndarray, node: int, below: list[int]) -> float:
    """Angle between a concept and the furthest of its descendants."""
    if not below:
        return 0.0
    return float(np.arccos(np.clip(directions[below] @ directions[node], -1, 1)).max())


def _inside(directions: np.ndarray, node: int, below: dict[int, list[int]], hierarchy: Hierarchy) -> list[bool]:
    """Per descendant: is it closer to this ancestor than to each of its siblings that are not above it as well?"""
    siblings = sorted({s for parent in hierarchy.parents[node] for s in hierarchy.children(parent)} - {node})
    found = []
    for descendant in below[node]:
        others = [s for s in siblings if s != descendant and descendant not in below[s]]
        if others:
            own = directions[descendant] @ directions[node]
            found.append(bool(own > (directions[others] @ directions[descendant]).max()))
    return found
