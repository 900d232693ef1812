"""Shapley values of games whose shares are known, by three estimators."""

import itertools

import numpy as np
import pytest

from mechvis.errors import OutOfRange
from probes.concept_tests.completeness import exact_shapley, kernel_shapley, permutation_shapley
from probes.concept_tests.completeness.shapley import Remembered


def table_game(players, seed=0, out=1):
    """A value for every set at random, with v(none) = 0."""
    values = np.random.default_rng(seed).normal(size=(2**players, out))
    values[0] = 0
    powers = 2 ** np.arange(players)
    return lambda chosen: values[int(np.asarray(chosen) @ powers)]


def by_orders(game, players):
    """The definition as a mean over all orders."""
    gains = []
    for order in itertools.permutations(range(players)):
        chosen, row = np.zeros(players, bool), np.zeros(players)
        for player in order:
            before = game(chosen)[0]
            chosen[player] = True
            row[player] = game(chosen)[0] - before
        gains.append(row)
    return np.mean(gains, axis=0)


def test_exact_is_the_mean_over_all_orders():
    game = table_game(5)
    np.testing.assert_allclose(exact_shapley(game, 5)[:, 0], by_orders(game, 5), atol=1e-12)


def test_known_games():
    gloves = lambda chosen: float(chosen[0] and (chosen[1] or chosen[2]))  # noqa: E731
    np.testing.assert_allclose(exact_shapley(gloves, 3)[:, 0], [2 / 3, 1 / 6, 1 / 6], atol=1e-12)
    majority = lambda chosen: float(sum(chosen) >= 2)  # noqa: E731
    np.testing.assert_allclose(exact_shapley(majority, 3)[:, 0], [1 / 3] * 3, atol=1e-12)
    assert exact_shapley(lambda chosen: 2.0 * chosen[0], 1).tolist() == [[2.0]]


def test_values_that_are_vectors():
    game = table_game(4, out=3)
    found = exact_shapley(game, 4)
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found.sum(0), game(np.ones(4, bool)), atol=1e-12)


def test_permutations_sum_exactly_and_approach_the_truth():
    game = table_game(6, seed=1)
    truth = exact_shapley(game, 6)[:, 0]
    for orders in (1, 2, 400):
        found, pairs = permutation_shapley(game, 6, orders=orders, seed=3)
        assert found.sum() == pytest.approx(game(np.ones(6, bool))[0], abs=1e-12)
        assert pairs.shape == (orders, 6, 1)
    error = pairs[:, :, 0].std(0, ddof=1) / np.sqrt(orders)
    assert (np.abs(found[:, 0] - truth) < 4 * error).all()


def test_an_order_and_its_reverse_are_exact_for_pairs():
    """A game of single and pairwise terms: each pair's gain goes to one player forwards, to the other backwards."""
    generator = np.random.default_rng(0)
    single, both = generator.normal(size=6), np.triu(generator.normal(size=(6, 6)), 1)
    game = lambda chosen: single @ chosen + chosen @ both @ chosen  # noqa: E731
    found, _ = permutation_shapley(lambda chosen: game(chosen.astype(float)), 6, orders=1)
    np.testing.assert_allclose(found[:, 0], single + (both.sum(0) + both.sum(1)) / 2, atol=1e-12)


def test_the_released_estimator():
    """Exact for a game that is a sum; for others near, with its sum held by the weight of the full set."""
    weights = np.arange(1.0, 7.0)
    found = kernel_shapley(lambda chosen: weights @ chosen, 6, masks=60)
    np.testing.assert_allclose(found[:, 0], weights, atol=1e-6)
    game = table_game(4, seed=2)
    truth = exact_shapley(game, 4)[:, 0]
    found = kernel_shapley(game, 4, masks=20_000, include=0.5)[:, 0]
    np.testing.assert_allclose(found, truth, atol=0.03)
    assert found.sum() == pytest.approx(game(np.ones(4, bool))[0], abs=1e-3)


def test_each_set_is_asked_for_once():
    asked = []

    def game(chosen):
        asked.append(tuple(chosen))
        return float(sum(chosen))

    exact_shapley(game, 4)
    assert len(asked) == 16 == len(set(asked))
    asked.clear()
    permutation_shapley(game, 4, orders=50)
    assert len(asked) == len(set(asked)) <= 16


def test_what_is_refused():
    with pytest.raises(OutOfRange, match=r"21 players have 2\^21 sets"):
        exact_shapley(lambda chosen: 0.0, 21)
    with pytest.raises(OutOfRange, match="orders=0"):
        permutation_shapley(lambda chosen: 0.0, 2, orders=0)
    with pytest.raises(OutOfRange, match="players=1"):
        kernel_shapley(lambda chosen: 0.0, 1)
    with pytest.raises(OutOfRange, match="0 players"):
        Remembered(lambda chosen: 0.0, 0)
