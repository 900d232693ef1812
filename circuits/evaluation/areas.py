"""Two areas that sum up a curve of faithfulness F over circuit size: CPR and CMD.

    CPR = area under F          how well the circuits perform; larger is better, and it can exceed 1
    CMD = area under |1 - F|    how far they are from doing what the model does; smaller is better, 0 at best

(MIB, methods.md 5.7 **C**.) On three axes:

==========  ============================================================================================================
`realised`  edges that are left after pruning, as a share of all; anchored at the empty circuit, F = 0. The default
`nominal`   the fractions that were asked for, from the smallest of them on: the published form
`log`       log(1 + edges left) / log(1 + all edges): the published form leaves 80 % of the weight to the stretch from
            20 % to 100 % of the edges, where hardly any question is decided (faithfulness.md 2.4)
==========  ============================================================================================================

Trapezoids between points, no smoothing. On `realised` and `log` the axis runs from 0 to 1, so an area is an average
height. Two orders whose circuits lose different numbers of edges to pruning are compared fairly on these two only.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, ShapeMismatch, unknown

Axis = Literal["realised", "nominal", "log"]
AXES = ("realised", "nominal", "log")
Area = Literal["cpr", "cmd"]


def place_on(
    axis: Axis,
    sizes: Int[np.ndarray, " point"],
    fractions: Float[np.ndarray, " point"],
    n_edges: int,
) -> Float[np.ndarray, " point"]:
    """Where the points of a curve lie on an axis.

    Args:
        axis: see the module.
        sizes: edges of each circuit.
        fractions: what was asked for.
        n_edges: edges of the whole model.

    Raises:
        UnknownName: no such axis.
        BadData: sizes or fractions that fall, or lie outside of their range.

    Example:
        >>> place_on("realised", np.array([1, 10]), np.array([0.2, 1.0]), 10)
        array([0.1, 1. ])
    """
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
    sizes, fractions = np.asarray(sizes), np.asarray(fractions, dtype=np.float64)
    if sizes.shape != fractions.shape or sizes.ndim != 1 or not len(sizes):
        raise ShapeMismatch(f"{sizes.shape} sizes and {fractions.shape} fractions: one of each per point.")
    for name, values, top in (("sizes", sizes, n_edges), ("fractions", fractions, 1)):
        if (np.diff(values) < 0).any() or values[0] < 0 or values[-1] > top:
            raise BadData(f"the {name} of a curve rise from 0 to {top:g} at most, got {values.tolist()}.")
    if axis == "nominal":
        return fractions
    return sizes / n_edges if axis == "realised" else np.log1p(sizes) / np.log1p(n_edges)


def area(
    kind: Area,
    axis: Axis,
    faithfulness: Float[np.ndarray, "*draws point"],
    sizes: Int[np.ndarray, " point"],
    fractions: Float[np.ndarray, " point"],
    n_edges: int,
) -> Float[np.ndarray, "*draws"]:
    """CPR or CMD of a curve, or of many curves with the same sizes.

    Args:
        kind: `cpr` or `cmd`.
        axis: `realised`, `nominal`, `log`.
        faithfulness: of each circuit, smallest first.
        sizes: edges that each circuit has.
        fractions: what was asked for.
        n_edges: edges of the whole model.

    Raises:
        UnknownName, BadData, ShapeMismatch.

    Example:
        >>> float(area("cmd", "realised", np.array([0.5, 1.0]), np.array([5, 10]), np.array([0.5, 1.0]), 10))
        0.5
    """
    if kind not in ("cpr", "cmd"):
        raise unknown("area", kind, ("cpr", "cmd"))
    x = place_on(axis, sizes, fractions, n_edges)
    y = np.asarray(faithfulness, dtype=np.float64)
    if y.shape[-1:] != x.shape:
        raise ShapeMismatch(f"{list(y.shape)} values of faithfulness for {len(x)} points.")
    if axis != "nominal":
        x = np.concatenate([[0.0], x])
        y = np.concatenate([np.zeros((*y.shape[:-1], 1)), y], axis=-1)
    height = y if kind == "cpr" else np.abs(1 - y)
    return np.asarray(((height[..., 1:] + height[..., :-1]) / 2 * np.diff(x)).sum(-1))
