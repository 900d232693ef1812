"""Intervals, p-values and corrections: hand-computed cases, and scipy as the independent implementation."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mechvis import stats
from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch, UnknownName

NAN = np.nan


def test_two_images_by_hand():
    # Resampled means of (0, 2) are 0, 1, 2 with chances 1/4, 1/2, 1/4: the middle 95 % goes from 0 to 2.
    found = stats.bootstrap(np.array([[0.0, 2.0]]), method="percentile")
    assert (found.effect[0], found.low[0], found.high[0], found.n[0], found.excluded[0]) == (1.0, 0.0, 2.0, 2, 0)
    # One image moved at all, so the sign-flip test can say nothing: p = 2^(1-1).
    assert found.p[0] == 1.0


def test_constant_values_have_an_interval_of_no_width():
    found = stats.bootstrap(np.full((2, 30), 0.1) * [[1], [0]])
    assert found.low.tolist() == found.effect.tolist() == found.high.tolist()
    assert found.p.tolist() == [2.0**-29, 1.0]


@pytest.mark.parametrize(("method", "scipy_method"), [("percentile", "percentile"), ("bca", "BCa")])
@pytest.mark.parametrize("n", [12, 80, 300])
def test_intervals_agree_with_scipy(method, scipy_method, n):
    values = np.random.default_rng(n).exponential(size=n)
    ours = stats.bootstrap(values, method=method, resamples=40_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method=scipy_method, batch=2000, rng=np.random.default_rng(1)
    ).confidence_interval
    # Two Monte-Carlo runs of 40,000: the ends of a 95 % interval have a standard error of about 0.7 % of its width.
    width = theirs.high - theirs.low
    assert ours.low[0] == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high[0] == pytest.approx(theirs.high, abs=0.03 * width)


def test_auto_takes_bca_for_few_images_only():
    few, many = (np.random.default_rng(n).exponential(size=(1, n)) for n in (99, 100))
    assert stats.bootstrap(few).low == stats.bootstrap(few, method="bca").low
    assert stats.bootstrap(few).low != stats.bootstrap(few, method="percentile").low
    assert stats.bootstrap(many).low == stats.bootstrap(many, method="percentile").low


def test_p_agrees_with_scipy_where_many_images_move():
    values = np.random.default_rng(0).normal(0.1, 1, (7, 60))
    assert stats.bootstrap(values, resamples=10).p == pytest.approx(scipy.stats.ttest_1samp(values, 0, axis=1).pvalue)


def test_p_is_not_sure_of_itself_when_few_images_move():
    # 4 of 200 images change, all the same way: the exact sign-flip test says 2/16, the t-test alone would say 0.045.
    values = np.zeros((1, 200))
    values[0, :4] = 1
    assert scipy.stats.ttest_1samp(values[0], 0).pvalue < 0.05
    assert stats.bootstrap(values, resamples=10).p[0] == 0.125
    assert stats.sign_flip_p(values)[0] == 0.125


def test_sign_flip_by_hand_and_by_enumeration():
    assert stats.sign_flip_p(np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 2.0, NAN]])).tolist() == [0.25, 1, 0.5]
    values = np.random.default_rng(3).normal(0.4, 1, 10)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=10)]
    exact = np.mean(np.array(sums) >= abs(values.sum()) - 1e-12)
    assert stats.sign_flip_p(values)[0] == exact
    assert stats.sign_flip_p(values, flips=1000)[0] == pytest.approx(exact, abs=0.05)
    assert np.isnan(stats.sign_flip_p(np.array([NAN]))[0])


def test_coverage_is_near_95_percent():
    generator = np.random.default_rng(5)
    values = generator.exponential(size=(800, 150)) - 1
    found = stats.bootstrap(values, resamples=600)
    covered = ((found.low <= 0) & (found.high >= 0)).mean()
    assert 0.915 < covered < 0.975


def test_nan_is_left_out_and_counted():
    whole = np.random.default_rng(0).normal(size=(3, 50))
    holed = np.concatenate([whole, np.full((3, 7), NAN)], axis=1)
    ours, theirs = stats.bootstrap(holed), stats.bootstrap(whole)
    for name in ("effect", "low", "high", "p"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name))
    assert ours.n.tolist() == [50] * 3 and ours.excluded.tolist() == [7] * 3


def test_nan_patterns_may_differ_between_units():
    values = np.random.default_rng(0).normal(1, 1, (4, 400))
    values[1, :100] = NAN
    values[2] = NAN
    values[3, 1:] = NAN
    found = stats.bootstrap(values)
    assert found.n.tolist() == [400, 300, 0, 1] and found.excluded.tolist() == [0, 100, 400, 399]
    assert found.effect[1] == pytest.approx(values[1, 100:].mean())
    alone = stats.bootstrap(values[1, 100:])
    assert found.low[1] == pytest.approx(alone.low[0], abs=0.02) and found.high[1] == pytest.approx(
        alone.high[0], abs=0.02
    )
    assert found.effect[3] == values[3, 0]
    for name in ("low", "high", "p"):
        assert np.isnan(getattr(found, name)).tolist() == [False, False, True, True]


def test_a_unit_with_three_images_among_many_has_a_finite_interval():
    values = np.full((1, 100), NAN)
    values[0, :3] = [1.0, 2.0, 3.0]
    found = stats.bootstrap(np.concatenate([values, np.ones((1, 100))]))
    assert 1.0 <= found.low[0] < 2.0 < found.high[0] <= 3.0


@pytest.mark.parametrize("chunk", [1, 999, 5000])
def test_chunks_do_not_change_the_result(monkeypatch, chunk):
    values = np.random.default_rng(0).normal(size=(5, 37))
    values[2, 3] = NAN
    whole = stats.bootstrap(values, resamples=200), stats.sign_flip_p(values, flips=500)
    monkeypatch.setattr(stats, "_CHUNK", chunk)
    parts = stats.bootstrap(values, resamples=200), stats.sign_flip_p(values, flips=500)
    assert parts[0].low == pytest.approx(whole[0].low, abs=1e-12)
    assert parts[0].high == pytest.approx(whole[0].high, abs=1e-12)
    assert parts[1].tolist() == whole[1].tolist()


def test_seeds_fix_the_numbers_and_the_global_generator_is_left_alone():
    values = np.random.default_rng(0).normal(size=(2, 120))
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy state is what must not move
    assert stats.bootstrap(values, seed=1).low.tolist() == stats.bootstrap(values, seed=1).low.tolist()
    assert stats.bootstrap(values, seed=1).low.tolist() != stats.bootstrap(values, seed=2).low.tolist()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_inputs_are_not_changed():
    values = np.random.default_rng(0).normal(size=(2, 12))
    values[0, 0] = NAN
    values.flags.writeable = False
    stats.bootstrap(values)
    stats.sign_flip_p(values)


def test_paired_difference_is_the_bootstrap_of_differences():
    generator = np.random.default_rng(0)
    hard = generator.normal(size=200) * 10
    first, second = hard + generator.normal(1, 0.1, 200), hard.copy()
    first[0] = second[1] = NAN
    found = stats.paired_difference(first, second)
    assert found.effect[0] == pytest.approx(1, abs=0.05) and found.n[0] == 198 and found.excluded[0] == 2
    # Pairing removes the difficulty of the images, which is a hundred times the noise.
    assert found.high[0] - found.low[0] < 0.05
    with pytest.raises(ShapeMismatch, match=r"got \[1, 3\] and \[1, 4\]"):
        stats.paired_difference(np.zeros(3), np.zeros(4))


def test_interval_of_a_ratio_agrees_with_scipy():
    generator = np.random.default_rng(0)
    above, below = generator.exponential(size=90), generator.exponential(size=90) + 1

    def ratio(a, b):
        return float(a.sum() / b.sum())

    value, low, high = stats.interval_of(ratio, above, below, resamples=8000)
    theirs = scipy.stats.bootstrap(
        (above, below),
        ratio,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=8000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert value == pytest.approx(above.sum() / below.sum())
    assert (low, high) == (pytest.approx(theirs.low, rel=0.02), pytest.approx(theirs.high, rel=0.02))


def test_interval_of_an_often_undefined_statistic_has_no_ends():
    value, low, high = stats.interval_of(lambda g: NAN if not (g == 1).any() else 1.0, np.array([1, 0, 0, 0]))
    assert value == 1.0 and np.isnan(low) and np.isnan(high)
    with pytest.raises(ShapeMismatch, match=r"same number of images, at least one, got \[2, 3\]"):
        stats.interval_of(lambda a, b: 0.0, np.zeros(2), np.zeros(3))


def test_corrections_by_hand():
    # m = 4: 0.01*4/1, 0.04*4/3, 0.03*4/2, 0.2*4/4; then the smallest of itself and all larger ranks.
    p = np.array([0.01, 0.04, 0.03, 0.2])
    assert stats.benjamini_hochberg(p) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.2])
    # Holm: 0.01*4, 0.03*3, then 0.04*2 is raised to 0.09, 0.2*1.
    assert stats.holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.2])


def test_corrections_ignore_untested_units():
    p = np.array([NAN, 0.01, NAN, 0.04])
    assert stats.benjamini_hochberg(p) == pytest.approx([NAN, 0.02, NAN, 0.04], nan_ok=True)
    assert stats.holm(p) == pytest.approx([NAN, 0.02, NAN, 0.04], nan_ok=True)
    assert stats.holm(np.array([])).tolist() == [] and np.isnan(stats.benjamini_hochberg(np.array([NAN]))).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrections_agree_with_independent_ones(p):
    p = np.array(p)
    assert stats.benjamini_hochberg(p) == pytest.approx(scipy.stats.false_discovery_control(p, method="bh"))
    # Holm from its definition as a step-down test, one candidate at a time.
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, unit in enumerate(np.argsort(p, kind="stable")):
            if p[unit] * (len(p) - rank) > alpha:
                break
            rejected.add(int(unit))
        assert set(np.flatnonzero(stats.holm(p) <= alpha).tolist()) == rejected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stats.bootstrap(np.zeros((2, 0))), ShapeMismatch, "2 units over 0 images"),
        (
            lambda: stats.bootstrap(np.zeros((2, 2, 2))),
            ShapeMismatch,
            r"axes \[unit image\], got the shape \[2, 2, 2\]",
        ),
        (lambda: stats.bootstrap(np.array([[0, 1], [0, np.inf]])), NotFinite, "unit 1 on image 1 is infinite"),
        (lambda: stats.bootstrap(np.zeros(3), resamples=0), OutOfRange, "resamples must be at least 1, got 0"),
        (lambda: stats.bootstrap(np.zeros(3), level=95), OutOfRange, "between 0 and 1"),
        (lambda: stats.bootstrap(np.zeros(3), method="bcaa"), UnknownName, "Nearest: bca"),
        (lambda: stats.sign_flip_p(np.zeros(3), flips=0), OutOfRange, "flips must be at least 1"),
        (lambda: stats.benjamini_hochberg(np.array([0.5, 1.5])), OutOfRange, "between 0 and 1, got 0.5 to 1.5"),
        (lambda: stats.holm(np.zeros((2, 2))), ShapeMismatch, "one axis"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
