"""Linear and logical explanations of planted units, beside brute force."""

from itertools import combinations, product

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.unit_labels import linear_explanation, logical_explanation
from probes.unit_labels.linear import LinearExplanation

NAMES = list("abcdefghij")


@pytest.fixture(scope="module")
def presence():
    return (np.random.default_rng(0).random((900, 10)) < 0.3).astype(float)


def split(a, c):
    return a[:300], c[:300], NAMES, (a[300:600], c[300:600])


def test_linear_explanation_finds_weights_and_bias(presence):
    noise = np.random.default_rng(1).standard_normal(900)
    a = 1.5 + 3 * presence[:, 1] - 2 * presence[:, 4] + 1.5 * presence[:, 7] + 0.3 * noise
    found = linear_explanation(*split(a, presence))
    assert found.concepts == ("b", "e", "h")
    np.testing.assert_allclose(found.weights, [3, -2, 1.5], atol=0.1)
    assert found.bias == pytest.approx(1.5, abs=0.1)
    fresh = np.corrcoef(found.predict(presence[600:]), a[600:])[0, 1]
    assert fresh > 0.97 and fresh == pytest.approx(found.correlation, abs=0.02)
    assert str(found).startswith("1.") and "+" in str(found) and " b -" in str(found)


def test_a_weak_concept_is_left_out_and_noise_has_none(presence):
    noise = np.random.default_rng(2).standard_normal(900)
    weak = linear_explanation(*split(3 * presence[:, 0] + 0.15 * presence[:, 5] + 0.3 * noise, presence))
    assert weak.concepts == ("a",)
    assert linear_explanation(
        *split(3 * presence[:, 0] + 0.15 * presence[:, 5], presence), lam=0.001, gain=0.0
    ).concepts[:2] == ("a", "f")
    none = linear_explanation(*split(noise, presence))
    held = none.predict(presence[600:])
    assert len(none.concepts) <= 2 and (held.std() == 0 or abs(np.corrcoef(held, noise[600:])[0, 1]) < 0.15)


def test_linear_explanation_refuses_what_does_not_fit(presence):
    a = presence[:, 0]
    with pytest.raises(ShapeMismatch, match="10 names"):
        linear_explanation(a[:300], presence[:200], NAMES, (a, presence))
    with pytest.raises(BadData, match="constant"):
        linear_explanation(*split(np.ones(900), presence))
    with pytest.raises(OutOfRange, match="lam=-1"):
        linear_explanation(*split(a, presence), lam=-1)
    with pytest.raises(NotFinite):
        linear_explanation(*split(a * np.nan, presence))
    assert isinstance(linear_explanation(*split(a, presence)), LinearExplanation)


def test_logical_explanation_finds_the_formula(presence):
    noise = 0.2 * np.random.default_rng(3).standard_normal(900)
    there = presence > 0
    cases = {
        "a AND NOT c": there[:, 0] & ~there[:, 2],
        "(d OR f) AND NOT a": (there[:, 3] | there[:, 5]) & ~there[:, 0],
        "g": there[:, 6],
    }
    for text, truth in cases.items():
        found = logical_explanation(truth + noise, presence, NAMES)
        np.testing.assert_array_equal(found(presence), truth)
        assert found.auc == pytest.approx(roc_auc_score(truth, truth + noise)) and found.coverage == truth.mean()
        assert str(found).count(" ") == text.count(" "), (str(found), text)


def test_logical_search_against_all_formulas_of_two(presence):
    a, c = np.random.default_rng(4).standard_normal(200), presence[:200, :5]
    found = logical_explanation(a, c, NAMES[:5], length=2, beam=10, gain=0.0)
    best = 0.0
    for first, second in [*combinations(range(5), 2)]:
        for n1, n2, both in product((False, True), (False, True), (np.logical_and, np.logical_or)):
            mask = both((c[:, first] > 0) ^ n1, (c[:, second] > 0) ^ n2)
            if 0.02 <= mask.mean() <= 0.5:
                best = max(best, roc_auc_score(mask, a))
    singles = [roc_auc_score(m, a) for m in (*(c > 0).T, *(c == 0).T) if 0.02 <= m.mean() <= 0.5]
    assert found.auc == pytest.approx(max(best, *singles))
    fresh = np.random.default_rng(5).standard_normal(700)
    assert abs(roc_auc_score(found(presence[200:, :5]), fresh) - 0.5) < 0.1, "the winner for noise is chance elsewhere"


def test_coverage_keeps_a_formula_of_one_image_out(presence):
    a = np.zeros(900)
    rare = presence.copy()
    rare[:, 9] = 0
    rare[5, 9] = 1
    a[5] = 10
    a += 0.1 * presence[:, 0]
    assert str(logical_explanation(a, rare, NAMES, length=1)) == "a"
    assert str(logical_explanation(a, rare, NAMES, length=1, coverage=(0.001, 0.5))) == "j"


def test_logical_explanation_refuses_what_does_not_fit(presence):
    with pytest.raises(ShapeMismatch, match="10 names"):
        logical_explanation(presence[:5, 0], presence, NAMES)
    with pytest.raises(OutOfRange, match="coverage"):
        logical_explanation(presence[:, 0], presence, NAMES, coverage=(0.5, 0.2))
    with pytest.raises(BadData, match="constant"):
        logical_explanation(np.ones(900), presence, NAMES)
    with pytest.raises(BadData, match="widen coverage"):
        logical_explanation(presence[:, 0], np.zeros((900, 10)), NAMES, length=1)
    with pytest.raises(NotFinite, match="activations"):
        logical_explanation(presence[:, 0] * np.nan, presence, NAMES)
