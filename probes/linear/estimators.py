"""Linear probes with scikit-learn's habits: settings in the constructor, then `fit`, `predict`, `score`, `clone`.

`ClassProbe` reads one class per row, `LabelsProbe` several yes-or-no labels, `NumbersProbe` numbers. All three take the
same settings and minimise the losses of :mod:`probes.linear.losses`; features are standardised by the statistics of the
training rows (methods.md 3.1 step 3, **X**), and the fitted `coef_` and `intercept_` are in the features' own
coordinates, so that a probe's directions can be laid over the model's stream.

`rank=r` limits a probe to r directions: the r leading right singular vectors of the full probe's weights, read anew
with the same loss (**X**; convex, where a factorised probe is not). A rank at or above that of the full probe changes
nothing.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit, log_softmax
from sklearn.base import ClassifierMixin, RegressorMixin

from mechvis.errors import BadData, ShapeMismatch, unknown
from probes.linear.base import LinearProbe
from probes.linear.batches import Rows
from probes.linear.losses import KINDS, Kind


class ClassProbe(ClassifierMixin, LinearProbe):
    """Multinomial logistic regression: one class per row. Two classes have one row of weights, as in scikit-learn.

    `score` is the accuracy. Settings: see :class:`LinearProbe`.

    Example:
        >>> x = np.array([[0.0], [1.0], [4.0], [5.0]])
        >>> ClassProbe().fit(x, np.array(["low", "low", "high", "high"])).predict(x).tolist()
        ['low', 'low', 'high', 'high']
    """

    KIND = "classes"

    def predict_log_proba(self, X: np.ndarray | Rows) -> Float[np.ndarray, "row class"]:
        """Log-probability of each class of `classes_`."""
        scores = self.decision_function(X)
        return log_softmax(
            np.concatenate([np.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores, axis=1
        )

    def predict_proba(self, X: np.ndarray | Rows) -> Float[np.ndarray, "row class"]:
        """Probability of each class of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: np.ndarray | Rows) -> np.ndarray:
        """The likeliest class of each row."""
        best = self.predict_log_proba(X).argmax(1)
        return self.classes_[best]

    def _learn_target(self, y: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
        if y.ndim != 1 or len(y) != rows:
            raise ShapeMismatch(f"classes are one per row: {rows} rows, targets of the shape {list(y.shape)}.")
        if y.dtype.kind == "f" and (not np.isfinite(y).all() or (y != np.round(y)).any()):
            raise BadData("these targets are not whole numbers or names; use NumbersProbe for numbers.")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise BadData(f"all rows are of one class ({self.classes_[0]!r}): there is nothing to tell apart.")
        return self._code(y), len(self.classes_) if len(self.classes_) > 2 else 1

    def _code(self, y: np.ndarray) -> np.ndarray:
        place = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        if (strange := self.classes_[place] != y).any():
            raise unknown("class", y[strange][0], self.classes_.tolist())
        return place.astype(np.int64)


class LabelsProbe(LinearProbe):
    """One logistic regression per yes-or-no label; `score` is the share of right answers over rows and labels.

    Example:
        >>> x = np.array([[0.0], [1.0], [4.0], [5.0]])
        >>> LabelsProbe().fit(x, np.array([[0, 1], [0, 1], [1, 0], [1, 0]])).predict(x).tolist()
        [[0, 1], [0, 1], [1, 0], [1, 0]]
    """

    KIND = "labels"

    def predict_proba(self, X: np.ndarray | Rows) -> Float[np.ndarray, "row label"]:
        """Probability that each label is true."""
        return expit(self.decision_function(X))

    def predict(self, X: np.ndarray | Rows) -> np.ndarray:
        """0 or 1 per row and label."""
        return (self.decision_function(X) > 0).astype(np.int64)

    def score(self, X: np.ndarray | Rows, y: np.ndarray) -> float:
        """Share of right answers; look at single labels too, where some are rare."""
        return float((self.predict(X) == np.asarray(y)).mean())

    def _learn_target(self, y: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
        if y.ndim != 2 or len(y) != rows:
            raise ShapeMismatch(f"labels are a table [row label]: {rows} rows, targets of the shape {list(y.shape)}.")
        self.n_labels_ = y.shape[1]
        return self._code(y), y.shape[1]

    def _code(self, y: np.ndarray) -> np.ndarray:
        if not np.isin(y, (0, 1)).all():
            raise BadData("labels are 0 or 1 (or False, True) per row; other values were found.")
        return y.astype(np.float64)


class NumbersProbe(RegressorMixin, LinearProbe):
    """Ridge regression; `score` is the coefficient of determination.

    Example:
        >>> x = np.arange(6.0)[:, None]
        >>> NumbersProbe(weight_decay=1e-6).fit(x, 2 * x[:, 0] + 1).predict(x).round(3)[:2].tolist()
        [1.0, 3.0]
    """

    KIND = "numbers"

    def predict(self, X: np.ndarray | Rows) -> np.ndarray:
        """Numbers per row, of the shape that was fitted."""
        scores = self.decision_function(X)
        return scores[:, 0] if self.flat_ else scores

    def _learn_target(self, y: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
        if y.ndim not in (1, 2) or len(y) != rows:
            raise ShapeMismatch(
                f"numbers are [row] or [row column]: {rows} rows, targets of the shape {list(y.shape)}."
            )
        self.flat_ = y.ndim == 1
        coded = self._code(y)
        return coded, coded.shape[1]

    def _code(self, y: np.ndarray) -> np.ndarray:
        if y.dtype.kind not in "biuf" or not np.isfinite(y.astype(np.float64)).all():
            raise BadData("the targets of a NumbersProbe are finite numbers.")
        y = y.astype(np.float64)
        return y[:, None] if y.ndim == 1 else y


def probe_for(kind: Kind, **settings: Any) -> LinearProbe:
    """A probe of a kind.

    Args:
        kind: `classes`, `labels` or `numbers`.
        settings: see :class:`LinearProbe`.

    Raises:
        UnknownName: no such kind.

    Example:
        >>> probe_for("classes", rank=2).rank
        2
    """
    if kind not in KINDS:
        raise unknown("kind of probe", kind, KINDS)
    return {"classes": ClassProbe, "labels": LabelsProbe, "numbers": NumbersProbe}[kind](**settings)
