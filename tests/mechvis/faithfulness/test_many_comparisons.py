"""Corrections for many comparisons (methods2.md 20.5): what they control, measured."""

import numpy as np
import pytest

from mechvis.errors import OutOfRange
from mechvis.stats import benjamini_hochberg, benjamini_yekutieli, bootstrap, holm, max_statistic_p


def heads(rng, effects=10, images=40, units=144, shared=0.0):
    """144 heads, of which some have an effect of four standard errors; `shared` is noise that all have in common."""
    noise = rng.standard_normal((units, images)) + shared * rng.standard_normal(images)
    noise[:effects] += 4 / np.sqrt(images) * np.sqrt(1 + shared**2)
    return noise


def test_144_heads_of_the_specification():
    """BH at 0.1, 200 repeats: FDR .088 and power .90 there (sampling error .02)."""
    rng = np.random.default_rng(0)
    false, found, any_null = [], [], []
    for _ in range(200):
        rejected = benjamini_hochberg(bootstrap(heads(rng, images=200), resamples=1).p) <= 0.1
        false.append(rejected[10:].sum() / max(1, rejected.sum()))
        found.append(rejected[:10].mean())
        any_null.append((benjamini_hochberg(bootstrap(heads(rng, effects=0), resamples=1).p) <= 0.1).any())
    assert np.mean(false) == pytest.approx(0.088, abs=0.025)
    assert np.mean(found) == pytest.approx(0.90, abs=0.04)
    assert np.mean(any_null) < 0.16


def test_yekutieli_by_hand():
    np.testing.assert_allclose(benjamini_yekutieli(np.array([0.01, 0.04, np.nan])), [0.03, 0.06, np.nan])
    p = np.random.default_rng(0).uniform(0, 0.1, 30)
    harmonic = (1 / np.arange(1, 31)).sum()
    np.testing.assert_allclose(benjamini_yekutieli(p), np.minimum(benjamini_hochberg(p) * harmonic, 1))


def test_the_largest_statistic_keeps_its_promise():
    """No effect anywhere, correlated units: at most one study in twenty may reject anything."""
    rng = np.random.default_rng(0)
    any_wrong = [
        (max_statistic_p(heads(rng, effects=0, units=30, shared=2.0), flips=300) <= 0.05).any() for _ in range(200)
    ]
    assert 0.01 <= np.mean(any_wrong) <= 0.085


def test_it_finds_more_than_holm_where_units_go_together():
    rng = np.random.default_rng(1)
    ours, theirs = 0, 0
    for _ in range(20):
        values = heads(rng, effects=10, units=60, shared=3.0)
        ours += (max_statistic_p(values, flips=500) <= 0.05)[:10].sum()
        theirs += (holm(bootstrap(values, resamples=1).p) <= 0.05)[:10].sum()
    assert ours > theirs


def test_corner_cases():
    certain = max_statistic_p(np.ones((1, 12)), flips=400)
    assert certain[0] < 0.02
    assert max_statistic_p(np.zeros((2, 5)), flips=50).tolist() == [1.0, 1.0]
    gap = max_statistic_p(np.array([[1.0, np.nan, np.nan], [1.0, 2.0, 3.0]]), flips=50)
    assert np.isnan(gap[0]) and 0 < gap[1] <= 1
    same = max_statistic_p(np.random.default_rng(0).standard_normal((3, 9)), flips=50)
    np.testing.assert_array_equal(same, max_statistic_p(np.random.default_rng(0).standard_normal((3, 9)), flips=50))
    with pytest.raises(OutOfRange, match="flips"):
        max_statistic_p(np.ones((1, 3)), flips=0)
