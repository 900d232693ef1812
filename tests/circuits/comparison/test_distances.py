"""Distances against other people's, the planted noise of the method's description, and bad input."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance as spatial

from circuits.comparison import distance
from circuits.comparison.distances import DISTANCES, top_edges
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName


@pytest.fixture
def pair():
    generator = np.random.default_rng(0)
    first = generator.normal(size=300)
    first[:20] = 0  # ties
    return first, first + generator.normal(size=300)


def test_against_scipy(pair):
    a, b = pair
    expected = {
        "spearman": 1 - stats.spearmanr(a, b).statistic,
        "pearson": spatial.correlation(a, b),
        "cosine": spatial.cosine(a, b),
        "l2": spatial.euclidean(a, b),
        "kendall": 1 - stats.kendalltau(a, b).statistic,
        "weighted_jaccard": sum(abs(abs(a) - abs(b))) / sum(np.maximum(abs(a), abs(b))),
    }
    assert set(expected) == set(DISTANCES)
    for kind, value in expected.items():
        assert distance(a, b, kind, top_mass=1) == pytest.approx(value, abs=1e-12), kind


@pytest.mark.parametrize("kind", DISTANCES)
def test_zero_with_itself_and_symmetric(pair, kind):
    a, b = pair
    for mass in (0.5, 0.95, 1):
        assert distance(a, a.copy(), kind, top_mass=mass) == 0.0
        assert distance(a, b, kind, top_mass=mass) == pytest.approx(distance(b, a, kind, top_mass=mass), abs=1e-12)
    assert distance(np.zeros(5), np.zeros(5), kind) == 0.0


def test_what_each_one_sees(pair):
    a, b = pair
    assert distance(a, -a, "spearman", top_mass=1) == pytest.approx(2)
    assert distance(a, -a, "weighted_jaccard") == 0  # blind to signs
    for kind in ("spearman", "pearson", "cosine", "kendall"):
        assert distance(a, 5 * b, kind) == pytest.approx(distance(a, b, kind), abs=1e-12)  # class counts do not matter
    assert distance(a, 5 * a, "l2") > 1
    assert distance(a, np.exp(a), "spearman", top_mass=1) == pytest.approx(0)  # ranks only


def test_planted_noise():
    """2,000 edges, noise 0.1, 0.5, 1, 3: asked are 0.20, 0.52, 0.73, 0.85, and for the cosine 0.003, 0.06, 0.19, 0.59.

    How the weights were distributed is not said. Normal numbers with log-normal sizes (median exp(-2), sigma 1.5) come
    closest of sixty tried: most edges near zero, a few large.
    """
    found = {kind: [] for kind in ("spearman", "cosine")}
    for sigma in (0.1, 0.5, 1, 3):
        values = {kind: [] for kind in found}
        for seed in range(8):
            generator = np.random.default_rng(seed)
            weights = generator.normal(size=2000) * np.exp(-2 + 1.5 * generator.normal(size=2000))
            moved = weights + sigma * generator.normal(size=2000)
            for kind in found:
                values[kind].append(distance(weights, moved, kind, top_mass=1))
        for kind in found:
            found[kind].append(np.mean(values[kind]))
    assert (np.diff(found["spearman"]) > 0).all() and (np.diff(found["cosine"]) > 0).all()
    np.testing.assert_allclose(found["spearman"], [0.20, 0.52, 0.73, 0.85], atol=0.08)
    np.testing.assert_allclose(found["cosine"], [0.003, 0.06, 0.19, 0.59], atol=0.06)


def test_top_mass_drops_the_ranks_of_nothing():
    """A few strong edges agree, two thousand of the size of dust do not."""
    generator = np.random.default_rng(0)
    strong, dust = np.linspace(1, 5, 30), 1e-4 * generator.normal(size=(2, 2000))
    a, b = (np.concatenate([strong, noise]) for noise in dust)
    assert distance(a, b, top_mass=1) > 0.9
    assert distance(a, b, top_mass=0.95) < 1e-9
    # Mass that only one side has counts: it is kept by either side's.
    moved = a.copy()
    moved[100] = 20
    assert distance(a, moved) > 0.05


def test_top_edges_are_the_fewest_that_carry_the_mass():
    weights = np.array([0.1, -0.5, 0.4, 0.0])
    assert top_edges(weights, 0.5).tolist() == [False, True, False, False]
    assert top_edges(weights, 0.9).tolist() == [False, True, True, False]
    assert top_edges(weights, 0.91).tolist() == [True, True, True, False]
    assert top_edges(weights, 1).all() and top_edges(np.zeros(3), 0.5).all()


def test_bad_input(pair):
    a, b = pair
    with pytest.raises(UnknownName, match="distance 'euclid'"):
        distance(a, b, "euclid")
    with pytest.raises(ShapeMismatch, match=r"\[300\] and \[299\]"):
        distance(a, b[1:])
    with pytest.raises(OutOfRange, match="top_mass=0"):
        distance(a, b, top_mass=0)
    with pytest.raises(NotFinite, match="the second scores hold NaN or Inf at edge 3"):
        distance(a, np.where(np.arange(300) == 3, np.nan, b))
    with pytest.raises(BadData, match="have no order"):
        distance(a, np.ones(300), top_mass=1)
    with pytest.raises(BadData, match="no angle"):
        distance(a, np.zeros(300), "cosine", top_mass=1)
    with pytest.raises(BadData, match="only 1 edge"):
        distance(np.array([1.0, 0, 0]), np.array([2.0, 0, 0]))
