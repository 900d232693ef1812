"""One bootstrap for everything that is made of means."""

import numpy as np
import pytest

from circuits.evaluation.resampled import interval, ratio, resampled_means
from circuits.patching.ratios import ratio_of_means
from mechvis.errors import NotFinite, ShapeMismatch


def test_interval_of_a_ratio_is_that_of_the_other_implementation():
    generator = np.random.default_rng(0)
    raw, total = generator.normal(1, 1, 40), generator.normal(3, 1, 40)
    means = resampled_means(np.stack([raw, total]), seed=7)
    low, high = interval(ratio(means[:, 0], means[:, 1], total.mean()), 40)
    found, _ = ratio_of_means(raw[None], total, seed=7)
    assert (low, high) == pytest.approx((found.low[0], found.high[0]), abs=1e-12)
    assert low < raw.mean() / total.mean() < high


def test_rows_share_their_draws():
    values = np.random.default_rng(0).normal(size=(1, 30))
    means = resampled_means(np.concatenate([values, values + 1]), seed=3)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1, atol=1e-12)
    assert means[:, 0].std() > 0.05


def test_pieces_give_the_same_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 20))
    whole = resampled_means(values, seed=1)
    monkeypatch.setattr("circuits.evaluation.resampled._CHUNK", 60)
    np.testing.assert_allclose(resampled_means(values, seed=1), whole, atol=1e-12)


def test_a_constant_row_has_no_spread():
    assert (resampled_means(np.full((1, 7), 0.1), resamples=50) == 0.1).all()


def test_coverage_of_a_mean():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = interval(resampled_means(generator.normal(size=(1, 60)), resamples=400)[:, 0], 60)
        inside += low < 0 < high
    assert 0.89 <= inside / 200 <= 0.985


def test_undefined_draws():
    draws = np.arange(100.0)
    draws[:4] = np.nan
    low, high = interval(draws, 10)
    assert np.isfinite([low, high]).all()
    draws[:6] = np.nan
    assert np.isnan(interval(draws, 10)[0]) and np.isnan(interval(np.arange(10.0), 1)[1])
    np.testing.assert_array_equal(ratio(np.ones(3), np.array([-2.0, 0.0, 2.0]), -5.0), [-0.5, np.nan, np.nan])


def test_bad_input():
    with pytest.raises(ShapeMismatch, match=r"values are \[row image\]"):
        resampled_means(np.ones(3))
    with pytest.raises(NotFinite, match="NaN or Inf"):
        resampled_means(np.array([[1.0, np.nan]]))
