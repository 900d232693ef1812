"""Semi-NMF: signed activations as non-negative amounts of signed directions (methods.md 12, SNMF; **C**).

    A [d row]  ~  F [d concept] G^T,   G [row concept] >= 0,   F free

1. `G` starts at random, from the SVD, or from k-means (clusters as 0/1 plus 0.2).
2. `F = A G (G^T G + reg)^-1`, the best directions for these amounts.
3. With `sparsity`, each column of `F` keeps its largest entries by magnitude: concepts of few neurons.
4. Columns of `G` get length one; their length goes to `F`.
5. `G <- G sqrt((P+ + G Q-) / (P- + G Q+ + eps))` with `P = A^T F`, `Q = F^T F`, `+` and `-` their parts.
6. Again from 2, up to 500 times, or until nothing has improved for 100 iterations.

Without step 3 the loss never rises (Ding, Li and Jordan 2010). The loss is computed from the matrices of step 5, so
that the residual is never formed; :func:`plain_step` is the twin that writes everything out.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite

Init = Literal["kmeans", "svd", "random"]
EPS = 1e-12
"""Keeps a quotient defined where a concept has no amount left; relative to the scale of the data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SemiNMF:
    """The best factors that were met."""

    directions: Float[np.ndarray, "d concept"]
    """F: what each concept is."""
    amounts: Float[np.ndarray, "row concept"]
    """G: how much of it each row holds; columns of length one."""
    losses: Float[np.ndarray, " iteration"]
    """Squared error after each iteration, as a share of the squared length of the rows."""


def semi_nmf(
    rows: Float[np.ndarray, "row d"],
    n_concepts: int = 20,
    *,
    sparsity: float | None = None,
    init: Init = "kmeans",
    iterations: int = 500,
    patience: int = 100,
    tolerance: float = 1e-6,
    reg: float = 1e-8,
    seed: int = 0,
) -> SemiNMF:
    """Factor rows into non-negative amounts of signed directions (SNMF of methods.md 12, **C**; defaults there).

    Args:
        rows: activations, one row per image, patch or sample.
        n_concepts: how many directions.
        sparsity: share of the entries of each direction that stay, e.g. 0.01 for the top 1 % of the neurons; at least
            one entry. None: all of them.
        init: where the amounts start.
        iterations: at most so many.
        patience: stop after so many iterations without improvement.
        tolerance: what counts as one, as a share of the squared length of the rows (**X**).
        reg: ridge of step 2, where columns of `G` have length one (**X**).
        seed: of the start.

    Returns:
        SemiNMF: directions, amounts, and the loss after each iteration.

    Raises:
        ShapeMismatch: not `[row d]`.
        OutOfRange: more concepts than rows or columns can tell apart, or a share outside (0, 1].
        BadData: rows that are all zero.
        NotFinite, UnknownName.

    Example:
        >>> found = semi_nmf(np.random.default_rng(0).normal(size=(60, 8)), 3)
        >>> found.amounts.shape, bool((found.amounts >= 0).all())
        ((60, 3), True)
    """
    rows = checked_rows(rows, n_concepts)
    if init not in get_args(Init):
        raise unknown("start", init, get_args(Init))
    if sparsity is not None and not 0 < sparsity <= 1:
        raise OutOfRange(f"sparsity={sparsity} is the share of entries that stay: above 0, at most 1.")
    keep = None if sparsity is None else max(1, int(np.ceil(sparsity * rows.shape[1])))
    total = float((rows**2).sum())
    amounts = start(rows, n_concepts, init, seed)
    losses: list[float] = []
    best = (np.inf, amounts, amounts)
    waited = 0
    for _ in range(iterations):
        directions, amounts, loss = _step(rows, amounts, total, keep, reg)
        improved = loss < best[0] - tolerance
        losses.append(loss)
        if loss < best[0]:
            best = (loss, directions, amounts)
        waited = 0 if improved else waited + 1
        if waited >= patience:
            break
    _, directions, amounts = best
    return SemiNMF(directions=directions, amounts=amounts, losses=np.array(losses))


