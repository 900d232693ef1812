"""Orthogonal matching pursuit: a vector as a sum of few words.

    repeat: pick the atom that has the largest scalar product with the residual (its absolute value, or for non-negative
            codes the product itself); re-fit all picked coefficients by least squares; the residual is what is left

Atoms are taken at unit length for the selection, whatever their length (**X**); the coefficients are those of the atoms
as they are given. Rows are worked on together: each keeps an orthonormal basis of its picked atoms (Gram-Schmidt, done
twice), so a re-fit is one projection. Non-negative re-fits are non-negative least squares; only the rows in which a
coefficient would turn negative are solved one by one.

Source: methods.md 2.6 (flat comparator) and 2.7 (**N**); oracle in the tests: `sklearn.linear_model.orthogonal_mp`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.record import finite

_DEPENDENT = 1e-9
"""An atom whose part outside of the picked ones is shorter than this (at unit length) adds nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pursuit:
    """Sparse codes of some rows."""

    support: Int[np.ndarray, "row pick"]
    """Atoms in the order in which they were picked; -1 where the pursuit had stopped."""
    coefficients: Float[np.ndarray, "row pick"]
    """Of the atoms as given; 0 where it had stopped."""
    residuals: Float[np.ndarray, "row step"] = field(repr=False)
    """Norm of the residual before the first pick and after each, one more than picks."""
    n_atoms: int
    """Size of the dictionary."""

    def dense(self) -> Float[np.ndarray, "row atom"]:
        """The codes as a matrix."""
        codes = np.zeros((len(self.support), self.n_atoms))
        rows, picks = (self.support >= 0).nonzero()
        codes[rows, self.support[rows, picks]] = self.coefficients[rows, picks]
        return codes

    def named(self, names: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Per row the picked atoms by name, in the order in which they were picked, with their coefficients.

        Raises:
            ShapeMismatch: not one name per atom.
        """
        if len(names) != self.n_atoms:
            raise ShapeMismatch(f"{self.n_atoms} atoms need as many names, got {len(names)}.")
        return [
            [(names[atom], float(weight)) for atom, weight in zip(atoms, weights, strict=True) if atom >= 0]
            for atoms, weights in zip(self.support, self.coefficients, strict=True)
        ]


def omp(
    vectors: Float[np.ndarray, "row d"],
    atoms: Float[np.ndarray, "atom d"],
    n_picks: int,
    *,
    non_negative: bool = False,
    tolerance: float = 1e-9,
) -> Pursuit:
    """Explain each vector by at most `n_picks` atoms.

    Args:
        vectors: what is explained. Centre them as the atoms are centred.
        atoms: the dictionary, of any length, none of them zero.
        n_picks: atoms per vector.
        non_negative: coefficients at least zero, and only atoms that point the residual's way.
        tolerance: stop where the residual's norm is below this share of the vector's.

    Returns:
        Pursuit: support, coefficients and the norm of the residual after each pick.

    Raises:
        ShapeMismatch: not two matrices of one width.
        OutOfRange: n_picks below one or more than the atoms.
        NotFinite: NaN or Inf, or an atom of length zero.

    Example:
        >>> found = omp(np.array([[0.0, 2.0, 1.0]]), np.eye(3), 2)
        >>> found.support.tolist(), found.coefficients.tolist()
        ([[1, 2]], [[2.0, 1.0]])
    """
    vectors, atoms, lengths = checked(vectors, atoms)
    if not 1 <= n_picks <= len(atoms):
        raise OutOfRange(f"n_picks={n_picks}: give 1 to {len(atoms)}, the number of atoms.")
    unit = atoms / lengths[:, None]
    n, d = vectors.shape
    support = np.full((n, n_picks), -1)
    coefficients = np.zeros((n, n_picks))
    basis = np.zeros((n, n_picks, d))
    residual = vectors.copy()
    start = np.linalg.norm(vectors, axis=1)
    norms = np.zeros((n, n_picks + 1))
    norms[:, 0] = start
    for step in range(n_picks):
        norms[:, step + 1] = norms[:, step]
        going = np.flatnonzero(
            (support[:, :step] >= 0).all(1) & (norms[:, step] > tolerance * np.maximum(start, 1e-300))
        )
        if not len(going):
            continue
        scores = residual[going] @ unit.T
        scores = scores if non_negative else np.abs(scores)
        np.put_along_axis(scores, support[going, :step], -np.inf, axis=1)
        pick = scores.argmax(1)
        fresh = outside(unit[pick], basis[going, :step])
        length = np.linalg.norm(fresh, axis=1)
        useful = (length > _DEPENDENT) & (scores[np.arange(len(going)), pick] > 0)
        going, pick, fresh = going[useful], pick[useful], fresh[useful] / length[useful, None]
        if not len(going):
            continue
        support[going, step] = pick
        basis[going, step] = fresh
        fitted = _coefficients(vectors[going], basis[going, : step + 1], unit[support[going, : step + 1]])
        if non_negative:
            for row in np.flatnonzero((fitted < 0).any(1)):
                fitted[row] = non_negative_fit(vectors[going[row]], unit[support[going[row], : step + 1]])
        coefficients[going, : step + 1] = fitted
        residual[going] = vectors[going] - np.einsum("rk,rkd->rd", fitted, unit[support[going, : step + 1]])
        norms[going, step + 1] = np.linalg.norm(residual[going], axis=1)
    coefficients /= np.where(support >= 0, lengths[support], 1.0)
    return Pursuit(support=support, coefficients=coefficients, residuals=norms, n_atoms=len(atoms))


def omp_plain(
    vector: Float[np.ndarray, " d"], atoms: Float[np.ndarray, "atom d"], n_picks: int, *, non_negative: bool = False
) -> tuple[list[int], np.ndarray]:
    """The plain twin of :func:`omp` for one vector: picked atoms and their coefficients."""
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    support: list[int] = []
    fitted, residual = np.zeros(0), vector
    for _ in range(n_picks):
        scores = unit @ residual
        scores = scores if non_negative else np.abs(scores)
        scores[support] = -np.inf
        support.append(int(scores.argmax()))
        chosen = unit[support]
        if non_negative:
            fitted = non_negative_fit(vector, chosen)
        else:
            fitted = np.linalg.lstsq(chosen.T, vector, rcond=None)[0]
        residual = vector - fitted @ chosen
    return support, fitted / np.linalg.norm(atoms[support], axis=1)


def outside(vectors: Float[np.ndarray, "row d"], basis: Float[np.ndarray, "row k d"]) -> Float[np.ndarray, "row d"]:
    """What of each vector lies outside of the span of its orthonormal basis; projected twice, against rounding."""
    for _ in range(2):
        vectors = vectors - np.einsum("rkd,rk->rd", basis, np.einsum("rkd,rd->rk", basis, vectors))
    return vectors


def non_negative_fit(vector: Float[np.ndarray, " d"], chosen: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
    """Non-negative least squares."""
    from scipy.optimize import nnls

    return nnls(chosen.T, vector)[0]


def checked(vectors: np.ndarray, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors and atoms as float64 matrices of one width, and the atoms' lengths.

    Raises:
        ShapeMismatch, NotFinite.
    """
    vectors, atoms = (np.asarray(given, dtype=np.float64) for given in (vectors, atoms))
    if vectors.ndim != 2 or atoms.ndim != 2 or vectors.shape[1] != atoms.shape[1] or not len(vectors) or not len(atoms):
        raise ShapeMismatch(
            f"expected vectors [row d] and atoms [atom d] of one width, got {list(vectors.shape)} and "
            f"{list(atoms.shape)}."
        )
    finite("the vectors", vectors)
    lengths = np.linalg.norm(finite("the atoms", atoms), axis=1)
    if (lengths == 0).any():
        raise ShapeMismatch(f"atom {int((lengths == 0).argmax())} is zero: it has no direction. Leave it out.")
    return vectors, atoms, lengths


def _coefficients(
    vectors: Float[np.ndarray, "row d"], basis: Float[np.ndarray, "row k d"], chosen: Float[np.ndarray, "row k d"]
) -> Float[np.ndarray, "row k"]:
    """Least squares through the basis: atom j = sum of R[i, j] times basis i, so R c = basis . x."""
    triangle = np.einsum("rid,rjd->rij", basis, chosen)
    return np.linalg.solve(triangle, np.einsum("rid,rd->ri", basis, vectors)[..., None])[..., 0]
