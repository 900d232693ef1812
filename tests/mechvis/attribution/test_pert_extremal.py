"""Extremal perturbation: the sets of PatchGame that are not nested, hooks against the tail, settings."""

from itertools import combinations

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.attribution import ExtremalPerturbation, attribute
from mechvis.attribution.methods.extremal import extremal, overlaps, smallest
from mechvis.errors import MechvisError, OutOfRange, UnknownName
from mechvis.testing.patch_game import BEST_SETS, PatchGame

DOUBLE = torch.float64
NINTHS = (1 / 9, 2 / 9, 3 / 9)


def members(sets):
    return [tuple(row.nonzero().flatten().tolist()) for row in sets]


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def wired():
    return mechvis.load(testing.hand_wired_vit(dtype=DOUBLE), preprocess=testing.tiny_preprocess())


class TestPatchGame:
    def test_sets_that_are_not_nested(self):
        found = extremal(PatchGame(n_images=2).scores, NINTHS, 2, (3, 3))
        for image in range(2):
            for size, got in enumerate(members(found.sets[image]), 1):
                assert got in BEST_SETS[size]
        assert found.curve[0].tolist() == [2, 3, 5]
        assert found.full.tolist() == [6, 6] and found.empty.tolist() == [0, 0]
        assert overlaps(found.sets)[0, 1] in (0.5, 1.0)

    def test_a_set_that_no_ranking_nests(self):
        """Two patches together are worth more than the best one, and do not hold it."""
        game = PatchGame(score=lambda m: m[..., 0] + 3 * m[..., 4] * m[..., 5])
        found = extremal(game.scores, NINTHS[:2], 1, (3, 3))
        assert members(found.sets[0]) == [(0,), (4, 5)]
        assert overlaps(found.sets).tolist() == [[0.0]]

    def test_masks_have_the_area(self):
        found = extremal(PatchGame().scores, NINTHS, 1, (3, 3))
        assert found.masks[0].mean(1).numpy() == pytest.approx(NINTHS, abs=0.01)
        assert found.sets[0].sum(1).tolist() == [1, 2, 3]

    def test_against_all_sets_of_random_pair_games(self):
        generator = torch.Generator().manual_seed(0)
        reached = []
        for _ in range(6):
            single, pair = torch.rand(9, generator=generator).double(), torch.rand(9, 9, generator=generator).double()

            def score(m, single=single, pair=pair):
                return m @ single + 0.3 * torch.einsum("...a,ab,...b->...", m, pair.triu(1), m)

            found = extremal(PatchGame(score=score).scores, NINTHS, 1, (3, 3))
            for size in (1, 2, 3):
                rows = torch.zeros(1, 1, 9, dtype=DOUBLE).repeat(1, len(list(combinations(range(9), size))), 1)
                for row, chosen in enumerate(combinations(range(9), size)):
                    rows[0, row, list(chosen)] = 1
                values = score(rows)[0]
                share = (values < found.curve[0, size - 1] - 1e-9).double().mean()
                reached.append(float(share))
        # Share of all sets of the size that are worse: random sets have .5, the best of each size .95 on average.
        assert np.mean(reached) > 0.9

    def test_deleting(self):
        found = extremal(PatchGame().scores, NINTHS[:2], 1, (3, 3), variant="delete")
        assert found.curve[0].tolist() == [3, 1]
        assert members(found.sets[0])[0] in [(2,), (3,)] and members(found.sets[0])[1] in [(0, 2), (0, 3)]
        both = extremal(PatchGame().scores, (3 / 9,), 1, (3, 3), variant="dual")
        assert members(both.sets[0]) == [(0, 2, 3)]

    def test_a_constant_game_is_finite(self):
        found = extremal(lambda m: 0 * m.sum(-1) + 3, NINTHS, 1, (3, 3))
        assert torch.isfinite(found.masks).all() and found.curve[0].tolist() == [3, 3, 3]

    def test_smallest(self):
        curve = torch.tensor([[0.0, 8.9, 9.1], [1.0, 2.0, 3.0]])
        full, empty = torch.tensor([10.0, 10.0]), torch.zeros(2)
        assert smallest(curve, full, empty, (0.1, 0.2, 0.5)).tolist() == [0.5, 1.0]
        assert smallest(curve, full, empty, (0.1, 0.2, 0.5), "delete").tolist() == pytest.approx([0.1, 0.1])

    @pytest.mark.parametrize(
        "asked, error, said",
        [
            (dict(areas=(0.01,)), OutOfRange, r"areas=\(0.01,\): shares .* at least one of 9 patches"),
            (dict(areas=(1.0,)), OutOfRange, "not all"),
            (dict(areas=()), OutOfRange, r"areas=\(\)"),
            (dict(areas=NINTHS, variant="keep"), UnknownName, "unknown variant 'keep'"),
            (dict(areas=NINTHS, steps=0), OutOfRange, "steps=0"),
            (dict(areas=NINTHS, sigma=-1.0), OutOfRange, "sigma=-1.0"),
        ],
    )
    def test_bad_settings(self, asked, error, said):
        with pytest.raises(error, match=said):
            extremal(PatchGame().scores, n_images=1, grid=(3, 3), **asked)