def start(rows: Float[np.ndarray, "row d"], n_concepts: int, init: Init, seed: int = 0) -> np.ndarray:
    """The first amounts `[row concept]`, all positive, columns of length one."""
    generator = np.random.default_rng(seed)
    if init == "kmeans":
        from sklearn.cluster import KMeans

        found = KMeans(n_concepts, n_init=1, random_state=seed).fit_predict(rows)
        amounts = np.eye(n_concepts)[found] + 0.2
    elif init == "svd":
        left, _, _ = np.linalg.svd(rows, full_matrices=False)
        left = left[:, :n_concepts]
        # A singular vector has no sign of its own: take the side that holds more.
        side = np.where((np.clip(left, 0, None) ** 2).sum(0) >= (np.clip(left, None, 0) ** 2).sum(0), 1, -1)
        amounts = np.clip(left * side, 0, None) + 0.2 * np.abs(left).mean()
    else:
        amounts = generator.uniform(size=(len(rows), n_concepts)) + 1e-3
    return amounts / np.linalg.norm(amounts, axis=0)


def plain_step(
    rows: np.ndarray, amounts: np.ndarray, keep: int | None = None, reg: float = 1e-8
) -> tuple[np.ndarray, np.ndarray, float]:
    """Steps 2 to 5 written out entry by entry: the twin of what :func:`semi_nmf` does once per iteration.

    Args:
        rows: activations `[row d]`.
        amounts: `[row concept]`.
        keep: entries of each direction that stay; None for all.
        reg: ridge.

    Returns:
        Directions `[d concept]`, new amounts, and the squared error as a share of the squared length of the rows.
    """
    n, k = amounts.shape
    directions = np.linalg.solve(amounts.T @ amounts + reg * np.eye(k), amounts.T @ rows).T
    for j in range(k):
        if keep is not None:
            small = np.argsort(-np.abs(directions[:, j]), kind="stable")[keep:]
            directions[small, j] = 0
        length = np.sqrt((amounts[:, j] ** 2).sum())
        if length > 0:
            directions[:, j] *= length
            amounts = amounts.copy()
            amounts[:, j] /= length
    eps = EPS * float((rows**2).sum())
    new = np.zeros_like(amounts)
    for i in range(n):
        for j in range(k):
            pull = float(rows[i] @ directions[:, j])
            above, below = max(pull, 0.0), max(-pull, 0.0) + eps
            for other in range(k):
                overlap = float(directions[:, other] @ directions[:, j])
                above += amounts[i, other] * max(-overlap, 0.0)
                below += amounts[i, other] * max(overlap, 0.0)
            new[i, j] = amounts[i, j] * np.sqrt(above / below)
    return directions, new, float(((rows - new @ directions.T) ** 2).sum() / (rows**2).sum())


def checked_rows(rows: np.ndarray, n_concepts: int) -> np.ndarray:
    """Rows as float64, fit to be factored into so many concepts."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ShapeMismatch(f"rows of activations [row d] are wanted, got the shape {list(rows.shape)}.")
    rows = finite("the rows", rows.astype(np.float64))
    if not 1 <= n_concepts <= len(rows):
        raise OutOfRange(f"{n_concepts} concepts from {len(rows)} rows: ask for 1 to {len(rows)}.")
    if not rows.any():
        raise BadData("all rows are zero: there is nothing to factor.")
    return rows


def _step(
    rows: np.ndarray, amounts: np.ndarray, total: float, keep: int | None, reg: float
) -> tuple[np.ndarray, np.ndarray, float]:
    k = amounts.shape[1]
    directions = np.linalg.solve(amounts.T @ amounts + reg * np.eye(k), amounts.T @ rows).T
    if keep is not None and keep < len(directions):
        small = np.argsort(-np.abs(directions), axis=0, kind="stable")[keep:]
        np.put_along_axis(directions, small, 0.0, axis=0)
    length = np.linalg.norm(amounts, axis=0)
    length[length == 0] = 1.0
    amounts, directions = amounts / length, directions * length
    pull, overlap = rows @ directions, directions.T @ directions
    above = np.clip(pull, 0, None) + amounts @ np.clip(-overlap, 0, None)
    below = np.clip(-pull, 0, None) + amounts @ np.clip(overlap, 0, None) + EPS * total
    amounts = amounts * np.sqrt(above / below)
    # |A - F G^T|^2 without the residual: |A|^2 - 2 <A^T F, G> + <F^T F, G^T G>.
    loss = total - 2 * float((pull * amounts).sum()) + float((overlap * (amounts.T @ amounts)).sum())
    return directions, amounts, loss / total
