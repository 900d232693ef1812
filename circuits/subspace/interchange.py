"""The subspace interchange itself: a base activation takes the part in a subspace from a source (methods2.md 16.1, K).

    h* = h_b + (h_s - h_b) R^T R          R [k, width], orthonormal rows

With k = 0 nothing changes, with k = width it is the full swap. Everything else in this package is about where `R` comes
from and how far an accuracy of `h*` may be believed.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import NotFinite, ShapeMismatch

Rows = Float[Tensor, "k width"]
Hook = Float[Tensor, "pair width"]

ORTHONORMAL = {torch.float64: 1e-8, torch.float32: 1e-4}
"""How far `R R^T` may be from the identity, by type."""


def interchange(base: Hook, source: Hook, rows: Rows) -> Hook:
    """Base activations with the part in the span of `rows` taken from the sources.

    Args:
        base: activations of the base images at the hook.
        source: activations of the source images, row by row.
        rows: orthonormal; not checked here, see :func:`checked_rows`.

    Example:
        >>> base, source = torch.zeros(1, 3), torch.ones(1, 3)
        >>> interchange(base, source, torch.eye(3)[:1])
        tensor([[1., 0., 0.]])
    """
    return base + ((source - base) @ rows.T) @ rows


def checked_rows(rows: Tensor, width: int) -> Rows:
    """`rows` if they are orthonormal and fit.

    Raises:
        ShapeMismatch: not `[k width]`, or not orthonormal.
        NotFinite: NaN or Inf.
    """
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) > width:
        raise ShapeMismatch(
            f"a subspace is given by orthonormal rows [k {width}] with k of at most {width}, got {list(rows.shape)}."
        )
    if not torch.isfinite(rows).all():
        raise NotFinite(f"the rows of the subspace {list(rows.shape)} hold NaN or Inf.")
    off = (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs()
    worst = float(off.max()) if off.numel() else 0.0
    if worst > ORTHONORMAL.get(rows.dtype, 1e-2):
        raise ShapeMismatch(
            f"the rows are not orthonormal: R R^T differs from the identity by {worst:.2g}. "
            "Pass them through circuits.subspace.orthonormal first."
        )
    return rows


def orthonormal(directions: Tensor, *, tolerance: float = 1e-3, at_least: float = 0.0) -> Rows:
    """Orthonormal rows that span the same space, largest first.

    Args:
        directions: `[width]` or `[direction width]`, of any length.
        tolerance: directions whose singular value is below this share of the largest are noise and are dropped.
        at_least: drop directions whose singular value is not above this, whatever the largest is.

    Returns:
        As many rows as there are independent directions; none for directions that are all zero.

    Raises:
        ShapeMismatch, NotFinite.

    Example:
        >>> orthonormal(torch.tensor([[2.0, 0.0], [1.0, 0.0]])).shape
        torch.Size([1, 2])
    """
    directions = directions[None] if directions.ndim == 1 else directions
    if directions.ndim != 2 or directions.shape[1] == 0:
        raise ShapeMismatch(f"directions are [width] or [direction width], got {list(directions.shape)}.")
    if not torch.isfinite(directions).all():
        raise NotFinite(f"the directions {list(directions.shape)} hold NaN or Inf.")
    _, sizes, right = torch.linalg.svd(directions.double(), full_matrices=False)
    if not len(sizes) or sizes[0] == 0:
        return directions[:0]
    return right[sizes > max(tolerance * float(sizes[0]), at_least)].to(directions.dtype)
