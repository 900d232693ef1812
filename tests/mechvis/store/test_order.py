"""Random order: the same for ever, fair, and without a state."""

import numpy as np
import pytest

from mechvis.store.order import BLOCKS, ROWS, TOKENS, keys, permutation, sample


def splitmix(z: int) -> int:
    """The finaliser in plain whole numbers."""
    mask = 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 7, 2**40, -3])
def test_keys_are_the_hash_that_is_written_down(seed):
    for i in (0, 1, 10**9):
        state = splitmix(seed % 2**64)
        for word in (TOKENS, 5, i):
            state = splitmix((state + 0x9E3779B97F4A7C15 + word) % 2**64)
        assert int(keys(seed, TOKENS, 5, np.array([i]))[0]) == state


def test_orders_of_released_stores_stay():
    assert permutation(8, 0, BLOCKS, 0).tolist() == [1, 3, 0, 4, 7, 2, 5, 6]
    assert sample(197, 4, 0, np.array([0, 1])).tolist() == [[95, 99, 151, 171], [16, 34, 88, 156]]


def test_a_permutation_has_everything_once_and_no_trace_of_the_order():
    for seed in range(3):
        order = permutation(20_000, seed, ROWS, 1, 2)
        assert np.array_equal(np.sort(order), np.arange(20_000))
        assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 4 / 20_000**0.5
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / 20_000**0.5


def test_other_words_and_seeds_give_unrelated_orders():
    orders = [permutation(5000, seed, what, epoch) for seed in (0, 1) for what in (BLOCKS, ROWS) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 5000**0.5


def test_samples_have_no_token_twice_and_favour_none():
    drawn = sample(50, 8, 3, np.arange(20_000))
    assert drawn.shape == (20_000, 8) and (np.diff(drawn, axis=1) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=50)
    expected, spread = 20_000 * 8 / 50, (20_000 * 8 / 50 * (1 - 8 / 50)) ** 0.5
    assert (np.abs(counts - expected) < 5 * spread).all()
    pairs = ((drawn == 0).any(1) & (drawn == 1).any(1)).mean()
    assert pairs == pytest.approx(8 * 7 / (50 * 49), abs=0.004), "pairs of tokens are as frequent as they should be"


def test_a_sample_depends_on_its_image_alone():
    among = sample(50, 8, 3, np.arange(100))
    assert np.array_equal(sample(50, 8, 3, np.array([41, 7])), among[[41, 7]])
    assert not np.array_equal(sample(50, 8, 4, np.arange(100)), among)
    assert not np.array_equal(sample(50, 8, 3, np.arange(100), group=1), among)
    assert np.array_equal(sample(5, 5, 3, np.arange(2)), [range(5)] * 2)
