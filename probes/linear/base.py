"""What every linear probe does: settings, fitting in memory or batch by batch, scores, and the directions it reads.

The kinds (one class a row, labels, numbers) differ in their targets and answers only: :mod:`probes.linear.estimators`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator

from mechvis.errors import MechvisError, OutOfRange, ShapeMismatch, unknown
from probes.linear.batches import Batch, Rows, Source, batches_source, matrix, matrix_source, some
from probes.linear.losses import Kind
from probes.linear.solvers import SOLVERS, Solved, Solver, solve, solve_in_memory

IN_MEMORY = 2**31
"""Bytes up to which `auto` takes scikit-learn: it makes a standardised copy in float64."""


class NotFitted(MechvisError, ValueError):
    """A probe is asked before it was fitted."""


class LinearProbe(BaseEstimator, ABC):
    """What the three probes share; use one of them, or :func:`probe_for`.

    Args:
        weight_decay: of the penalty, in units of the mean loss; None: one over the number of rows, which is
            scikit-learn's `C=1` (`alpha=1` for numbers).
        solver: see :mod:`probes.linear.solvers`; `auto`: scikit-learn for what fits into memory, else `lbfgs`.
        rank: most directions of the probe; None: all.
        standardise: by mean and deviation of the training rows.
        batch_size: rows at once of the streaming solvers; None: 256 for `adam` and `sgd` (**N**), 4096 for `lbfgs`.
        epochs: most readings of the data (for L-BFGS ten times as many).
        patience: epochs without improvement before `adam` and `sgd` stop.
        step: first step size of `adam` and `sgd`; None: theirs.
        validation_share: part of the training rows that `adam` and `sgd` keep for early stopping.
        tolerance: largest entry of the gradient at which L-BFGS stops; as in scikit-learn.
        device: for the streaming solvers.
        seed: of the validation rows and of the order of batches.
    """

    KIND: ClassVar[Kind]
    """Which loss."""

    def __init__(
        self,
        *,
        weight_decay: float | int | None = None,
        solver: Solver = "auto",
        rank: int | None = None,
        standardise: bool = True,
        batch_size: int | None = None,
        epochs: int = 100,
        patience: int = 10,
        step: float | int | None = None,
        validation_share: float | int = 0.1,
        tolerance: float = 1e-4,
        device: str | None = None,
        seed: int = 0,
    ):
        self.weight_decay = weight_decay
        self.solver = solver
        self.rank = rank
        self.standardise = standardise
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.step = step
        self.validation_share = validation_share
        self.tolerance = tolerance
        self.device = device
        self.seed = seed

    def fit(self, X: np.ndarray | Rows, y: np.ndarray) -> "LinearProbe":
        """Fit to a matrix, in memory or a memory map.

        Args:
            X: `[row d]`.
            y: class per row (numbers or names), 0/1 `[row label]`, or numbers `[row]` or `[row column]`.

        Raises:
            BadData: no row, one class only, a weight decay or rank without sense.
            ShapeMismatch: `X` and `y` do not fit each other.
            NotFinite: NaN or Inf in either.
            UnknownName: no such solver.
        """
        x = matrix(X)
        self._check(x.shape[1])
        target, columns = self._learn_target(np.asarray(y), len(x))
        solver = self.solver
        if solver == "auto":
            disk = isinstance(x, np.memmap | Rows) or x.size * 8 > IN_MEMORY or self.device is not None
            solver = "lbfgs" if disk or self.weight_decay == 0 else "scikit-learn"
        source = matrix_source(x, target, batch_size=self._batch(solver), standardise=self.standardise)
        validation = None
        if solver in ("adam", "sgd") and 0 < self.validation_share < 1 and len(x) >= 20:
            order = np.random.default_rng(self.seed).permutation(len(x))
            held = max(1, round(self.validation_share * len(x)))
            more = {"batch_size": self._batch(solver), "standardise": self.standardise}
            validation = matrix_source(some(x, order[:held]), target[order[:held]], **more)
            kept = np.sort(order[held:])
            source = matrix_source(some(x, kept), target[kept], **more)
        return self._solved(source, columns, solver, validation)

    def fit_batches(
        self,
        batches: Iterable[Batch],
        *,
        classes: Iterable[Any] | None = None,
        validation: Iterable[Batch] | None = None,
    ) -> "LinearProbe":
        """Fit to batches `(rows, targets)` that can be read again and again, without a matrix of them all.

        Args:
            batches: a list, or an object whose `__iter__` starts anew, e.g. one that runs a model.
            classes: all classes that can occur; read from the batches where left out. For :class:`ClassProbe` only.
            validation: more of them, for early stopping of `adam` and `sgd`; without, the training loss is watched.

        Raises:
            BadData: an iterator, which can be read only once; no batch; one class only.
            UnknownName: the `scikit-learn` solver, which needs a matrix.
        """
        if self.solver == "scikit-learn":
            raise unknown("streaming solver", self.solver, SOLVERS[2:])
        measured = batches_source(batches, standardise=self.standardise)
        self._check(measured.width)
        found = [np.asarray(target) for _, target in measured.read(None)]
        if classes is not None:
            found = [np.asarray(list(classes))]
        _, columns = self._learn_target(np.concatenate(found), len(np.concatenate(found)))

        def coded(raw: Iterable[Batch]):
            return lambda generator=None: ((matrix(x), self._code(np.asarray(y))) for x, y in raw)

        source = replace(measured, read=coded(batches))
        other = None if validation is None else replace(batches_source(validation), read=coded(validation))
        return self._solved(source, columns, "lbfgs" if self.solver == "auto" else self.solver, other)

    def decision_function(self, X: np.ndarray | Rows) -> Float[np.ndarray, "row column"]:
        """Scores before the softmax or sigmoid: `X coef_^T + intercept_`.

        Raises:
            NotFitted, ShapeMismatch.
        """
        if not hasattr(self, "coef_"):
            raise NotFitted(f"this {type(self).__name__} has not been fitted; call fit(X, y) first.")
        x = matrix(X)
        if x.shape[1] != self.coef_.shape[1]:
            raise ShapeMismatch(
                f"the probe was fitted to {self.coef_.shape[1]} columns, these features have {x.shape[1]}."
            )
        pieces = [np.asarray(x[start : start + 8192], np.float64) for start in range(0, len(x), 8192)]
        return np.concatenate([(piece - self.mean_) @ self.coef_.T + self._centred for piece in pieces])

    def row_space(self, *, share: float = 1e-6) -> Float[np.ndarray, "direction d"]:
        """Orthonormal directions of the features that the probe reads; what all classes share is read by none.

        Args:
            share: singular values below this share of the largest count as zero.
        """
        weight = self.coef_ - self.coef_.mean(0) if self.KIND == "classes" and len(self.coef_) > 1 else self.coef_
        _, values, directions = np.linalg.svd(weight, full_matrices=False)
        return directions[values > share * max(float(values[0]), 1e-300)]

    # what the kinds differ in

    @abstractmethod
    def _learn_target(self, y: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
        """The target as it is learnt, and how many columns it has."""

    @abstractmethod
    def _code(self, y: np.ndarray) -> np.ndarray:
        """Targets as the loss takes them."""

    # fitting

    def _check(self, width: int) -> None:
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        if self.rank is not None and not 1 <= self.rank <= width:
            raise OutOfRange(f"rank={self.rank}: the features have {width} columns, so ranks are 1 to {width}.")

    def _batch(self, solver: str) -> int:
        return self.batch_size or (256 if solver in ("adam", "sgd") else 4096)

    def _solved(self, source: Source, columns: int, solver: str, validation: Source | None) -> "LinearProbe":
        found = self._solve(source, columns, solver, validation)
        if self.rank is not None:
            # The probe's own leading directions, in standardised coordinates: a rotation changes no loss or penalty.
            directions = np.linalg.svd(found.weight, full_matrices=False)[2][: self.rank]
            narrow, aside = _projected(source, directions, source), validation
            aside = None if validation is None else _projected(validation, directions, source)
            found = self._solve(narrow, columns, solver, aside)
            found = replace(found, weight=found.weight @ directions)
        self.mean_, self.scale_, self.n_features_in_ = source.mean, source.scale, source.width
        self.coef_, self._centred = found.weight / source.scale, found.bias
        self.intercept_ = found.bias - self.coef_ @ source.mean
        self.n_iter_, self.converged_, self.loss_ = found.epochs, found.converged, found.loss
        self.solver_ = solver
        return self

    def _solve(self, source: Source, columns: int, solver: str, validation: Source | None) -> Solved:
        decay = 1 / source.n if self.weight_decay is None else self.weight_decay
        if solver == "scikit-learn":
            pieces = [(np.asarray(x, np.float64), target) for x, target in source.read(None)]
            x = (np.concatenate([x for x, _ in pieces]) - source.mean) / source.scale
            target = np.concatenate([target for _, target in pieces])
            many = {"epochs": 10 * self.epochs, "tolerance": self.tolerance}
            return solve_in_memory(x, target, self.KIND, weight_decay=decay, **many)
        names = ("epochs", "patience", "step", "tolerance", "device", "seed")
        settings = {name: getattr(self, name) for name in names}
        return solve(
            source, self.KIND, columns, weight_decay=decay, solver=solver, validation=validation, **settings
        )  # fmt: skip


def _projected(source: Source, directions: np.ndarray, like: Source) -> Source:
    """The rows of a source seen along some directions of the standardised space."""

    def read(generator: np.random.Generator | None = None):
        for x, target in source.read(generator):
            yield ((np.asarray(x, np.float64) - like.mean) / like.scale) @ directions.T, target

    width = len(directions)
    return Source(read=read, n=source.n, width=width, mean=np.zeros(width), scale=np.ones(width))
