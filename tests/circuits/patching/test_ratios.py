"""Both orders of averaging by hand, their intervals, and pairs with next to no difference."""

import numpy as np
import pytest

from circuits.patching.ratios import is_tiny, mean_of_ratios, ratio_of_means
from mechvis import stats


@pytest.fixture
def drawn():
    generator = np.random.default_rng(3)
    total = 4 + generator.normal(size=150)
    raw = np.array([[0.5], [0.1], [0.0]]) * total + generator.normal(size=(3, 150)) * 0.3
    raw[1, ::3] = np.nan
    return raw, total


def test_ratio_of_means_by_hand(drawn):
    raw, total = drawn
    found, values = ratio_of_means(raw, total)
    there = ~np.isnan(raw[1])
    assert found.effect[0] == pytest.approx(raw[0].mean() / total.mean())
    assert found.effect[1] == pytest.approx(raw[1][there].mean() / total[there].mean())
    assert np.allclose(np.nanmean(values, axis=1), found.effect)
    assert found.n.tolist() == [150, 100, 150] and found.excluded.tolist() == [0, 50, 0]
    assert found.p[0] < 1e-10 and found.p[2] == pytest.approx(stats.bootstrap(raw[2]).p[0])


def test_interval_resamples_both(drawn):
    """As the general bootstrap of a statistic gives it, unit by unit."""
    raw, total = drawn
    found, _ = ratio_of_means(raw, total, seed=1)
    for unit in (0, 2):
        _, low, high = stats.interval_of(lambda a, b: a.mean() / b.mean(), raw[unit], total, resamples=4000)
        width = high - low
        assert found.low[unit] == pytest.approx(low, abs=0.1 * width)
        assert found.high[unit] == pytest.approx(high, abs=0.1 * width)
    there = ~np.isnan(raw[1])
    _, low, high = stats.interval_of(lambda a, b: a.mean() / b.mean(), raw[1][there], total[there], resamples=4000)
    assert found.low[1] == pytest.approx(low, abs=0.15 * (high - low))
    numerator = stats.bootstrap(raw[:1]).high[0] / total.mean() - stats.bootstrap(raw[:1]).low[0] / total.mean()
    assert found.high[0] - found.low[0] < 0.7 * numerator, "what both have in common cancels"


def test_coverage_of_the_interval():
    """Of 200 samples about 95 % hold the truth."""
    generator, held = np.random.default_rng(0), 0
    for seed in range(200):
        total = 2 + generator.normal(size=120)
        raw = (0.3 * total + generator.normal(size=120))[None]
        found, _ = ratio_of_means(raw, total, seed=seed)
        held += found.low[0] <= 0.3 <= found.high[0]
    assert 0.90 <= held / 200 <= 0.99


def test_no_interval_where_the_total_is_not_clear():
    generator = np.random.default_rng(0)
    total = generator.normal(size=50) + 0.05
    found, _ = ratio_of_means(total[None] * 0.5, total)
    assert np.isnan(found.low[0]) and np.isnan(found.high[0])
    assert found.effect[0] == pytest.approx(0.5)
    alone, _ = ratio_of_means(np.array([[1.0]]), np.array([2.0]))
    assert alone.effect[0] == 0.5 and np.isnan(alone.low[0]) and np.isnan(alone.p[0])


def test_mean_of_ratios_leaves_tiny_totals_out():
    raw, total = np.array([[1.0, 2.0, 30.0, -1.0]]), np.array([2.0, 2.0, 0.01, -2.0])
    assert is_tiny(total, 0.05).tolist() == [False, False, True, False]
    found, shares = mean_of_ratios(raw, total)
    assert found.effect[0] == pytest.approx((0.5 + 1 + 0.5) / 3) and found.n[0] == 3
    assert np.isnan(shares[0, 2]) and shares[0, 3] == 0.5
    every, _ = mean_of_ratios(raw, total, tiny=0.0)
    assert every.effect[0] > 700, "one pair with next to no difference decides"


def test_the_size_of_pieces_changes_nothing(drawn, monkeypatch):
    raw, total = drawn
    whole, _ = ratio_of_means(raw, total, seed=2)
    monkeypatch.setattr("circuits.patching.ratios._CHUNK", 4000)
    pieces, _ = ratio_of_means(raw, total, seed=2)
    assert np.allclose(whole.low, pieces.low) and np.allclose(whole.high, pieces.high)