class TestMethod:
    @pytest.mark.parametrize("layer", [0, 1])
    def test_the_patch_that_is_read(self, wired, layer):
        images = testing.hand_wired_images(3, dtype=DOUBLE)[0]
        reference = torch.zeros(2, 3, 12, 12, dtype=DOUBLE)
        method = ExtremalPerturbation(areas=(1 / 9, 3 / 9), reference=reference, layer=0, sigma=0.0)
        found = attribute(wired, images, method, target=0, progress=False)
        assert (found.arrays["sets"][:, 0].argmax(1) == 4).all()
        assert found.arrays["smallest"] == pytest.approx(np.full(3, 1 / 9))
        assert (found.maps.reshape(3, 9).argmax(1) == 4).all()

    def test_curve_is_the_score_of_the_sets_by_a_game(self, model):
        """At layer 0 a mask over the stream is a mask over patches of an image on its mean colour."""
        from mechvis.removal import Game
        from mechvis.target import target_of

        pixels = testing.tiny_input("vit", dtype=DOUBLE)
        found = attribute(model, pixels, ExtremalPerturbation(steps=8), target=2, progress=False)
        target = target_of(model, model.run(pixels).logits, target=2)
        game = Game(model=model, pixels=pixels, target=target, operator="mean")
        scores = game.scores(torch.as_tensor(found.arrays["sets"])).numpy()
        assert found.arrays["curve"] == pytest.approx(scores, abs=1e-6)

    def test_nobody_reads_masked_keys(self, model):
        """With hard masks, multiplied attention is what an attention mask gives."""
        from mechvis import edits
        from mechvis.attribution.methods.extremal import _unread

        pixels = testing.tiny_input("vit", dtype=DOUBLE)
        stream = model.run(pixels, capture=["blocks.1.hook_resid_pre"]).cache["blocks.1.hook_resid_pre"]
        masks = torch.ones(3, 10, dtype=DOUBLE)
        masks[:, [3, 7]] = 0
        soft = _unread(model, stream, masks, 1, (12, 12), 3, False)

        def hide(scores):
            return scores.masked_fill((masks == 0)[:, None, None], -1e30)

        hard = model.run(
            stream, [edits.call(f"blocks.{at}.attn.hook_attn_scores", hide) for at in (1, 2)], start_at_layer=1
        ).output
        testing.assert_close(soft, hard, 1e-4, "masked keys")
        assert not torch.allclose(hard, model.run(pixels).output, atol=1e-3)

    def test_cost_and_options(self, model):
        pixels = testing.tiny_input("vit", n=2, dtype=DOUBLE)
        method = ExtremalPerturbation(areas=(0.2, 0.4), steps=5)
        found = attribute(model, pixels, method, target=2, progress=False)
        # Steps, the sets of both starts and their scores, the ends, the gradient at the empty set, two streams, the
        # score of the table; then so many swaps of all four rows.
        rest = found.facts["forwards"] / 2 - (5 * 4 + 2 * 4 + 2 + 1 + 2 + 1)
        assert rest % 4 == 0 and 4 <= rest <= 8 * 4
        assert found.facts["backwards"] / 2 == 5 * 4 + 4 + 1 + rest
        for more in (dict(layer=1), dict(layer=1, mask_keys=False), dict(variant="dual"), dict(variant="delete")):
            maps = attribute(
                model, pixels, ExtremalPerturbation(steps=5, **more), target=2, rows_at_once=9, progress=False
            ).maps
            assert np.isfinite(maps).all() and (maps >= 0).all() and (maps <= 1).all()

    def test_bad_reference(self, model):
        with pytest.raises(MechvisError, match="got 20 x 20"):
            method = ExtremalPerturbation(reference=torch.zeros(2, 3, 20, 20, dtype=DOUBLE))
            attribute(model, testing.tiny_input("vit", dtype=DOUBLE), method, target=0, progress=False)
