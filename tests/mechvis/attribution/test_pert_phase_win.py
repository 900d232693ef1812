"""Region search: additive games, the greedy twin, games with synergy, counts."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.attribution import PhaseWin, attribute
from mechvis.attribution.methods.phase_win import greedy, keep_and_drop, phased
from mechvis.errors import OutOfRange, UnknownName
from mechvis.testing.patch_game import PatchGame


def weights(n, seed, low=0.0):
    return low + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestAdditive:
    @pytest.mark.parametrize("n", [5, 20, 50, 100])
    def test_order_is_sorting_and_few_evaluations(self, n):
        for seed in range(8):
            weight = weights(n, seed)
            found = phased(lambda sets, weight=weight: sets.double() @ weight, n)
            assert list(found.regions) == weight.argsort(descending=True).tolist()
            assert found.evaluations <= 3 * n + 1  # one for the empty set
            assert found.values[-1] == pytest.approx(float(weight.sum()))

    def test_greedy_is_the_same_and_dearer(self):
        weight = weights(30, 0)
        plain = greedy(lambda sets: sets.double() @ weight, 30)
        assert plain.regions == phased(lambda sets: sets.double() @ weight, 30).regions
        assert plain.evaluations == 1 + 30 * 31 // 2

    def test_regions_against_the_class_come_last(self):
        weight = weights(20, 3, low=-0.5)
        found = phased(lambda sets: sets.double() @ weight, 20)
        assert list(found.regions) == weight.argsort(descending=True).tolist()

    def test_worth_is_what_is_left_of_the_way(self):
        found = greedy(lambda sets: sets.double() @ torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64), 3)
        assert found.regions == (1, 0, 2) and found.worth == pytest.approx([3, 6, 2])


class TestOtherGames:
    def test_submodular_games_are_searched_like_greedy(self):
        """Coverage: what a region adds falls as others come, so known gains are upper bounds."""
        for seed in range(6):
            covers = torch.rand(25, 60, generator=torch.Generator().manual_seed(seed)) < 0.12

            def value(sets, covers=covers):
                return (sets.double() @ covers.double()).clamp(max=1).sum(1)

            quick, plain = phased(value, 25), greedy(value, 25)
            # Mean value on the way, as an insertion curve has it.
            assert np.mean(quick.values) >= 0.97 * np.mean(plain.values)
            assert quick.evaluations < 0.6 * plain.evaluations

    def test_two_that_count_together_only(self):
        score = PatchGame().score
        found = phased(lambda sets: score(sets.double()), 9)
        assert (
            found.regions[:2] == (0, 1) and set(found.regions[2:4]) >= {2} and sorted(found.regions) == list(range(9))
        )
        assert found.values[-1] == 6

    def test_a_constant_game(self):
        found = phased(lambda sets: torch.ones(len(sets)), 7)
        assert found.regions == tuple(range(7)) and not any(found.worth)

    def test_keep_and_drop(self):
        value = keep_and_drop(PatchGame(score=lambda m: m[..., 0] * 0.5))
        assert value(torch.eye(9, dtype=torch.bool))[:2].tolist() == [1.5, 0.5]

    @pytest.mark.parametrize("asked", [dict(select=0.1, drop=0.2), dict(window=0), dict(leave=2.0), dict(select=1.5)])
    def test_bad_settings(self, asked):
        with pytest.raises(OutOfRange, match="0 <= drop < select <= 1"):
            phased(lambda sets: sets.double().sum(1), 3, **asked)


@pytest.fixture(scope="module")
def wired():
    return mechvis.load(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())


class TestMethod:
    def test_the_patch_that_is_read_comes_first(self, wired):
        images = testing.hand_wired_images(3)[0]
        ask = dict(target=0, progress=False)
        quick = attribute(wired, images, PhaseWin(operator="zero"), **ask)
        plain = attribute(wired, images, PhaseWin(operator="zero", search="greedy"), **ask)
        for found in (quick, plain):
            assert (found.maps.reshape(3, 9).argmax(1) == 4).all()
        assert quick.arrays["insertion"] == pytest.approx(plain.arrays["insertion"], abs=1e-3)
        assert plain.arrays["evaluations"].tolist() == [46] * 3 and quick.arrays["evaluations"].max() <= 28
        # Two passes an evaluation, ten for the insertion curve, one for the table.
        assert quick.facts["forwards"] == 2 * quick.arrays["evaluations"].sum() + 3 * 11

    def test_insertion_by_hand(self, wired):
        images = testing.hand_wired_images(1)[0]
        found = attribute(wired, images, PhaseWin(operator="zero"), target=0, progress=False)
        order = np.argsort(-found.maps.reshape(9), kind="stable")
        with torch.no_grad():
            scores = []
            for count in range(10):
                mask = torch.zeros(9)
                mask[order[:count].copy()] = 1
                kept = images * mask.reshape(1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
                scores.append(float(wired(kept).softmax(-1)[0, 0]))
        assert found.arrays["insertion"][0] == pytest.approx(np.trapezoid(scores) / 9, abs=1e-4)

    def test_bad_search(self, wired):
        with pytest.raises(UnknownName, match="unknown search 'best'"):
            attribute(wired, testing.hand_wired_images(1)[0], PhaseWin(search="best"), target=0, progress=False)
