"""What a linear head cannot see: its null space, exact or soft (SING; methods.md 6).

1. `W = U S V^T`. Right singular vectors with `s <= tol` span the null space; the others the principal space.
2. A feature `f` and its equivalent `f~ = f - V_n V_n^T f` have the same logits.

*The decision* is blind to more than the logits: softmax does not see a number that is added to all logits, so its null
space is that of the row-centred `W`, one dimension larger (`centered=True`).

A head with as many classes as dimensions has no null space (1000 classes on 768 dimensions). Then there is a *soft*
one: as many of the weakest singular directions as can be removed while no logit of the given features moves by more
than `logit_change`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange
from probes.null_space.head import LinearHead, rows_of


@dataclass(frozen=True, kw_only=True, eq=False)
class NullSpace:
    """The directions that a head reads, and those that it does not."""

    principal: Float[np.ndarray, "d rank"]
    """Orthonormal directions that the head reads, strongest first."""
    null: Float[np.ndarray, "d null"]
    """Orthonormal directions that it does not read (or hardly, in a soft null space)."""
    singular: Float[np.ndarray, " value"]
    """Singular values of the (centred) weight, largest first."""
    tol: float
    """Singular values up to here count as zero."""
    centered: bool
    """Null space of the decision (rows centred) instead of that of the logits."""
    kind: Literal["exact", "soft"]
    """`exact`: removing the null part changes no logit; `soft`: hardly."""
    logit_change: float = 0.0
    """Soft: the largest change of a logit on the features that it was chosen with, in logits."""

    @property
    def null_dim(self) -> int:
        """Number of directions that are not read."""
        return self.null.shape[1]

    @property
    def rank(self) -> int:
        """Number of directions that are read."""
        return self.principal.shape[1]

    def part(self, features: Float[np.ndarray, "row d"]) -> Float[np.ndarray, "row d"]:
        """The part of features in the null space, `V_n V_n^T f`."""
        features = rows_of(features, len(self.null), "features")
        return (features @ self.null) @ self.null.T

    def equivalent(
        self, features: Float[np.ndarray, "row d"], mean: Float[np.ndarray, " d"] | None = None
    ) -> Float[np.ndarray, "row d"]:
        """Features without their null part: the same logits (the same decision if `centered`).

        Args:
            features: what the head reads.
            mean: keep the null part of this vector (mean ablation); None: nothing of the null part stays.
        """
        kept = features if mean is None else features - np.asarray(mean, np.float64)
        return rows_of(features, len(self.null), "features") - self.part(kept)


def null_space(head: LinearHead, *, centered: bool = False, tol: float | None = None) -> NullSpace:
    """The exact null space of a head by SVD (methods.md 6, **C**; the tolerance **X**).

    Args:
        head: from :func:`probes.null_space.linear_head`, or made of a weight and a bias.
        centered: take the mean over classes off first: what the *decision* does not see (**P**: one dimension more).
        tol: singular values up to here are zero; default `max(class, d) * eps * s_max` with the rounding unit of the
            head's own type (the released code has 1e-5 whatever the scale).

    Returns:
        NullSpace: `null_dim` may be 0; see :func:`soft_null_space`.

    Raises:
        OutOfRange: a negative tolerance.

    Example:
        >>> head = LinearHead(weight=np.eye(2, 5), bias=np.zeros(2))
        >>> null_space(head).null_dim, null_space(head, centered=True).null_dim
        (3, 4)
    """
    if tol is not None and tol < 0:
        raise OutOfRange(f"tol={tol}: a tolerance of singular values is 0 or more.")
    weight = head.weight - head.weight.mean(0) if centered else head.weight
    _, singular, right = np.linalg.svd(weight, full_matrices=True)
    # The scale is that of the head itself: a centred weight may be all rounding.
    largest = max(float(singular.max(initial=0.0)), float(np.linalg.norm(head.weight, 2)))
    tol = max(weight.shape) * head.eps * largest if tol is None else float(tol)
    rank = int((singular > tol).sum())
    return NullSpace(
        principal=right[:rank].T, null=right[rank:].T, singular=singular, tol=tol, centered=centered, kind="exact"
    )


def soft_null_space(
    head: LinearHead,
    features: Float[np.ndarray, "row d"],
    *,
    logit_change: float = 0.01,
    centered: bool = False,
) -> NullSpace:
    """The weakest singular directions that can be removed together while no logit moves by more than `logit_change`.

    For heads without an exact null space (methods.md 6, **X**).

    Args:
        head: what reads the features.
        features: the features that the promise is about, `[row d]`.
        logit_change: largest change of any logit of any of the features, in logits.
        centered: after taking the mean over classes off, as in :func:`null_space`.

    Raises:
        OutOfRange: a bound that is not positive.
        BadData: not even the weakest direction can go; says by how much it moves the logits.

    Example:
        >>> weight = np.diag([3.0, 1.0, 1e-4])
        >>> soft_null_space(LinearHead(weight=weight, bias=np.zeros(3)), np.ones((4, 3))).null_dim
        1
    """
    if not logit_change > 0:
        raise OutOfRange(f"logit_change={logit_change}: give a positive number of logits.")
    features = rows_of(features, head.weight.shape[1], "features")
    weight = head.weight - head.weight.mean(0) if centered else head.weight
    exact = null_space(head, centered=centered)
    left, singular, right = np.linalg.svd(weight, full_matrices=True)
    codes = features @ right[: len(singular)].T
    chosen, seen = exact.rank, 0.0
    moved = np.zeros((len(features), len(weight)))
    for direction in range(exact.rank - 1, -1, -1):
        moved = moved + np.outer(codes[:, direction] * singular[direction], left[:, direction])
        largest = float(np.abs(moved).max())
        if largest > logit_change:
            if chosen == weight.shape[1]:
                raise BadData(
                    f"no soft null space: removing the weakest direction alone moves a logit by {largest:.3g}, more "
                    f"than logit_change={logit_change}. Allow more, or read another layer."
                )
            break
        chosen, seen = direction, largest
    return NullSpace(
        principal=right[:chosen].T,
        null=right[chosen:].T,
        singular=singular,
        tol=exact.tol,
        centered=centered,
        kind="soft" if chosen < exact.rank else "exact",
        logit_change=seen,
    )
