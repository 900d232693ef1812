"""Concept vectors of what is known: the mean of the images that have a value, less the mean of all."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, ShapeMismatch


def value_concepts(
    z: Float[np.ndarray, "row d"], columns: Mapping[str, np.ndarray]
) -> tuple[tuple[str, ...], Float[np.ndarray, "concept d"]]:
    """One vector per value of each column: mean of its rows minus the grand mean, at unit length.

    Every value of a column counts alike in that column's grand mean, so a rare value does not pull it.

    Args:
        z: representations, one row per image (or per patch, with the image's values repeated).
        columns: what is known of each row, by attribute: `{"colour": [...], "shape": [...]}`.

    Returns:
        Names (`colour: red`) and unit vectors.

    Raises:
        ShapeMismatch: columns of another length.
        NotFinite: NaN or Inf.
        BadData: no column, or one with a single value.

    Example:
        >>> value_concepts(np.array([[1.0, 0.0], [-1.0, 0.0]]), {"side": np.array(["left", "right"])})[0]
        ('side: left', 'side: right')
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not z.size:
        raise ShapeMismatch(f"representations are [row d], got {list(z.shape)}.")
    if not np.isfinite(z).all():
        raise NotFinite(f"row {int((~np.isfinite(z)).any(1).argmax())} of the representations holds NaN or Inf.")
    if not columns:
        raise BadData("no column was given; concepts are means of images with a value.")
    names, vectors = [], []
    for attribute, column in columns.items():
        values = np.asarray(column)
        if values.shape != (len(z),):
            raise ShapeMismatch(f"{len(z)} rows but {list(values.shape)} entries in {attribute!r}.")
        known = np.unique(values)
        if len(known) < 2:
            raise BadData(
                f"all rows have the same {attribute}, {str(known[0])!r}. A concept needs something to differ from."
            )
        means = np.stack([z[values == one].mean(0) for one in known])
        names += [f"{attribute}: {one}" for one in known]
        vectors.append(means - means.mean(0))
    found = np.concatenate(vectors)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    if (length == 0).any():
        raise BadData(
            f"the mean of {names[int((length[:, 0] == 0).argmax())]!r} is the mean of all; it has no direction."
        )
    return tuple(names), found / length
