"""Three ways to take a target out of features linearly (methods.md 3.2), and the controls of equal rank.

An :class:`Eraser` is an affine map `x -> x - (x - mean) A^T`: what it removes is replaced by the mean of the training
rows, not by zero (**X**), so that the stream stays where the model expects it.

* :func:`project_out`: A projects orthogonally on the row space of one probe. What another probe could still read stays.
* :func:`inlp` (iterative null-space projection, Ravfogel et al. 2020; **K**): a probe is fitted, projected out, and the
  next is fitted to what is left, until held-out accuracy is at most that of the commonest class.
* :func:`leace` (least-squares concept erasure, Belrose et al. 2023; **K**), in closed form: with `W = S_xx^(-1/2)` and
  P the orthogonal projection on the columns of `W S_xz`, `A = W^+ P W`. Afterwards the features do not covary with the
  target at all, so that no linear probe beats the commonest class on these rows, and no affine map that achieves this
  changes the features less in mean square.
* :func:`random_subspace`, :func:`largest_components`: the controls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.linear.base import LinearProbe
from probes.linear.batches import matrix
from probes.linear.estimators import probe_for
from probes.linear.judge import kind_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Eraser:
    """An affine map that takes something out of features."""

    name: str
    """How it was made."""
    remove: Float[np.ndarray, "d d"]
    """A: what is subtracted of a centred row."""
    mean: Float[np.ndarray, " d"]
    """What stays in place of what is removed."""
    rank: int
    """Directions that are gone."""

    def __call__(self, x: Float[np.ndarray, "row d"]) -> Float[np.ndarray, "row d"]:
        """Rows without it.

        Raises:
            ShapeMismatch: rows of another width.
        """
        x = np.asarray(x)
        # What rounding leaves of a direction that is gone would be blown up by whoever standardises it.
        precision = np.float32 if x.dtype.kind == "f" and x.dtype.itemsize < 8 else np.float64
        rounding = 8 * np.finfo(precision).eps * np.abs(x).max(initial=0)
        x = x.astype(np.float64)
        if x.shape[-1] != len(self.mean):
            raise ShapeMismatch(f"the eraser {self.name!r} is for rows of {len(self.mean)} numbers, got {x.shape[-1]}.")
        centred = x - self.mean
        left = centred - centred @ self.remove.T
        left[np.abs(left) <= rounding] = 0
        return self.mean + left

    def edit(self, site: str, *, tokens: Any = None) -> edits.Edit:
        """The same as an intervention on the model's stream.

        Args:
            site: where; heads and other extra axes are laid side by side, as in the features.
            tokens: which tokens; all where left out.
        """
        return edits.call(site, self._on_tensor(), tokens=tokens)

    def _on_tensor(self) -> Callable[[Tensor], Tensor]:
        remove, mean = torch.from_numpy(self.remove), torch.from_numpy(self.mean)

        def erased(x: Tensor) -> Tensor:
            wide = torch.promote_types(x.dtype, torch.float32)
            flat = x.flatten(2).to(wide)
            taken = (flat - mean.to(flat)) @ remove.to(flat).T
            return (flat - taken).to(x.dtype).view(x.shape)

        return erased


def project_out(
    directions: Float[np.ndarray, "direction d"], mean: Float[np.ndarray, " d"], *, name: str = "projection"
) -> Eraser:
    """Remove the span of some directions.

    Args:
        directions: `[d]` or `[direction d]`, any length; dependent ones count once.
        mean: of the training rows.
        name: of the eraser.

    Raises:
        ShapeMismatch: directions and mean of different width.
        BadData: no direction that is not zero.

    Example:
        >>> project_out(np.array([[2.0, 0.0]]), np.zeros(2))(np.array([[3.0, 4.0]])).tolist()
        [[0.0, 4.0]]
    """
    directions = np.atleast_2d(np.asarray(directions, np.float64))
    if directions.shape[1] != len(mean) or not np.isfinite(directions).all():
        raise ShapeMismatch(f"directions {list(directions.shape)} and a mean of {len(mean)}: finite, of one width.")
    _, values, basis = np.linalg.svd(directions, full_matrices=False)
    basis = basis[values > 1e-8 * max(float(values.max(initial=0)), 1e-300)]
    if not len(basis) or not values.max(initial=0) > 0:
        raise BadData("all directions are zero: there is nothing to remove.")
    return Eraser(name=name, remove=basis.T @ basis, mean=np.asarray(mean, np.float64), rank=len(basis))


def inlp(
    x: Float[np.ndarray, "row d"],
    y: np.ndarray,
    *,
    rounds: int = 8,
    held_out: float = 0.2,
    margin: float = 0.02,
    seed: int = 0,
    **settings: Any,
) -> tuple[Eraser, list[float]]:
    """Fit, project out, and again, until nothing is read any more.

    Args:
        x: training rows.
        y: their classes.
        rounds: most probes (**X**).
        held_out: share of the rows that says when to stop.
        margin: stop when held-out accuracy exceeds the commonest class by at most this (**X**).
        seed: of the held-out rows.
        settings: of the probes.

    Returns:
        The eraser, and the held-out accuracy before each projection (and after the last).

    Raises:
        OutOfRange: no round, or a share that is none.

    Example:
        >>> eraser, accuracies = inlp(train_rows, train_classes)                                   # doctest: +SKIP
    """
    if rounds < 1 or not 0 < held_out < 1:
        raise OutOfRange(f"rounds={rounds}, held_out={held_out}: at least one round, a share between 0 and 1.")
    x, y = matrix(x)[:], np.asarray(y)
    mean, kind = np.asarray(x, np.float64).mean(0), kind_of(y)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(order, [max(1, int(held_out * len(x)))])
    values, counts = np.unique(y[train], return_counts=True)
    chance = float((y[test] == values[counts.argmax()]).mean())
    basis, accuracies, left = np.zeros((0, x.shape[1])), [], x
    for _ in range(rounds + 1):
        probe = probe_for(kind, **settings).fit(left[train], y[train])
        accuracies.append(float(probe.score(left[test], y[test])))
        new = probe.row_space()
        nothing = len(basis) > 0 and accuracies[-1] <= chance + margin
        if len(accuracies) > rounds or nothing or not len(new) or len(basis) + len(new) >= x.shape[1]:
            break
        # Rounding leaves traces of what is gone already; the new directions are cleaned of them.
        basis = np.linalg.qr(np.concatenate([basis, new - new @ basis.T @ basis]).T)[0].T
        left = project_out(basis, mean)(x)
    return project_out(basis, mean, name=f"INLP, {len(accuracies) - 1} rounds"), accuracies


def leace(x: Float[np.ndarray, "row d"], y: np.ndarray, *, share: float = 1e-12) -> Eraser:
    """The least change after which features and target do not covary.

    Args:
        x: training rows.
        y: classes, 0/1 labels or numbers per row.
        share: directions whose variance is below this share of the largest are left alone (**X**): there is rounding.

    Raises:
        BadData: a target that does not vary.
        ShapeMismatch: not one target per row.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> bool(abs(np.cov(leace(x, y)(x).T, y)[:3, 3]).max() < 1e-12)
        True
    """
    x, y = np.asarray(matrix(x)[:], np.float64), np.asarray(y)
    if len(y) != len(x):
        raise ShapeMismatch(f"{len(x)} rows and {len(y)} targets: they must be as many.")
    z = (y[:, None] == np.unique(y)).astype(float) if kind_of(y) == "classes" else y.reshape(len(y), -1).astype(float)
    mean, z = x.mean(0), z - z.mean(0)
    if not np.abs(z).max() > 0:
        raise BadData("the target does not vary: there is nothing to remove.")
    centred = x - mean
    variance, axes = np.linalg.eigh(centred.T @ centred / len(x))
    known = variance > share * variance[-1]
    axes, deviation = axes[:, known], np.sqrt(variance[known])
    whitened = (axes / deviation).T @ (centred.T @ z / len(x))
    left, values, _ = np.linalg.svd(whitened, full_matrices=False)
    left = left[:, values > 1e-9 * max(float(values[0]), 1e-300)]
    remove = (axes * deviation) @ left @ left.T @ (axes / deviation).T
    return Eraser(name="LEACE", remove=remove, mean=mean, rank=left.shape[1])


def random_subspace(mean: Float[np.ndarray, " d"], rank: int, *, seed: int) -> Eraser:
    """A subspace of equal rank that knows nothing of the target: the control of an erasure."""
    drawn = np.random.default_rng(seed).normal(size=(rank, len(mean)))
    return project_out(drawn, mean, name="random subspace")


def largest_components(x: Float[np.ndarray, "row d"], rank: int) -> Eraser:
    """The leading principal components: the loudest subspace of equal rank, a harder control than a random one."""
    x = np.asarray(matrix(x)[:], np.float64)
    mean = x.mean(0)
    _, axes = np.linalg.eigh((x - mean).T @ (x - mean))
    return project_out(axes[:, ::-1][:, :rank].T, mean, name="largest components")


def row_space_eraser(probe: LinearProbe, x: Float[np.ndarray, "row d"]) -> Eraser:
    """The orthogonal projection on what a fitted probe reads."""
    return project_out(probe.row_space(), np.asarray(matrix(x)[:], np.float64).mean(0), name="projection")
