"""Angles between vectors in degrees, exact also where they are tiny.

`arccos` of a cosine near 1 loses half of the digits (1 - 1e-16 is already 1e-6 degrees); the half-angle form
`2 atan2(|u - v|, |u + v|)` of unit vectors does not. So "the same direction" is 0 here, and no clamp is needed.
"""

import numpy as np
from jaxtyping import Float

from mechvis.errors import NotFinite, ShapeMismatch

_PARALLEL = 0.9999
"""Cosine from which on arccos is not good enough: here it still has twelve digits."""


def unit(rows: Float[np.ndarray, "*row d"], what: str = "vectors") -> Float[np.ndarray, "*row d"]:
    """Rows of length one.

    Raises:
        NotFinite: a row of zeros has no direction.
    """
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (length > 0).all() or not np.isfinite(length).all():
        place = np.argwhere(~((length > 0) & np.isfinite(length)))[0]
        raise NotFinite(f"{what}: the vector at {[int(i) for i in place[:-1]]} is zero or not finite: no direction.")
    return rows / length


def angle(a: Float[np.ndarray, "row d"], b: Float[np.ndarray, "row d"]) -> Float[np.ndarray, " row"]:
    """Angle between the rows of two matrices, in degrees (0 to 180).

    Raises:
        ShapeMismatch: other shapes.
        NotFinite: a row of zeros.

    Example:
        >>> angle(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])).round(6)
        array([45.])
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ShapeMismatch(f"angles need two matrices of one shape, got {list(a.shape)} and {list(b.shape)}.")
    u, v = unit(a), unit(b)
    return np.degrees(2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1)))


def angles_to(rows: Float[np.ndarray, "row d"], texts: Float[np.ndarray, "text d"]) -> Float[np.ndarray, "row text"]:
    """Angle of every row to every text, in degrees.

    By `arccos` of one matrix product, and again by :func:`angle` where the two are nearly parallel.

    Raises:
        ShapeMismatch: other widths.
        NotFinite: a row or text of zeros.

    Example:
        >>> angles_to(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 0.0]]))
        array([[90.,  0.]])
    """
    rows, texts = np.asarray(rows, np.float64), np.asarray(texts, np.float64)
    if rows.shape[-1] != texts.shape[-1]:
        raise ShapeMismatch(f"rows have {rows.shape[-1]} dimensions, texts {texts.shape[-1]}: not one joint space.")
    cosines = unit(rows) @ unit(texts, "texts").T
    found = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    close = np.argwhere(np.abs(cosines) > _PARALLEL)
    if len(close):
        found[close[:, 0], close[:, 1]] = angle(rows[close[:, 0]], texts[close[:, 1]])
    return found
