"""Permutation p-values against all permutations, and against scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from circuits.evaluation import chance
from circuits.evaluation.chance import ap_p, auroc_p, average_precision
from mechvis.errors import BadData, NotFinite, ShapeMismatch


def by_trying(scores, positive, statistic):
    observed, hits, total = statistic(positive, scores), 0, 0
    for some in itertools.combinations(range(len(scores)), int(positive.sum())):
        chosen = np.isin(np.arange(len(scores)), some)
        hits += statistic(chosen, scores) >= observed - 1e-12
        total += 1
    return hits / total


@given(st.integers(0, 10_000), st.integers(3, 9), st.booleans())
def test_equal_to_all_permutations(seed, n, tied):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, n).astype(float) if tied else generator.normal(size=n)
    positive = generator.permutation(n) < generator.integers(1, n)
    found, counted = auroc_p(scores, positive)
    assert counted and found == pytest.approx(by_trying(scores, positive, roc_auc_score), abs=1e-12)
    found, tried = ap_p(scores, positive)
    assert tried and found == pytest.approx(by_trying(scores, positive, average_precision_score), abs=1e-12)


def test_equal_to_scipys_exact_test_without_ties():
    generator = np.random.default_rng(0)
    scores, positive = generator.normal(size=60), np.arange(60) < 9
    scores[positive] += 0.5
    expected = mannwhitneyu(scores[positive], scores[~positive], alternative="greater", method="exact").pvalue
    assert auroc_p(scores, positive)[0] == pytest.approx(expected, rel=1e-9)
    expected = mannwhitneyu(scores[~positive], scores[positive], alternative="greater", method="exact").pvalue
    assert auroc_p(scores, ~positive)[0] == pytest.approx(expected, rel=1e-9), "more positives than negatives"


def test_normal_approximation_is_close(monkeypatch):
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 30, 200).astype(float), np.arange(200) < 40
    scores[positive] += 3
    exact, counted = auroc_p(scores, positive)
    monkeypatch.setattr(chance, "_MOST_STEPS", 0)
    near, counted_now = auroc_p(scores, positive)
    assert counted and not counted_now
    assert near == pytest.approx(exact, rel=0.05)
    flipped, _ = auroc_p(scores, ~positive)
    assert flipped == pytest.approx(1 - near, abs=0.01)


def test_average_precision_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 8, 50).astype(float), generator.random(50) < 0.2
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = average_precision(positive[order][None], ends)[0]
    assert found == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


def test_random_choices_are_near_all_of_them(monkeypatch):
    generator = np.random.default_rng(1)
    scores, positive = generator.normal(size=18), np.arange(18) < 4
    exact, tried = ap_p(scores, positive)
    monkeypatch.setattr(chance, "MOST_EXACT", 10)
    drawn, tried_now = ap_p(scores, positive, seed=2)
    assert tried and not tried_now
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / chance.DRAWS))
    assert ap_p(np.arange(500.0), np.arange(500) >= 480)[0] == 1 / (chance.DRAWS + 1)


def test_two_positives_among_a_hundred():
    """benchmark_apps.md A.6: an AUROC of 0.745 with two positives is nothing."""
    scores = np.arange(100.0)
    positive = np.isin(np.arange(100), (60, 88))
    assert roc_auc_score(positive, scores) == pytest.approx(0.745, abs=0.01)
    assert auroc_p(scores, positive)[0] > 0.1


def test_bad_input():
    with pytest.raises(BadData, match="0 of 3 units are positive"):
        auroc_p(np.arange(3.0), np.zeros(3, bool))
    with pytest.raises(BadData, match="3 of 3 units are positive"):
        ap_p(np.arange(3.0), np.ones(3, bool))
    with pytest.raises(BadData, match="one bool per unit, got int"):
        auroc_p(np.arange(3.0), np.array([0, 1, 0]))
    with pytest.raises(NotFinite, match="NaN or Inf"):
        auroc_p(np.array([0.0, np.nan]), np.array([True, False]))
    with pytest.raises(ShapeMismatch, match="one of each per unit"):
        auroc_p(np.arange(3.0), np.array([True, False]))
