"""Corrections for many tests: the specification's 144 heads, and the two corrections that are ours."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.stats import benjamini_hochberg
from probes.concept_tests import benjamini_yekutieli, max_statistic
from probes.concept_tests.multiple import said


def heads(true, repeats, seed):
    """p-values of 144 heads, the first `true` of which have an effect of four standard deviations."""
    z = np.random.default_rng(seed).normal(size=(repeats, 144))
    z[:, :true] += 4
    return 2 * norm.sf(np.abs(z))


def test_144_heads():
    """FDR .088, power .90 at q = .1 in 200 repeats."""
    rejected = np.stack([benjamini_hochberg(p) <= 0.1 for p in heads(10, 200, 0)])
    false = rejected[:, 10:].sum(1) / np.maximum(1, rejected.sum(1))
    assert false.mean() == pytest.approx(0.088, abs=0.02) and false.mean() <= 0.1
    assert rejected[:, :10].mean() == pytest.approx(0.90, abs=0.03)


def test_144_heads_without_effect():
    """Any rejection in .135 of the repeats there, sampling error .02, expected .1."""
    some = np.mean([(benjamini_hochberg(p) <= 0.1).any() for p in heads(0, 400, 1)])
    assert some == pytest.approx(0.1, abs=0.045)
    cautious = np.mean([(benjamini_yekutieli(p) <= 0.1).any() for p in heads(0, 400, 1)])
    assert cautious < some


def test_yekutieli_is_scipys():
    for row in heads(5, 20, 2):
        np.testing.assert_allclose(benjamini_yekutieli(row), false_discovery_control(row, method="by"), atol=1e-12)
    assert benjamini_yekutieli(np.array([0.01, np.nan]))[0] == 0.01
    with pytest.raises(OutOfRange, match="p-values lie between 0 and 1"):
        benjamini_yekutieli(np.array([2.0]))


def test_the_largest_statistic():
    """No head has an effect, and all share most of their noise: any rejection in 5 % of the families."""
    generator = np.random.default_rng(0)

    def drawn(n):
        return 0.9 * generator.normal(size=(n, 1)) + 0.3 * generator.normal(size=(n, 144))

    any_rejected = [(max_statistic(drawn(1)[0], drawn(199)) <= 0.05).any() for _ in range(300)]
    assert np.mean(any_rejected) == pytest.approx(0.05, abs=0.035)
    strong = drawn(1)[0]
    strong[7] += 6
    assert (max_statistic(strong, drawn(199)) <= 0.05)[7] and max_statistic(strong, drawn(199))[7] == 1 / 200
    with pytest.raises(ShapeMismatch, match=r"\[permutation test\]"):
        max_statistic(np.zeros(3), np.zeros((5, 2)))
    with pytest.raises(NotFinite, match="NaN or Inf"):
        max_statistic(np.array([np.nan]), np.zeros((5, 1)))


def test_what_is_reported():
    text = said(np.array([0.01, 0.2, 0.03]), "Holm", 0.05, np.array([[True, False, False], [False, False, False]]))
    assert text == "2 of 3 rejected by Holm at 0.05; with permuted labels 0.50 on average (2 runs)."
    with pytest.raises(ShapeMismatch, match=r"\[run 1\]"):
        said(np.zeros(1), "BH", 0.1, np.zeros((3, 2), bool))
