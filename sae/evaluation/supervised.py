"""A dictionary that knows the labels: the ceiling of what reconstruction and edits of attributes can be.

For attributes with known values (class, background, colour, ...), rows x are written as (methods2.md 21.1 [A])

    x̂ = mean + Σ_a u_{a, v_a(x)}

with one vector per value of each attribute, by least squares on the values (for independent, balanced attributes that
is u_{a,v} = E[x - mean | A_a = v]). An edit of attribute a from v to v' adds u_{a,v'} - u_{a,v}.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, NotFinite, ShapeMismatch, unknown

Attributes = Mapping[str, np.ndarray]
"""Values by attribute: one per row, whole numbers or text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Supervised:
    """One vector per value of each attribute; made by :func:`supervised`."""

    mean: Float[np.ndarray, " d"]
    """Mean of the rows."""
    values: dict[str, np.ndarray]
    """Values of each attribute, in the order of its vectors."""
    vectors: dict[str, Float[np.ndarray, "value d"]]
    """What each value adds."""

    def reconstruct(self, attributes: Attributes) -> Float[np.ndarray, "row d"]:
        """Rows with these attributes, as far as they are made of them."""
        found = 0
        for name in self.vectors:
            if name not in attributes:
                raise unknown("attribute", name, attributes)
            found = found + self.vectors[name][self._index(name, attributes[name])]
        return self.mean + found

    def edit(
        self, rows: Float[np.ndarray, "row d"], attribute: str, before: np.ndarray, after: np.ndarray
    ) -> Float[np.ndarray, "row d"]:
        """The rows with another value of one attribute.

        Args:
            rows: activations.
            attribute: which.
            before: its value in each row.
            after: what it becomes.

        Raises:
            UnknownName: no such attribute, or a value that was not seen.
        """
        if attribute not in self.vectors:
            raise unknown("attribute", attribute, self.vectors)
        u = self.vectors[attribute]
        return rows - u[self._index(attribute, before)] + u[self._index(attribute, after)]

    def _index(self, name: str, values: np.ndarray) -> Int[np.ndarray, " row"]:
        known, values = self.values[name], np.asarray(values)
        at = np.clip(np.searchsorted(known, values), 0, len(known) - 1)
        if (known[at] != values).any():
            raise unknown(f"value of {name}", values[known[at] != values][0], known.tolist())
        return at


def supervised(rows: Float[np.ndarray, "row d"], attributes: Attributes) -> Supervised:
    """Fit the vectors of all values.

    Args:
        rows: activations.
        attributes: values by attribute.

    Raises:
        BadData: no attribute, or one with a single value.
        ShapeMismatch: another number of values than rows.
        NotFinite: NaN or Inf.

    Example:
        >>> rows = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 4.0], [3.0, 4.0]])
        >>> found = supervised(rows, {"x": np.array([0, 1, 0, 1]), "y": np.array([0, 0, 1, 1])})
        >>> [round(float(u[0]), 6) for u in found.vectors["x"]]
        [-1.0, 1.0]
    """
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise (
            ShapeMismatch(f"rows are [row d]; got {list(rows.shape)}.")
            if rows.ndim != 2
            else NotFinite("rows hold NaN or Inf.")
        )
    if not attributes:
        raise BadData("at least one attribute is needed.")
    values, hot = {}, []
    for name, column in attributes.items():
        column = np.asarray(column)
        if column.shape != (len(rows),):
            raise ShapeMismatch(f"attribute {name!r} has {list(column.shape)} values for {len(rows)} rows.")
        values[name] = np.unique(column)
        if len(values[name]) < 2:
            raise BadData(f"attribute {name!r} has one value only: there is nothing to edit.")
        hot.append((column[:, None] == values[name]).astype(np.float64))
    mean = rows.mean(0)
    # Only differences within an attribute are determined: the least-norm answer, with every attribute's mean taken off.
    weights = np.linalg.lstsq(np.concatenate(hot, 1), rows - mean, rcond=None)[0]
    vectors = {}
    for name, part, u in zip(values, hot, np.split(weights, np.cumsum([h.shape[1] for h in hot])[:-1]), strict=True):
        vectors[name] = u - part.mean(0) @ u
    return Supervised(mean=mean, values=values, vectors=vectors)
