"""F6, data made of known parts: rows that are sparse non-negative mixtures of known directions, plus noise.

The acceptance test of every factorisation (methods.md 0.5): the directions must come back, and where a linear head
reads the mixture with known weights, the importance of the parts must come back in the order of the weights.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import OutOfRange, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Planted:
    """Rows and what they are made of."""

    rows: Float[np.ndarray, "row d"]
    """`codes @ bank + noise`."""
    bank: Float[np.ndarray, "concept d"]
    """The directions, of length one."""
    codes: Float[np.ndarray, "row concept"]
    """How much of each, mostly zero."""


def planted_parts(
    n: int = 400,
    n_concepts: int = 8,
    d: int = 32,
    *,
    active: float = 0.3,
    noise: float = 0.02,
    signed: bool = True,
    seed: int = 0,
) -> Planted:
    """Rows of known parts (F6, methods.md 0.5).

    Args:
        n: rows.
        n_concepts: directions.
        d: width.
        active: probability that a row holds a part; its amount is then uniform in [0.5, 1.5].
        noise: standard deviation of each entry.
        signed: directions of both signs; False: non-negative ones, each with its own entries, for NMF.
        seed: of everything.

    Raises:
        OutOfRange: a probability outside (0, 1], or more non-negative parts than entries.

    Example:
        >>> planted_parts(10, 3, 6).rows.shape
        (10, 6)
    """
    if not 0 < active <= 1 or (not signed and n_concepts > d) or min(n, n_concepts, d) < 1:
        raise OutOfRange(f"active={active} lies in (0, 1], and {n_concepts} parts need at least as many entries.")
    generator = np.random.default_rng(seed)
    if signed:
        bank = generator.normal(size=(n_concepts, d))
    else:
        owner = np.arange(d) % n_concepts
        bank = generator.uniform(0.2, 1, (n_concepts, d)) * (owner == np.arange(n_concepts)[:, None])
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    codes = generator.uniform(0.5, 1.5, (n, n_concepts)) * (generator.random((n, n_concepts)) < active)
    rows = codes @ bank + noise * generator.normal(size=(n, d))
    return Planted(rows=rows if signed else np.abs(rows), bank=bank, codes=codes)


def matched(found: Float[np.ndarray, "concept d"], truth: Float[np.ndarray, "other d"]) -> tuple[np.ndarray, float]:
    """Pair concepts one to one so that the sum of their cosines is largest (Hungarian algorithm).

    Returns:
        For each row of `truth` the position of its partner in `found` (-1 if there are too few), and the mean cosine
        of the pairs.

    Raises:
        ShapeMismatch: banks of different width.

    Example:
        >>> order, cosine = matched(np.eye(3)[[2, 0, 1]], np.eye(3))
        >>> order.tolist(), round(cosine, 3)
        ([1, 2, 0], 1.0)
    """
    from scipy.optimize import linear_sum_assignment

    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.ndim != 2 or truth.ndim != 2 or found.shape[1] != truth.shape[1]:
        raise ShapeMismatch(f"two banks [concept d] of one width are wanted: {list(found.shape)}, {list(truth.shape)}.")

    def unit(bank: np.ndarray) -> np.ndarray:
        return bank / np.maximum(np.linalg.norm(bank, axis=1, keepdims=True), 1e-300)

    cosines = unit(truth) @ unit(found).T
    rows, columns = linear_sum_assignment(-cosines)
    order = np.full(len(truth), -1)
    order[rows] = columns
    return order, float(cosines[rows, columns].mean())
