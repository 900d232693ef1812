"""Codes of rows in a fixed bank of concepts: how much of each concept is in a row, never less than nothing.

    code(x) = argmin over u >= 0 of  |x - u V|^2 + sum_j penalty_j u_j^2 + 2 price sum_j u_j

1. One QR factorisation of the bank (with the square roots of the penalty below it) makes the problem one of as many
   equations as there are concepts, whatever the width of the rows: `|R u - c|^2`.
2. A price on the codes moves the target: `c - price R^-T 1`.
3. Each row is solved exactly by scipy's active-set solver. :func:`plain_code` is the twin without steps 1 and 2.
"""

import numpy as np
from jaxtyping import Float

from mechvis.errors import FailedCheck, ShapeMismatch
from mechvis.record import finite


def nonnegative_code(
    rows: Float[np.ndarray, "row d"],
    bank: Float[np.ndarray, "concept d"],
    penalty: np.ndarray | None = None,
    price: float = 0.0,
) -> Float[np.ndarray, "row concept"]:
    """Non-negative least-squares codes of rows, exact (Lawson and Hanson 1974; **K**).

    Args:
        rows: what to code.
        bank: one concept per row; concepts may be linearly dependent.
        penalty: weight of the squared code of each concept, in squared units of `rows`; none by default.
        price: weight of the sum of the codes (a non-negative lasso), in units of `rows`.

    Returns:
        Codes, all >= 0.

    Raises:
        ShapeMismatch: rows and bank of different width.
        NotFinite: NaN or Inf.
        FailedCheck: the solver gave up on a row.

    Example:
        >>> nonnegative_code(np.array([[2.0, -1.0]]), np.eye(2))
        array([[2., 0.]])
        >>> nonnegative_code(np.array([[2.0, -1.0]]), np.eye(2), price=0.5)
        array([[1.5, 0. ]])
    """
    rows, bank = _checked(rows, bank)
    k = len(bank)
    ridge = np.zeros(k) if penalty is None else np.asarray(penalty, np.float64)
    if price:
        # R must be invertible; this is far below what any row can show.
        ridge = ridge + 1e-12 * max(float((bank**2).sum()), 1e-300)
    stacked = np.concatenate([bank.T, np.diag(np.sqrt(ridge))]) if ridge.any() else bank.T
    q, r = np.linalg.qr(stacked)
    wanted = rows @ q[: bank.shape[1]]
    if price:
        from scipy.linalg import solve_triangular

        wanted = wanted - price * solve_triangular(r, np.ones(k), trans="T")
    return _solve(r, wanted)


def plain_code(rows: np.ndarray, bank: np.ndarray, penalty: np.ndarray | None = None, price: float = 0.0) -> np.ndarray:
    """The twin of :func:`nonnegative_code`: every row against the whole bank, with a price by coordinate descent."""
    rows, bank = _checked(rows, bank)
    k = len(bank)
    ridge = np.zeros(k) if penalty is None else np.asarray(penalty, np.float64)
    if not price:
        return _solve(
            np.concatenate([bank.T, np.diag(np.sqrt(ridge))]), np.concatenate([rows, np.zeros((len(rows), k))], axis=1)
        )
    gram, codes = bank @ bank.T + np.diag(ridge), np.zeros((len(rows), k))
    for i, pull in enumerate(rows @ bank.T - price):
        for _ in range(20_000):
            before = codes[i].copy()
            for j in range(k):
                rest = pull[j] - gram[j] @ codes[i] + gram[j, j] * codes[i, j]
                codes[i, j] = max(rest, 0.0) / gram[j, j]
            if np.abs(codes[i] - before).max() < 1e-13:
                break
    return codes


def _checked(rows: np.ndarray, bank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, bank = np.asarray(rows, np.float64), np.asarray(bank, np.float64)
    if rows.ndim != 2 or bank.ndim != 2 or rows.shape[1] != bank.shape[1]:
        raise ShapeMismatch(
            f"rows [row d] and a bank [concept d] of one width are wanted, got {list(rows.shape)} and "
            f"{list(bank.shape)}."
        )
    return finite("the rows", rows), finite("the bank of concepts", bank)


def _solve(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    codes = np.empty((len(rows), matrix.shape[1]))
    for i, row in enumerate(rows):
        try:
            codes[i], _ = nnls(matrix, row, maxiter=100 * matrix.shape[1])
        except RuntimeError as error:
            raise FailedCheck(f"no code was found for row {i}: {error}. Are concepts nearly equal?") from error
    return codes
