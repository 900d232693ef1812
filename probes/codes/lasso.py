"""Non-negative lasso codes by three solvers that minimise one objective.

    minimise over w >= 0:   |x - w T|^2 + l1 * sum(w)

* `coordinate_descent`: scikit-learn's Lasso, whose objective is half of the mean square plus `alpha * sum(w)`; so
  `alpha = l1 / (2 d)`.
* `admm`: split w = z, z >= 0. Every row shares one linear system `(2 T T^T + rho I) w = 2 T x + rho (z - u)`; by
  Woodbury's identity only a matrix of the width of the embedding is factored, not one of the size of the vocabulary.
  `woodbury=False` is the twin that factors the large one.
* `working_set`: exact, and fast where codes are much shorter than the vocabulary. Solve over a few words only, look at
  all words once for those that would still pay, add them, repeat until none does. Over few words the problem is a
  non-negative least squares: with G = A A^T = R^T R and b = A x - l1 / 2, it is `min |R w - R^-T b|` over w >= 0.

`kkt` says how far a code is from the optimum: with `g = T (x - w T)^T`, optimal means g <= l1 / 2 everywhere, with
equality where w > 0.

Source: methods.md 2.5 (**C**; Woodbury, working set **X**).
"""

import warnings

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import nnls

from mechvis.errors import MechvisWarning, OutOfRange
from probes.codes.pursuit import checked

Codes = Float[np.ndarray, "row word"]
Rows = Float[np.ndarray, "row d"]
Words = Float[np.ndarray, "word d"]


