"""Sparse semi-NMF: the same parts as semi-NMF, made unique by asking for few of them per row (**X**).

Plain semi-NMF has many solutions that are equally good: rows made of 20 known directions are explained better by wrong
directions than by the true ones (measured on F6: mean cosine with the truth .5 to .9, at a loss *below* the truth's).
A price on the amounts picks one of them: directions of length one, and

    1/2 |A - G F^T|^2 + weight * sum(G),    G >= 0

1. Amounts: every column of `G` in turn, exactly, given the others; a few rounds.
2. Directions: every column of `F` in turn, exactly, given the others: the direction of what the others leave over.
3. Again, until the objective stands still. Each step solves its block, so the objective never rises.
"""

import numpy as np
from jaxtyping import Float

from mechvis.errors import OutOfRange

ROUNDS = 3
"""Rounds over the columns of G per iteration."""


def sparse_parts(
    rows: Float[np.ndarray, "row d"],
    directions: Float[np.ndarray, "d concept"],
    amounts: Float[np.ndarray, "row concept"],
    weight: float,
    *,
    iterations: int = 300,
    tolerance: float = 1e-6,
) -> tuple[Float[np.ndarray, "d concept"], Float[np.ndarray, "row concept"], Float[np.ndarray, " iteration"]]:
    """Improve the factors of :func:`probes.concepts.semi_nmf.semi_nmf` under a price on the amounts (**X**).

    Args:
        rows: activations.
        directions: where to start.
        amounts: likewise.
        weight: price of a unit of amount, in units of `rows`.
        iterations: at most so many.
        tolerance: stop when the objective falls by less than this share of half the squared length of the rows.

    Returns:
        Directions of length one, amounts, and the objective after each iteration as a share of the same.

    Raises:
        OutOfRange: a negative weight.

    Example:
        >>> rows = np.eye(4)[[0, 1, 2, 3, 0]]
        >>> directions, amounts, _ = sparse_parts(rows, np.eye(4)[:, :2], np.ones((5, 2)), 0.1)
        >>> amounts.round(1).tolist()[:2]
        [[0.9, 0.0], [0.0, 0.9]]
    """
    if weight < 0:
        raise OutOfRange(f"weight={weight}: a price on the amounts is 0 or more.")
    lengths = np.linalg.norm(directions, axis=0)
    lengths[lengths == 0] = 1.0
    directions, amounts = directions / lengths, amounts * lengths
    half = 0.5 * float((rows**2).sum())
    objectives: list[float] = []
    for _ in range(iterations):
        pull, overlap = rows @ directions - weight, directions.T @ directions
        for _ in range(ROUNDS):
            for j in range(amounts.shape[1]):
                rest = pull[:, j] - amounts @ overlap[:, j] + amounts[:, j] * overlap[j, j]
                amounts[:, j] = np.maximum(rest, 0) / max(overlap[j, j], 1e-300)
        shared, seen = amounts.T @ amounts, rows.T @ amounts
        for j in range(amounts.shape[1]):
            wanted = seen[:, j] - directions @ shared[:, j] + directions[:, j] * shared[j, j]
            length = np.linalg.norm(wanted)
            if length > 0:
                directions[:, j] = wanted / length
        error = half - float((seen * directions).sum()) + 0.5 * float(((directions.T @ directions) * shared).sum())
        objectives.append((error + weight * float(amounts.sum())) / half)
        if len(objectives) > 1 and objectives[-2] - objectives[-1] < tolerance:
            break
    return directions, amounts, np.array(objectives)
