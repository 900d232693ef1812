"""Many e-values at once: which hypotheses to reject so that few of the rejected are true (e-BH).

An e-value is a non-negative number whose mean is at most 1 under its hypothesis: a stopped wealth is one, and so is a
mean of e-values. e-BH controls the false discovery rate however they depend on each other.

`e_bh` takes the largest n for which the n-th largest e-value is at least K / (alpha n), and rejects those n.
`e_bh_greedy` is the released loop: it rejects the largest, then the next, each against K / (alpha (rejected + 1)), and
stops at the first that falls short; so it rejects nothing if no e-value reaches K / alpha. It rejects never more.

Source: Wang and Ramdas 2022; methods2.md 17.7 (**C** for the greedy form), 20.5.
"""

import numpy as np
from jaxtyping import Bool, Float

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch


def e_bh(e_values: Float[np.ndarray, " test"], alpha: float = 0.05) -> Bool[np.ndarray, " test"]:
    """Rejections by e-BH.

    Args:
        e_values: one per hypothesis.
        alpha: false discovery rate.

    Raises:
        ShapeMismatch: not one axis, or none.
        NotFinite: NaN.
        OutOfRange: a negative e-value, or a rate outside (0, 1).

    Example:
        >>> e_bh(np.array([45.0, 45.0, 1.0])).tolist(), e_bh_greedy(np.array([45.0, 45.0, 1.0])).tolist()
        ([True, True, False], [False, False, False])
    """
    e_values, order = _ordered(e_values, alpha)
    k = len(e_values)
    enough = e_values[order] >= k / (alpha * np.arange(1, k + 1))
    n = int(np.flatnonzero(enough).max()) + 1 if enough.any() else 0
    return _first(order, n)


def e_bh_greedy(e_values: Float[np.ndarray, " test"], alpha: float = 0.05) -> Bool[np.ndarray, " test"]:
    """Rejections one at a time; arguments and errors as in :func:`e_bh`."""
    e_values, order = _ordered(e_values, alpha)
    k = len(e_values)
    enough = e_values[order] >= k / (alpha * np.arange(1, k + 1))
    return _first(order, k if enough.all() else int(enough.argmin()))


def _first(order: np.ndarray, n: int) -> Bool[np.ndarray, " test"]:
    rejected = np.zeros(len(order), bool)
    rejected[order[:n]] = True
    return rejected


def _ordered(e_values: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    e_values = np.asarray(e_values, dtype=np.float64)
    if e_values.ndim != 1 or not len(e_values):
        raise ShapeMismatch(f"e-values have one axis and at least one entry, got {list(e_values.shape)}.")
    if np.isnan(e_values).any():
        raise NotFinite(f"e-value {int(np.isnan(e_values).argmax())} is NaN.")
    if e_values.min() < 0:
        raise OutOfRange(f"e-values are not negative, got {e_values.min()}.")
    if not 0 < alpha < 1:
        raise OutOfRange(f"alpha={alpha}: a rate between 0 and 1.")
    return e_values, np.argsort(-e_values, kind="stable")
