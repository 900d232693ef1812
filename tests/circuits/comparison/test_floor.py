"""The noise floor: halves of one set are the floor, fresh images do not alarm, a planted shift does."""

import numpy as np
import pytest

from circuits.comparison import css, distance
from circuits.comparison.floor import noise_floor, p_value, shifts
from circuits.edges.graph import EdgeGraph
from mechvis.errors import BadData, NotFinite, OutOfRange, ResultMismatch


def test_a_set_with_itself_is_zero(planted, graph):
    scores = planted(40, 1)
    found = css(scores, scores, graph=graph, draws=20)
    assert found.value == 0.0
    assert found.n == 20 and found.floor.shape == found.draws.shape == (20,)


def test_halves_are_the_floor(planted, graph):
    """The floor's draws are distances of disjoint halves, by hand."""
    scores = planted(30, 2)
    floor, firsts = noise_floor(lambda rows: scores[:, rows].mean(1), 30, 15, draws=25, seed=3)
    generator = np.random.default_rng(3)
    for draw in range(25):
        order = generator.permutation(30)
        first, second = scores[:, order[:15]].mean(1), scores[:, order[15:]].mean(1)
        assert floor[draw] == pytest.approx(distance(first, second), abs=1e-12)
        np.testing.assert_allclose(firsts[draw], first, atol=1e-12)
    found = css(scores, scores[:, order[15:]], graph=graph, draws=25, seed=3)
    np.testing.assert_allclose(found.floor, floor, atol=1e-12)
    assert found.draws[24] == pytest.approx(floor[24], abs=1e-12)  # the last half against its other half


def test_fresh_images_of_the_same_source_look_like_the_floor(planted, graph):
    """48 fresh windows against six references: as far off as the floor, and hardly ever beyond it."""
    matched, floors, p, above = [], [], [], 0
    for seed in range(6):
        reference = planted(100, seed)
        for window in range(8):
            found = css(reference, planted(50, 1000 + 8 * seed + window), graph=graph, draws=60, seed=seed)
            matched.append(found.matched), floors.append(found.floor_mean), p.append(found.p)
            above += found.above_floor
    assert np.mean(matched) == pytest.approx(np.mean(floors), rel=0.03)
    assert above <= 3  # asked: 1 in 100; binomial(48, 0.01) stays below 4 in 99.7 %
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert 0.3 < np.mean(p) < 0.7


def test_a_shift_is_seen_and_grows(planted, graph):
    reference = planted(100, 0)
    found = [css(reference, planted(50, 5, move=move), graph=graph, draws=50) for move in (0, 0.5, 1, 2)]
    values = [one.matched for one in found]
    assert (np.diff(values) > 0).all()
    assert not found[0].above_floor and found[0].p > 0.05
    for one in found[2:]:
        assert one.above_floor and one.p == pytest.approx(1 / 51)
    assert "noise floor" in str(found[2]) and "p = 0.0196" in str(found[2])


def test_the_floor_falls_with_the_number_of_images(planted, graph):
    scores = planted(400, 0)
    floors = [css(scores, planted(n, 9), graph=graph, draws=20).floor_mean for n in (10, 50, 200)]
    assert floors[0] > 1.5 * floors[1] > 2 * floors[2]


def test_larger_sets_are_drawn_from(planted, graph):
    """A window below the other set's size: every draw takes other images of it."""
    found = css(planted(40, 0), planted(40, 1), graph=graph, window=10, draws=20)
    assert found.n == 10 and len(set(found.draws)) == 20
    # Equal sets must not be drawn in one order, which would compare images with themselves.
    same = planted(40, 0)
    assert css(same, same, graph=graph, window=10, draws=20).draws.min() > 0.01


def test_p_counts():
    floor = np.linspace(0, 1, 99)
    assert p_value(2.0, floor) == 0.01 and p_value(0.0, floor) == 1.0


def test_bad_input(planted, graph):
    scores = planted(40, 0)
    with pytest.raises(OutOfRange, match="draws=19: a noise floor needs at least 20"):
        css(scores, scores, graph=graph, draws=19)
    with pytest.raises(BadData, match="twice as many images"):
        css(scores, scores, graph=graph, window=21, draws=20)
    with pytest.raises(BadData, match="12 images cannot be compared with subsets of 20"):
        css(scores, scores[:, :12], graph=graph, window=20, draws=20)
    with pytest.raises(BadData, match="do not fit into a reference set of 1"):
        css(scores.mean(1), scores, graph=graph, draws=20)  # means alone have no noise floor
    with pytest.raises(ResultMismatch, match="two architectures"):
        small = EdgeGraph((2,))
        from circuits.comparison.scores import edge_scores

        css(edge_scores(scores, graph), edge_scores(np.ones((small.n_edges, 40)), small), draws=20)
    with pytest.raises(NotFinite):
        css(np.where(scores > 3, np.inf, scores), scores, graph=graph, draws=20)
    with pytest.raises(BadData, match="3 images cannot be compared"):
        shifts(lambda rows: scores[:, rows].mean(1), 3, 4, [scores[:, 0]])
