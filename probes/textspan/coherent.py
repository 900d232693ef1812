"""Coherent orthogonal matching pursuit: a direction as a short non-negative sum of texts that go together.

From SITH (CVPR 2026; methods.md 2.7, **N**): plain matching pursuit explains a direction by texts that may have nothing
to do with each other. Here a text also scores by its mean cosine with the texts chosen so far:

    score(i) = <residual, g_i> + (lam / |S|) * sum over j in S of <g_i, g_j>

After every choice all coefficients are fitted anew, non-negative least squares. With `lam=0` it is plain non-negative
orthogonal matching pursuit.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls

from mechvis.data.text_encoding import unit
from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.record import finite

K = 5
LAM = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Code:
    """A direction as a sum of texts."""

    picks: Int[np.ndarray, " pick"]
    """Positions of the texts, in the order in which they were chosen."""
    weights: Float[np.ndarray, " pick"]
    """Their coefficients, none negative."""
    fit: float
    """Cosine of the sum with the direction; 0 without a text."""


def coherent_omp(
    direction: Float[np.ndarray, " d_embed"],
    atoms: Float[np.ndarray, "text d_embed"],
    *,
    k: int = K,
    lam: float = LAM,
) -> Code:
    """Explain a direction by at most `k` texts.

    Args:
        direction: brought to unit length here.
        atoms: texts; brought to unit length here.
        k: texts, at most; fewer if no text points towards what is left.
        lam: weight of the texts' coherence.

    Raises:
        ShapeMismatch, NotFinite: what cannot be compared, or holds NaN.
        OutOfRange: k below 1, lam below 0.

    Example:
        >>> code = coherent_omp(np.array([2.0, 1.0, 0.0]), np.eye(3))
        >>> code.picks.tolist(), code.weights.round(2).tolist(), round(code.fit, 3)
        ([0, 1], [0.89, 0.45], 1.0)
    """
    direction = finite("the direction", np.asarray(direction, float))
    atoms = finite("the texts", np.asarray(atoms, float))
    if direction.ndim != 1 or atoms.ndim != 2 or atoms.shape[1] != len(direction) or not len(atoms):
        raise ShapeMismatch(f"a direction {list(direction.shape)} and texts {list(atoms.shape)} do not fit.")
    if k < 1 or lam < 0:
        raise OutOfRange(f"k={k}, lam={lam}: give at least one text, and a weight that is not negative.")
    target, atoms = unit(direction[None])[0], unit(atoms)
    residual, picks, weights = target, [], np.zeros(0)
    while len(picks) < min(k, len(atoms)):
        towards = atoms @ residual
        scores = towards + (lam / len(picks) * (atoms @ atoms[picks].sum(0)) if picks else 0.0)
        # A text that points away from what is left would get the coefficient zero.
        scores = np.where(towards > 1e-9, scores, -np.inf)
        scores[picks] = -np.inf
        best = int(scores.argmax())
        if not np.isfinite(scores[best]):
            break
        picks.append(best)
        weights, _ = nnls(atoms[picks].T, target)
        residual = target - weights @ atoms[picks]
    rebuilt = weights @ atoms[picks] if picks else np.zeros_like(target)
    length = np.linalg.norm(rebuilt)
    fit = float(rebuilt @ target / length) if length > 0 else 0.0
    return Code(picks=np.array(picks, dtype=np.int64), weights=weights, fit=fit)