def coordinate_descent(x: Rows, words: Words, l1: float, *, iterations: int = 10_000, tolerance: float = 1e-6) -> Codes:
    """Codes by scikit-learn's coordinate descent.

    Args:
        x: what is explained.
        words: the dictionary.
        l1: price of a unit of weight.
        iterations: sweeps over the words at most.
        tolerance: of the duality gap, relative to |x|^2 / 2.

    Raises:
        OutOfRange: l1 not above zero.
        ShapeMismatch, NotFinite.

    Example:
        >>> coordinate_descent(np.array([[1.0, 0.1]]), np.eye(2), 0.4).round(6).tolist()
        [[0.8, 0.0]]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    x, words, _ = _checked(x, words, l1)
    model = Lasso(alpha=l1 / (2 * x.shape[1]), positive=True, fit_intercept=False, max_iter=iterations, tol=tolerance)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(words.T, x.T)
    if any(issubclass(one.category, ConvergenceWarning) for one in said):
        warnings.warn(
            f"coordinate descent stopped after {iterations} sweeps before the duality gap was below {tolerance:g}: "
            "look at `kkt`, raise iterations, or use admm.",
            MechvisWarning,
            stacklevel=2,
        )
    return np.atleast_2d(model.coef_).astype(np.float64)


def admm(
    x: Rows,
    words: Words,
    l1: float,
    *,
    rho: float = 5.0,
    iterations: int = 2000,
    tolerance: float = 1e-6,
    woodbury: bool = True,
) -> Codes:
    """Codes by the alternating direction method of multipliers, all rows together.

    Args:
        x: what is explained.
        words: the dictionary.
        l1: price of a unit of weight.
        rho: how strongly the two copies of the code are tied.
        iterations: at most.
        tolerance: largest change and largest difference of the two copies at which it stops.
        woodbury: factor a matrix of the embedding's width; False: of the vocabulary's size.

    Raises:
        OutOfRange: l1 or rho not above zero.
        ShapeMismatch, NotFinite.

    Example:
        >>> admm(np.array([[1.0, 0.1]]), np.eye(2), 0.4, tolerance=1e-10).round(6).tolist()
        [[0.8, 0.0]]
    """
    x, words, _ = _checked(x, words, l1)
    if not rho > 0:
        raise OutOfRange(f"rho={rho}: give more than 0.")
    wanted = 2 * x @ words.T
    solve = _woodbury(words, rho) if woodbury else _direct(words, rho)
    z = np.zeros((len(x), len(words)))
    u = np.zeros_like(z)
    for _ in range(iterations):
        w = solve(wanted + rho * (z - u))
        before, z = z, np.maximum(w + u - l1 / rho, 0.0)
        u += w - z
        if max(np.abs(w - z).max(), np.abs(z - before).max()) < tolerance:
            return z
    warnings.warn(
        f"admm stopped after {iterations} iterations before its two copies agreed to {tolerance:g}: look at `kkt`, "
        "raise iterations, or use coordinate_descent.",
        MechvisWarning,
        stacklevel=2,
    )
    return z


def working_set(x: Rows, words: Words, l1: float, *, step: int = 32, tolerance: float = 1e-9) -> Codes:
    """Codes by solving over the words that pay.

    Args:
        x: what is explained.
        words: the dictionary.
        l1: price of a unit of weight.
        step: words that join at once.
        tolerance: by how much a word left out may violate the conditions of the optimum.

    Raises:
        OutOfRange: l1 not above zero, or step below one.
        ShapeMismatch, NotFinite.

    Example:
        >>> working_set(np.array([[1.0, 0.1]]), np.eye(2), 0.4).round(6).tolist()
        [[0.8, 0.0]]
    """
    x, words, _ = _checked(x, words, l1)
    if step < 1:
        raise OutOfRange(f"step={step}: give at least 1.")
    codes = np.zeros((len(x), len(words)))
    members = [np.zeros(0, int) for _ in x]
    slope = x @ words.T - l1 / 2
    open_rows = np.arange(len(x))
    while len(open_rows):
        best = np.argpartition(-slope, min(step, len(words)) - 1, axis=1)[:, :step]
        fresh = [row[pays] for row, pays in zip(best, np.take_along_axis(slope, best, 1) > tolerance, strict=True)]
        # A member at its optimum has no slope left; it cannot pay again but by rounding.
        fresh = [np.setdiff1d(new, members[i]) for i, new in zip(open_rows, fresh, strict=True)]
        going = np.array([len(new) > 0 for new in fresh])
        open_rows, fresh = open_rows[going], [new for new in fresh if len(new)]
        residual = np.empty((len(open_rows), x.shape[1]))
        for place, (i, new) in enumerate(zip(open_rows, fresh, strict=True)):
            chosen = np.concatenate([members[i], new])
            weights = _few(words[chosen], x[i], l1)
            members[i] = chosen[weights > 0]
            codes[i] = 0.0
            codes[i, members[i]] = weights[weights > 0]
            residual[place] = x[i] - weights @ words[chosen]
        slope = residual @ words.T - l1 / 2
    return codes


def _few(words: Words, x: Float[np.ndarray, " d"], l1: float) -> Float[np.ndarray, " word"]:
    """The exact code over a few words."""
    gram = words @ words.T
    wanted = words @ x - l1 / 2
    jitter = 0.0
    while True:
        try:
            root = np.linalg.cholesky(gram + jitter * np.eye(len(gram)))
            break
        except np.linalg.LinAlgError:  # words that are sums of others
            jitter = max(10 * jitter, 1e-12 * np.trace(gram))
    return nnls(root.T, solve_triangular(root, wanted, lower=True))[0]


def objective(x: Rows, words: Words, codes: Codes, l1: float) -> Float[np.ndarray, " row"]:
    """What both solvers minimise, per row."""
    return ((x - codes @ words) ** 2).sum(1) + l1 * codes.sum(1)


def kkt(x: Rows, words: Words, codes: Codes, l1: float) -> Float[np.ndarray, " row"]:
    """Largest violation of the conditions of the optimum, per row, in the unit of a scalar product of x with a word."""
    slope = (x - codes @ words) @ words.T - l1 / 2
    return np.where(codes > 0, np.abs(slope), np.maximum(slope, 0.0)).max(1)


def _checked(x: Rows, words: Words, l1: float) -> tuple[Rows, Words, np.ndarray]:
    if not l1 > 0:
        raise OutOfRange(f"l1={l1}: give more than 0; at 0 nothing makes the code sparse.")
    return checked(x, words)


def _woodbury(words: Words, rho: float):
    """(2 T T^T + rho I)^-1 = (I - 2 T (rho I + 2 T^T T)^-1 T^T) / rho."""
    small = cho_factor(rho * np.eye(words.shape[1]) + 2 * words.T @ words)
    return lambda rows: (rows - 2 * cho_solve(small, (rows @ words).T).T @ words.T) / rho


def _direct(words: Words, rho: float):
    large = cho_factor(2 * words @ words.T + rho * np.eye(len(words)))
    return lambda rows: cho_solve(large, rows.T).T
