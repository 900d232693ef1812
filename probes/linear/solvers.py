"""Minimise a probe's loss: scikit-learn in memory, or batch by batch in torch, on any device.

`scikit-learn`  `LogisticRegression` (L-BFGS), one per label for `labels`, and `Ridge` for `numbers`.
`lbfgs`         the same function and the same answer, batch by batch: the gradient is summed over one reading of the
                data, SciPy's L-BFGS-B takes the step. Deterministic; for matrices on disk and for accelerators.
`adam`          mini-batches, step size falling to zero by a cosine: for data so large that few readings are wanted.
`sgd`           the recipe of "When do models actually decide?" (**N**): momentum 0.9, step 0.1, weight decay 1e-4
                (given by the caller), up to 100 epochs, patience 10, batches of 256.

Adam and SGD keep the weights that were best on a validation source and stop when it has not improved for `patience`
epochs. Features come in standardised (**X**), so one step size serves all layers.
"""

import math
import random
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, unknown
from probes.linear.batches import Source
from probes.linear.losses import KINDS, Kind, loss_and_slope

Solver = Literal["auto", "scikit-learn", "lbfgs", "adam", "sgd"]
SOLVERS = ("auto", "scikit-learn", "lbfgs", "adam", "sgd")
STEP = {"adam": 0.01, "sgd": 0.1}
"""First step size: Adam's is a judgement (**X**), SGD's the paper's (**N**)."""
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """Weights in standardised coordinates."""

    weight: Float[np.ndarray, "column d"]
    """One row per column of scores."""
    bias: Float[np.ndarray, " column"]
    """Their biases."""
    epochs: int
    """Readings of the data (iterations for scikit-learn)."""
    converged: bool
    """Whether the solver says it is done; for Adam and SGD: whether the loss had stopped improving."""
    loss: float
    """Mean loss with penalty of the training rows (for Adam and SGD: of the last epoch, as it went)."""


