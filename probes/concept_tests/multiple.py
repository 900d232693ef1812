"""Many tests at once, where `mechvis.stats` has Benjamini-Hochberg and Holm: two more corrections, and what to report.

Declare the family first (the heads of a model, the concepts of a set). To explore: Benjamini-Hochberg at q = 0.1 where
tests depend positively, Benjamini-Yekutieli where one is not sure. To confirm, on other images: Holm. Statistics that
hang together (heads of one model) lose least by the largest statistic under permutation. Where one looks while the data
come in: e-values (:mod:`probes.concept_tests.betting`). Layers, numbers and thresholds that were tried count as tests,
and effects of what was selected are measured again on other images.

Source: methods2.md 20.5 (**K**).
"""

import numpy as np
from jaxtyping import Bool, Float

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.stats import benjamini_hochberg


def benjamini_yekutieli(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p-values that control the false discovery rate however the tests depend on each other.

    Benjamini-Hochberg times `1 + 1/2 + ... + 1/m`. NaN stays NaN and does not count as a test.

    Args:
        p: one per test.

    Raises:
        ShapeMismatch, OutOfRange: not p-values.

    Example:
        >>> benjamini_yekutieli(np.array([0.01, 0.5])).round(3).tolist()
        [0.03, 0.75]
    """
    adjusted = benjamini_hochberg(p)
    m = int((~np.isnan(adjusted)).sum())
    # BH is cut at 1 before it is multiplied, which the second cut undoes: a cut value times the sum is 1 or more.
    return np.minimum(adjusted * np.sum(1 / np.arange(1, m + 1)), 1.0)


def max_statistic(
    observed: Float[np.ndarray, " test"], permuted: Float[np.ndarray, "permutation test"]
) -> Float[np.ndarray, " test"]:
    """Adjusted p-values by the largest statistic of each permutation: the chance that *any* test reaches as much.

    Controls the chance of even one false rejection, and takes what tests have in common into account.

    Args:
        observed: statistics, larger is stronger.
        permuted: the same after permuting what should not matter under the null hypothesis, all tests together.

    Returns:
        At least 1 / (permutations + 1).

    Raises:
        ShapeMismatch: permutations of other tests, or none.
        NotFinite: NaN or Inf.

    Example:
        >>> max_statistic(np.array([5.0, 1.0]), np.array([[0.0, 2.0], [1.0, 0.5], [0.2, 0.1]])).tolist()
        [0.25, 0.75]
    """
    observed, permuted = np.asarray(observed, dtype=np.float64), np.asarray(permuted, dtype=np.float64)
    if observed.ndim != 1 or permuted.ndim != 2 or permuted.shape[1:] != observed.shape or not permuted.size:
        raise ShapeMismatch(
            f"statistics are [test] and permuted ones [permutation test]; got {list(observed.shape)} and "
            f"{list(permuted.shape)}."
        )
    if not (np.isfinite(observed).all() and np.isfinite(permuted).all()):
        raise NotFinite("the statistics hold NaN or Inf.")
    largest = permuted.max(1)
    return (1 + (largest >= observed[:, None]).sum(1)) / (len(largest) + 1)


def said(adjusted: Float[np.ndarray, " test"], rule: str, level: float, by_chance: Bool[np.ndarray, "run test"]) -> str:
    """What must be reported of a family: how many tests, by which rule, and how many chance alone would reject.

    Args:
        adjusted: adjusted p-values.
        rule: its name.
        level: what they are compared with.
        by_chance: rejections of the same procedure on permuted labels, one row per run.

    Raises:
        ShapeMismatch: runs of other tests, or none.

    Example:
        >>> said(np.array([0.01, 0.5]), "BH", 0.1, np.zeros((4, 2), bool))
        '1 of 2 rejected by BH at 0.1; with permuted labels 0.00 on average (4 runs).'
    """
    adjusted, by_chance = np.asarray(adjusted), np.asarray(by_chance)
    if by_chance.ndim != 2 or by_chance.shape[1:] != adjusted.shape or not by_chance.size:
        raise ShapeMismatch(f"rejections by chance are [run {len(adjusted)}], got {list(by_chance.shape)}.")
    n = int((adjusted <= level).sum())
    return (
        f"{n} of {len(adjusted)} rejected by {rule} at {level:g}; with permuted labels "
        f"{by_chance.sum(1).mean():.2f} on average ({len(by_chance)} runs)."
    )
