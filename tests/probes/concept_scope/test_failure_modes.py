"""Failure modes on F14, whose cause is a pair of tags: the specification's numbers."""

from itertools import combinations

import numpy as np
import pytest

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.concept_scope import FailureModes, failure_modes
from probes.concept_scope.failure_modes import b_of, wilson

NAMES = [str(i) for i in range(8)]


def f14(seed=0, n=6000):
    """8 tags with p = .4; success .92, .80 with tag 6, .45 with tags 1 and 4."""
    generator = np.random.default_rng(seed)
    tags = generator.random((n, 8)) < 0.4
    p = np.full(n, 0.92)
    p[tags[:, 6]] = 0.80
    p[tags[:, 1] & tags[:, 4]] = 0.45
    return generator.random(n) < p, tags


def test_the_pair_is_found_alone():
    found = failure_modes(*f14(), NAMES, a=0.30, b=0.10)
    assert found.sets() == [("1", "4")]
    row = found.table.row(0, named=True)
    assert row["support"] == 909 and row["accuracy"] == pytest.approx(0.419, abs=5e-4)
    assert row["low"] < 0.419 < row["high"] and row["b"] == 0.10 and row["p_adjusted"] < 1e-50


def test_a_small_b_lets_parents_leak_in():
    found = failure_modes(*f14(), NAMES, a=0.10, b=0.05)
    assert {tuple(sorted(tags)) for tags in found.sets()} == {("1",), ("4",), ("1", "4"), ("1", "6"), ("4", "6")}
    assert set(found.table["b"]) == {0.05}


def test_without_minimality_there_are_41():
    assert failure_modes(*f14(), NAMES, a=0.10, b=0.05, minimal=False).table.height == 41


@pytest.mark.parametrize("seed", range(1, 6))
def test_other_seeds_find_the_pair(seed):
    assert failure_modes(*f14(seed), NAMES, a=0.30, b=0.10).sets() == [("1", "4")]


def test_minimality_holds_for_every_mode_and_the_search_is_that_of_all_subsets():
    correct, tags = f14(3, n=1500)
    found = failure_modes(correct, tags, NAMES, a=0.05, b=0.02, support=30)
    accuracy, expected = correct.mean(), set()

    def of(chosen):
        return correct[tags[:, list(chosen)].all(1)] if chosen else correct

    for size in (1, 2, 3):
        for chosen in combinations(range(8), size):
            if len(of(chosen)) < 30 or accuracy - of(chosen).mean() < 0.05:
                continue
            drops = [of([t for t in chosen if t != tag]).mean() - of(chosen).mean() for tag in chosen]
            if min(drops) >= 0.02:
                expected.add(tuple(str(tag) for tag in chosen))
    assert set(found.sets()) == expected and len(expected) > 3


def test_shuffled_answers_have_no_modes():
    correct, tags = f14()
    assert failure_modes(np.random.default_rng(0).permutation(correct), tags, NAMES).sets() == []


def test_modes_are_confirmed_on_other_images(tmp_path):
    found = failure_modes(*f14(), NAMES, held_out=f14(9), a=0.30, b=0.10)
    row = found.table.row(0, named=True)
    assert row["held_out_low"] < 0.45 < row["held_out_high"] and row["held_out_support"] > 800
    found.save(tmp_path / "modes")
    assert FailureModes.load(tmp_path / "modes").sets() == [("1", "4")]
    assert "Not confirmed" in failure_modes(*f14(), NAMES).caveats[-1]


def test_wilson_is_scipys():
    from scipy.stats import binomtest

    for right, n in ((0, 5), (8, 10), (419, 909), (50, 50)):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(wilson(right, n), (expected.low, expected.high), atol=1e-12)


def test_steps_by_size():
    steps = {2: 0.10, 3: 0.05}
    assert [b_of(steps, size) for size in (1, 2, 3, 5)] == [0.10, 0.10, 0.05, 0.05]
    assert b_of(0.2, 4) == 0.2


def test_bad_input():
    correct, tags = f14(n=100)
    with pytest.raises(BadData, match="correct and tags are bool"):
        failure_modes(correct.astype(int), tags)
    with pytest.raises(ShapeMismatch, match=r"tags are \[image tag\]"):
        failure_modes(correct, tags[:50])
    with pytest.raises(ShapeMismatch, match="2 names for 8 tags"):
        failure_modes(correct, tags, ["a", "b"])
    with pytest.raises(OutOfRange, match="a=0"):
        failure_modes(correct, tags, a=0)
    with pytest.raises(OutOfRange, match="b=-1"):
        failure_modes(correct, tags, b=-1)
