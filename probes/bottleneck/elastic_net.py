"""The sparse final layer: multinomial logistic regression with an elastic net, exact to a stated tolerance.

    minimise  (1-w) mean CE(target, softmax(y)) + w mean KL(teacher || softmax(y / tau))
              + lam ( alpha |W|_1 + (1-alpha)/2 |W|^2 ),     y = x W^T + b

The intercept is not penalised. Label-free bottlenecks solve it with GLM-SAGA, a stochastic solver with a step of 0.1
(methods2.md 17.6, **C**: alpha 0.99, lambda 7e-4, 1000 iterations). The problem is convex, so any solver that
converges gives the same weights; ours takes all images at once: accelerated proximal gradient steps (Beck and Teboulle
2009) of the safe length 1/L, started again from rest whenever momentum points uphill (O'Donoghue and Candes 2015).
It stops when the optimality conditions hold to `tolerance`, and says how far they were met; so "converged" is checked,
not assumed.

A path goes from the lambda at which every weight is zero downwards, each solution starting from the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

Targets = Float[np.ndarray, "image class"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sparse:
    """One solution."""

    weight: Float[np.ndarray, "class concept"]
    """Weights; most are exactly zero."""
    bias: Float[np.ndarray, " class"]
    """Intercepts."""
    lam: float
    """Strength of the penalty."""
    kkt: float
    """Largest violation of the optimality conditions, in the unit of the gradient (nats per unit of weight)."""
    steps: int
    """Steps taken."""

    @property
    def per_class(self) -> float:
        """Mean number of non-zero weights per class (the number of effective concepts, NEC)."""
        return float((self.weight != 0).sum(1).mean())

    def logits(self, x: Float[np.ndarray, "image concept"]) -> Targets:
        """Logits of some rows."""
        return x @ self.weight.T + self.bias


def elastic_net(
    x: Float[np.ndarray, "image concept"],
    targets: Targets,
    *,
    lam: float = 7e-4,
    alpha: float = 0.99,
    teacher: Targets | None = None,
    teacher_weight: float = 0.0,
    tau: float = 2.0,
    steps: int = 1000,
    tolerance: float = 1e-6,
    start: Sparse | None = None,
) -> Sparse:
    """Solve the problem above (methods2.md 17.6 **C** for the defaults, solver ours).

    Args:
        x: rows, best standardised `[image concept]`.
        targets: one-hot labels, or probabilities that sum to one `[image class]`.
        lam: strength of the penalty.
        alpha: share of the l1 norm; 0 is ridge, 1 is lasso.
        teacher: the teacher's probabilities *at temperature tau*, if there is one.
        teacher_weight: w above.
        tau: temperature of the distillation term.
        steps: the most that are taken.
        tolerance: of the optimality conditions, where it stops.
        start: a solution to start from.

    Returns:
        Sparse: with `kkt`, how well the conditions hold. It may be above `tolerance` if `steps` ran out.

    Raises:
        ShapeMismatch: rows and targets that do not belong together.
        NotFinite: NaN or Inf.
        OutOfRange: a setting outside its range.
        BadData: targets that are no probabilities.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((50, 3))
        >>> found = elastic_net(x, np.eye(2)[(x[:, 0] > 0).astype(int)], lam=0.05)
        >>> bool(found.kkt <= 1e-6), (found.weight != 0).any(0).tolist()
        (True, [True, False, False])
    """
    x, targets, teacher = _checked(x, targets, teacher, lam, alpha, teacher_weight, tau)
    n, k = x.shape
    w = teacher_weight if teacher is not None else 0.0
    # The free intercept takes up any shift of the columns; centred ones converge much faster.
    centre = x.mean(0)
    rows = np.concatenate([x - centre, np.ones((n, 1))], axis=1)
    l1 = np.full(k + 1, lam * alpha)
    l2 = np.full(k + 1, lam * (1 - alpha))
    l1[-1] = l2[-1] = 0.0  # the intercept is free
    # The Hessian of a softmax's cross-entropy is at most 1/2.
    curvature = 0.5 * ((1 - w) + w / tau**2) * np.linalg.norm(rows, 2) ** 2 / n + lam * (1 - alpha)
    step = 1.0 / max(curvature, 1e-30)

    def gradient(theta: np.ndarray) -> np.ndarray:
        y = rows @ theta.T
        pull = (1 - w) * (_softmax(y) - targets)
        if w:
            pull += w / tau * (_softmax(y / tau) - teacher)
        return pull.T @ rows / n + l2 * theta

    theta = np.zeros((targets.shape[1], k + 1))
    if start is not None:
        theta = np.concatenate([start.weight, (start.bias + start.weight @ centre)[:, None]], axis=1)
    ahead, momentum, kkt, done = theta.copy(), 1.0, np.inf, 0
    for done in range(1, steps + 1):
        moved = ahead - step * gradient(ahead)
        new = np.sign(moved) * np.maximum(np.abs(moved) - step * l1, 0.0)
        if done % 10 == 0 or done == steps:
            kkt = _violation(new, gradient(new), l1)
            if kkt <= tolerance:
                theta = new
                break
        uphill = ((ahead - new) * (new - theta)).sum() > 0
        following = 1.0 if uphill else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new if uphill else new + (momentum - 1) / following * (new - theta)
        theta, momentum = new, following
    weight = theta[:, :-1]
    return Sparse(weight=weight, bias=theta[:, -1] - weight @ centre, lam=float(lam), kkt=float(kkt), steps=done)


def elastic_net_path(
    x: Float[np.ndarray, "image concept"],
    targets: Targets,
    *,
    lambdas: Sequence[float] | None = None,
    n_lambdas: int = 20,
    ratio: float = 1e-3,
    alpha: float = 0.99,
    **more: object,
) -> list[Sparse]:
    """Solutions from the smallest lambda at which all weights are zero downwards, each started from the last.

    Args:
        x, targets, alpha, more: as in :func:`elastic_net`.
        lambdas: which, largest first; default: `n_lambdas` in equal steps of their logarithm.
        n_lambdas: how many.
        ratio: the last lambda over the first.

    Raises:
        OutOfRange: alpha of 0, for which no lambda makes all weights zero; lambdas that do not fall.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((50, 3))
        >>> [s.per_class for s in elastic_net_path(x, np.eye(2)[(x[:, 0] > 0).astype(int)], n_lambdas=2)]
        [0.0, 3.0]
    """
    if lambdas is None:
        if not 0 < alpha <= 1 or not 0 < ratio < 1 or n_lambdas < 2:
            raise OutOfRange(
                f"alpha={alpha}, ratio={ratio}, n_lambdas={n_lambdas}: a path needs 0 < alpha <= 1, 0 < ratio < 1 and "
                "at least two lambdas."
            )
        teacher, w, tau = more.get("teacher"), float(more.get("teacher_weight", 0.0)), float(more.get("tau", 2.0))
        x, targets, teacher = _checked(x, targets, teacher, 1.0, alpha, w, tau)
        flat = elastic_net(x, targets, lam=1e6, alpha=alpha, **{**more, "steps": 5000, "tolerance": 1e-9})
        y = np.broadcast_to(flat.bias, targets.shape)
        pull = _softmax(y) - targets
        if teacher is not None and w:
            pull = (1 - w) * pull + w / tau * (_softmax(y / tau) - teacher)
        first = float(np.abs(pull.T @ x).max() / len(x) / alpha) * (1 + 1e-6)
        lambdas = first * np.geomspace(1.0, ratio, n_lambdas)
    elif any(b >= a for a, b in pairwise(lambdas)):
        raise OutOfRange("the lambdas of a path fall from the first to the last.")
    found: list[Sparse] = []
    for lam in lambdas:
        start = found[-1] if found else None
        found.append(elastic_net(x, targets, lam=float(lam), alpha=alpha, start=start, **more))
    return found


def _softmax(y: np.ndarray) -> np.ndarray:
    """scipy's costs several times the arithmetic on rows this short."""
    e = np.exp(y - y.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _violation(theta: np.ndarray, gradient: np.ndarray, l1: np.ndarray) -> float:
    """How far zero is from the subdifferential, at its worst entry."""
    at_zero = np.maximum(np.abs(gradient) - l1, 0.0)
    elsewhere = np.abs(gradient + l1 * np.sign(theta))
    return float(np.where(theta == 0, at_zero, elsewhere).max())


def _checked(
    x: np.ndarray,
    targets: np.ndarray,
    teacher: np.ndarray | None,
    lam: float,
    alpha: float,
    teacher_weight: float,
    tau: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    x, targets = np.asarray(x, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    teacher = None if teacher is None else np.asarray(teacher, dtype=np.float64)
    if x.ndim != 2 or targets.ndim != 2 or len(x) != len(targets) or not x.size or targets.shape[1] < 2:
        raise ShapeMismatch(
            f"rows {list(x.shape)} and targets {list(targets.shape)}: give [image concept] and [image class] of the "
            "same images, with at least two classes."
        )
    if teacher is not None and teacher.shape != targets.shape:
        raise ShapeMismatch(f"the teacher's answers are {list(teacher.shape)}, the targets {list(targets.shape)}.")
    for what, array in (("rows", x), ("targets", targets), ("teacher", teacher)):
        if array is not None and not np.isfinite(array).all():
            raise NotFinite(f"the {what} of the elastic net hold NaN or Inf.")
    for what, array in (("targets", targets), ("teacher", teacher)):
        if array is not None and (array.min() < 0 or np.abs(array.sum(1) - 1).max() > 1e-6):
            raise BadData(f"the {what} are no probabilities: they must be 0 or more and sum to one in every row.")
    if lam < 0 or not 0 <= alpha <= 1 or not 0 <= teacher_weight <= 1 or tau <= 0:
        raise OutOfRange(
            f"lam={lam}, alpha={alpha}, teacher_weight={teacher_weight}, tau={tau}: lam is 0 or more, alpha and "
            "teacher_weight lie in [0, 1], tau is positive."
        )
    return x, targets, teacher
