"""Fit one probe and judge it per image: the step that tasks, controls and baselines share.

A row's score is 1 or 0 for classes, the share of right answers for labels, and for numbers the squared error (the table
shows the coefficient of determination, whose parts are resampled together). Where an image has several rows (patches),
its score is their mean: images are what a claim generalises over, never patches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData
from mechvis.stats import RESAMPLES, bootstrap, interval_of
from probes.linear.base import LinearProbe
from probes.linear.batches import Rows
from probes.linear.estimators import probe_for
from probes.linear.losses import Kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A fitted probe and what it scores on each test image."""

    probe: LinearProbe
    """Fitted to the training rows."""
    scores: Float[np.ndarray, " image"]
    """Per test image, see the module; for numbers `1 - squared error / spread`, whose mean is about R^2."""
    parts: tuple[np.ndarray, np.ndarray] | None = None
    """For numbers: squared error and squared distance from the test mean, per image."""

    def interval(self, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
        """Score with a 95 % bootstrap interval over images."""
        if self.parts is not None:
            return interval_of(_determination, *self.parts, resamples=resamples, seed=seed)
        found = bootstrap(self.scores, resamples=resamples, seed=seed)
        return float(found.effect[0]), float(found.low[0]), float(found.high[0])


def kind_of(target: np.ndarray) -> Kind:
    """What sort of reading a target asks for: names and whole numbers are classes, a table of 0 and 1 labels.

    Raises:
        BadData: anything else that is not a number.

    Example:
        >>> kind_of(np.array([0, 1])), kind_of(np.array([[0, 1]])), kind_of(np.array([0.5]))
        ('classes', 'labels', 'numbers')
    """
    target = np.asarray(target)
    if target.ndim == 1 and target.dtype.kind in "biuUSO":
        return "classes"
    if target.ndim == 2 and target.dtype.kind in "biu" and np.isin(target, (0, 1)).all():
        return "labels"
    if target.dtype.kind in "biuf" and target.ndim in (1, 2):
        return "numbers"
    raise BadData(f"what is to be read of {target.dtype} {list(target.shape)}? Give classes, 0/1 labels or numbers.")


def judge(
    kind: Kind,
    train: tuple[np.ndarray | Rows, np.ndarray],
    test: tuple[np.ndarray | Rows, np.ndarray],
    n_test: int,
    **settings: Any,
) -> Judged:
    """Fit a probe to training rows and score it on test rows.

    Args:
        kind: of probe.
        train: features and targets per row.
        test: the same for test rows, images in order.
        n_test: test images.
        settings: of the probe.
    """
    probe = probe_for(kind, **settings).fit(*train)
    x, target = test
    if kind != "numbers":
        right = (probe.predict(x) == target).astype(np.float64)
        return Judged(probe=probe, scores=right.reshape(n_test, -1).mean(1))
    error = ((probe.predict(x) - target) ** 2).reshape(n_test, -1).mean(1)
    spread = ((target - target.mean(0)) ** 2).reshape(n_test, -1).mean(1)
    return Judged(probe=probe, scores=1 - error / max(spread.mean(), 1e-300), parts=(error, spread))


def validation_loss(kind: Kind, probe: LinearProbe, x: np.ndarray | Rows, target: np.ndarray) -> float:
    """Mean loss of a probe on rows it has not seen: what the weight decay is chosen by.

    Classes that the training rows lacked count with the probability 1e-12.
    """
    if kind == "numbers":
        return float(((probe.predict(x) - target) ** 2).mean())
    if kind == "labels":
        p = probe.predict_proba(x).clip(1e-12, 1 - 1e-12)
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())
    place = np.searchsorted(probe.classes_, target).clip(max=len(probe.classes_) - 1)
    known = probe.classes_[place] == target
    log_p = probe.predict_log_proba(x)[np.arange(len(target)), place]
    return float(-np.where(known, log_p, np.log(1e-12)).clip(min=np.log(1e-12)).mean())


def _determination(error: np.ndarray, spread: np.ndarray) -> float:
    total = spread.sum()
    return float(1 - error.sum() / total) if total > 0 else float("nan")