def solve(
    source: Source,
    kind: Kind,
    columns: int,
    *,
    weight_decay: float,
    solver: Solver = "lbfgs",
    validation: Source | None = None,
    epochs: int = 100,
    patience: int = 10,
    step: float | None = None,
    tolerance: float = 1e-6,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Solved:
    """Weights that minimise a probe's loss, batch by batch.

    Args:
        source: rows and targets; its mean and scale standardise them.
        kind: which loss.
        columns: of scores.
        weight_decay: of the penalty, see :mod:`probes.linear.losses`.
        solver: `lbfgs`, `adam` or `sgd`.
        validation: rows for early stopping of `adam` and `sgd`; without them the training loss is watched.
        epochs: most readings of the data (ten times as many for `lbfgs`, whose line search reads too).
        patience: epochs without improvement before `adam` and `sgd` stop.
        step: first step size; default :data:`STEP`.
        tolerance: `lbfgs` stops when no entry of the gradient is larger.
        device: where the sums are made; default: the CPU.
        seed: of the order of batches.

    Raises:
        UnknownName: no such solver or kind.
        OutOfRange: a weight decay below 0, or no epoch.
        BadData: the loss became NaN: the step is too large.
    """
    if kind not in KINDS:
        raise unknown("kind of probe", kind, KINDS)
    if weight_decay < 0 or not math.isfinite(weight_decay) or epochs < 1:
        raise OutOfRange(
            f"weight_decay={weight_decay} and epochs={epochs}: the first is 0 or more, the second 1 or more."
        )
    if solver == "lbfgs":
        return _lbfgs(source, kind, columns, weight_decay, 10 * epochs, tolerance, device)
    if solver not in STEP:
        raise unknown("streaming solver", solver, ("lbfgs", *STEP))
    settings = {"step": STEP[solver] if step is None else step, "epochs": epochs, "patience": patience}
    return _stochastic(source, kind, columns, weight_decay, solver, validation, device, seed, **settings)


def _tensors(source: Source, x: np.ndarray, target: np.ndarray, device, dtype) -> tuple[Tensor, Tensor]:
    x = (np.asarray(x, np.float64) - source.mean) / source.scale
    found = torch.as_tensor(np.ascontiguousarray(target), device=device)
    return torch.as_tensor(x, dtype=dtype, device=device), found if found.ndim == 1 else found.to(dtype)


def mean_loss(source: Source, like: Source, kind: Kind, weight: Tensor, bias: Tensor) -> float:
    """Mean loss without penalty over all rows of a source, standardised as another source is."""
    total = 0.0
    for x, target in source.read(None):
        rows, wanted = _tensors(like, x, target, weight.device, weight.dtype)
        total += float(loss_and_slope(kind, rows @ weight.T + bias, wanted)[0])
    return total / source.n


def _lbfgs(source, kind, columns, weight_decay, epochs, tolerance, device) -> Solved:
    from scipy.optimize import minimize

    def loss_at(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.as_tensor(flat.reshape(columns, -1), device=device)
        weight, bias = both[:, :-1], both[:, -1]
        total, slope = torch.zeros((), dtype=torch.float64, device=device), torch.zeros_like(both)
        for x, target in source.read(None):
            rows, wanted = _tensors(source, x, target, device, torch.float64)
            loss, of_scores = loss_and_slope(kind, rows @ weight.T + bias, wanted)
            total = total + loss
            slope[:, :-1] += of_scores.T @ rows
            slope[:, -1] += of_scores.sum(0)
        slope /= source.n
        slope[:, :-1] += weight_decay * weight
        penalty = weight_decay / 2 * weight.square().sum()
        return float(total / source.n + penalty), slope.cpu().numpy().ravel()

    options = {"maxiter": epochs, "maxfun": 2 * epochs, "gtol": tolerance, "ftol": 1e-14, "maxcor": 20}
    found = minimize(loss_at, np.zeros(columns * (source.width + 1)), jac=True, method="L-BFGS-B", options=options)
    both = found.x.reshape(columns, -1)
    small = bool(np.abs(found.jac).max() <= 10 * tolerance)
    done = bool(found.success) or small
    return Solved(weight=both[:, :-1], bias=both[:, -1], epochs=int(found.nfev), converged=done, loss=float(found.fun))


def _stochastic(
    source, kind, columns, weight_decay, solver, validation, device, seed, *, step, epochs, patience
) -> Solved:
    # Float64 on the CPU costs little for one layer, and the twin of scikit-learn is exact; accelerators want float32.
    dtype = torch.float64 if device is None or torch.device(device).type == "cpu" else torch.float32
    weight = torch.zeros(columns, source.width, dtype=dtype, device=device)
    bias = torch.zeros(columns, dtype=dtype, device=device)
    if solver == "adam":
        optimiser = torch.optim.Adam([weight, bias], lr=step)
    else:
        optimiser = torch.optim.SGD([weight, bias], lr=step, momentum=MOMENTUM)
    # The paper's SGD keeps its step; Adam's falls, so that it ends in the minimum and not in a cloud around it.
    falling = solver == "adam"
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2 if falling else 1.0
    )
    generator = np.random.default_rng(seed)
    best, since, kept, loss, used, stopped = math.inf, 0, (weight.clone(), bias.clone()), math.inf, 0, False
    for used in range(1, epochs + 1):
        total = 0.0
        for x, target in source.read(generator):
            rows, wanted = _tensors(source, x, target, device, dtype)
            value, slope = loss_and_slope(kind, rows @ weight.T + bias, wanted)
            weight.grad, bias.grad = slope.T @ rows / len(rows) + weight_decay * weight, slope.mean(0)
            optimiser.step()
            total += float(value)
        schedule.step()
        loss = total / source.n + weight_decay / 2 * float(weight.square().sum())
        if not math.isfinite(loss):
            raise BadData(
                f"the loss of the {solver} probe is not finite after {used} epochs: take a step below {step:g}."
            )
        watched = loss if validation is None else mean_loss(validation, source, kind, weight, bias)
        if watched < best - 1e-7:
            best, since, kept = watched, 0, (weight.clone(), bias.clone())
        else:
            since += 1
        if since >= patience:
            stopped = True
            break
    weight, bias = (tensor.double().cpu().numpy() for tensor in kept)
    return Solved(weight=weight, bias=bias, epochs=used, converged=stopped or since > 0, loss=loss)


def solve_in_memory(
    x: Float[np.ndarray, "row d"],
    target: np.ndarray,
    kind: Kind,
    *,
    weight_decay: float,
    epochs: int = 1000,
    tolerance: float = 1e-6,
) -> Solved:
    """The same by scikit-learn, on standardised rows in memory.

    Args:
        x: standardised rows.
        target: class numbers from 0 on for `classes`, else `[row column]`.
        kind: which loss.
        weight_decay: of the penalty; above 0.
        epochs: most iterations.
        tolerance: of the gradient.

    Raises:
        OutOfRange: no weight decay: scikit-learn needs a penalty here.
    """
    ConvergenceWarning, LogisticRegression, Ridge = _scikit_learn()
    if weight_decay <= 0:
        raise OutOfRange(
            f"weight_decay={weight_decay}: the scikit-learn solver needs one above 0; solver='lbfgs' takes 0."
        )
    n = len(x)
    if kind == "numbers":
        found = Ridge(alpha=n * weight_decay).fit(x, target)
        weight, bias = np.atleast_2d(found.coef_), np.atleast_1d(found.intercept_)
        return Solved(
            weight=weight, bias=bias, epochs=1, converged=True, loss=_loss(x, target, kind, weight, bias, weight_decay)
        )
    weights, biases, iterations = [], [], 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ConvergenceWarning)
        for column in [target] if kind == "classes" else target.T:
            if kind == "labels" and len(np.unique(column)) < 2:
                # One answer only: the best finite bias is endless; e^-12 is as sure as float32 sums can tell.
                weights.append(np.zeros((1, x.shape[1])))
                biases.append(np.array([12.0 if column[0] else -12.0]))
                continue
            found = LogisticRegression(C=1 / (n * weight_decay), max_iter=epochs, tol=tolerance).fit(x, column)
            weights.append(found.coef_)
            biases.append(found.intercept_)
            iterations = max(iterations, int(np.max(found.n_iter_)))
    weight, bias = np.concatenate(weights), np.concatenate(biases)
    done = True
    for warning in seen:
        if issubclass(warning.category, ConvergenceWarning):
            done = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    loss = _loss(x, target, kind, weight, bias, weight_decay)
    return Solved(weight=weight, bias=bias, epochs=iterations, converged=done, loss=loss)


def _scikit_learn() -> tuple[type, type, type]:
    """scikit-learn's warning and models; importing them draws from Python's generator, which is put back."""
    state = random.getstate()
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, Ridge
    finally:
        random.setstate(state)
    return ConvergenceWarning, LogisticRegression, Ridge


def _loss(x, target, kind, weight, bias, weight_decay) -> float:
    scores = torch.as_tensor(x @ weight.T + bias)
    total = loss_and_slope(kind, scores, torch.as_tensor(target))[0]
    return float(total) / len(x) + weight_decay / 2 * float((weight**2).sum())
