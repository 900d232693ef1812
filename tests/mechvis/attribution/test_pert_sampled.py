"""Methods that ask a removal game: exact answers on PatchGame, twins that enumerate, and what they cost."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange

import mechvis
from mechvis import testing
from mechvis.attribution import Occlusion, Rise, Shapley, Superpixels, attribute
from mechvis.attribution.cells import CellGame, coarse
from mechvis.attribution.methods.occlusion import occlusion, windows
from mechvis.attribution.methods.rise import rise
from mechvis.attribution.methods.shapley import all_masks, checked_sum, exact, shapley
from mechvis.errors import BadData, FailedCheck, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing.patch_game import BEST_SETS, SHAPLEY, SOBOL_TOTAL, PatchGame


def draws(n=1, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def constant(masks):
    return torch.full(masks.shape[:-1], 3.0, dtype=torch.float64)


def cubic(masks):
    """No game of pairs: three patches count only together."""
    return masks[..., 0] * masks[..., 1] * masks[..., 2] - 2 * masks[..., 3] + 0.5 * masks[..., 4] * masks[..., 0]


@pytest.fixture(scope="module")
def wired():
    """Only patch 4 is read."""
    return mechvis.load(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())


class TestPatchGame:
    def test_its_written_answers_are_right(self):
        assert exact(PatchGame())[0].numpy() == pytest.approx(SHAPLEY, abs=1e-12)
        masks = all_masks(9)
        scores = PatchGame().scores(masks[None])[0]
        for size, sets in BEST_SETS.items():
            some = masks.sum(1) == size
            best = masks[some][scores[some] == scores[some].max()]
            found = {tuple(row.nonzero().flatten().tolist()) for row in best}
            assert found == set(sets)

    def test_its_sobol_indices_are_right(self):
        grid = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
        m0, m1, m2, m3 = torch.meshgrid(grid, grid, grid, grid, indexing="ij")
        score = 2 * m0 + m1 + 3 * m2 * m3
        total = [float(score.var(axis, correction=0).mean() / score.var(correction=0)) for axis in range(4)]
        assert total == pytest.approx(SOBOL_TOTAL[:4], abs=2e-3)

    def test_masks_of_another_shape(self):
        with pytest.raises(ShapeMismatch, match=r"\[image row patch\] = \[1 row 9\], got \[1, 9\]"):
            PatchGame().scores(torch.ones(1, 9))


class TestOcclusion:
    def test_hide_and_reveal_by_hand(self):
        single = windows((3, 3))
        assert occlusion(PatchGame(), single, 1)[0].tolist() == [2, 1, 3, 3, 0, 0, 0, 0, 0]
        assert occlusion(PatchGame(), single, 1, "reveal")[0].tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0]

    def test_windows_by_hand(self):
        covers = windows((1, 5), window=2, stride=2)
        assert covers.int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
        game = PatchGame(grid=(1, 5), score=lambda masks: masks[..., 0] + 4 * masks[..., 3])
        assert occlusion(game, covers, 1)[0].tolist() == [1, 1, 4, 4, 4]
        assert windows((3, 3), 2).sum(0).tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]

    def test_redundant_evidence_is_seen_by_reveal_only(self):
        game = PatchGame(score=lambda masks: masks[..., :3].amax(-1))
        assert not occlusion(game, windows((3, 3)), 1).any()
        assert occlusion(game, windows((3, 3)), 1, "reveal")[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]

    def test_equals_captum(self, wired):
        from captum.attr import FeatureAblation

        pixels = testing.hand_wired_images(3)[0]
        found = attribute(wired, pixels, Occlusion(operator="zero"), target=[0, 1, 0], progress=False)
        mask = rearrange(torch.arange(9), "(d a) -> 1 1 d a", d=3).repeat_interleave(4, 2).repeat_interleave(4, 3)
        with torch.no_grad():
            theirs = FeatureAblation(wired).attribute(pixels, target=torch.tensor([0, 1, 0]), feature_mask=mask)
        assert found.maps == pytest.approx(theirs[:, 0, ::4, ::4].numpy(), abs=1e-6)

    def test_cost(self, wired):
        found = attribute(wired, testing.hand_wired_images(2)[0], Occlusion(window=2), target=0, progress=False)
        # Windows and the whole image, the score of the table.
        assert found.facts["forwards"] == 2 * (4 + 1 + 1)

    @pytest.mark.parametrize(
        "asked, error, said",
        [
            (dict(window=4), OutOfRange, "window=4: between 1 and 3"),
            (dict(window=1, stride=2), OutOfRange, "patches are never hidden"),
            (dict(direction="show"), UnknownName, "unknown direction 'show'"),
        ],
    )
    def test_bad_settings(self, wired, asked, error, said):
        with pytest.raises(error, match=said):
            attribute(wired, testing.hand_wired_images(1)[0], Occlusion(**asked), target=0, progress=False)


class TestRise:
    @pytest.mark.parametrize("adjust", [False, True])
    def test_differences_of_patch_game(self, adjust):
        values, extra = rise(PatchGame(n_images=2), draws(2), n=4000, adjust=adjust)
        away = (values - torch.tensor([2, 1, 1.5, 1.5, 0, 0, 0, 0, 0])).abs()
        assert away.max() < 0.16
        assert (away / extra["se"]).max() < 4

    def test_standard_errors_are_those_of_repeated_draws(self):
        for adjust in (False, True):
            values, extra = rise(PatchGame(n_images=300), draws(300), n=100, adjust=adjust, design="random")
            assert (extra["se"].mean(0) / values.std(0)).numpy() == pytest.approx(np.ones(9), abs=0.2)
            even, extra = rise(PatchGame(n_images=300), draws(300), n=128, adjust=adjust)
            assert (extra["se"].mean(0) > 0.9 * even.std(0)).all(), "an upper bound"
            assert even.std(0)[:4].mean() < 0.6 * values.std(0)[:4].mean()
            assert even.mean(0).numpy() == pytest.approx([2, 1, 1.5, 1.5, 0, 0, 0, 0, 0], abs=0.03), "no bias"

    def test_adjusted_is_least_squares_and_has_less_noise(self):
        masks = torch.rand(200, 9, generator=draws()[0]) < 0.5
        values, extra = rise(PatchGame(), draws(), n=200, adjust=True, design="random")
        design = np.column_stack([np.ones(200), masks.numpy()])
        scores = PatchGame().scores(masks[None])[0].numpy()
        found, rest, *_ = np.linalg.lstsq(design, scores, rcond=None)
        assert values[0].numpy() == pytest.approx(found[1:], abs=1e-10)
        errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * rest / (200 - 10))
        assert extra["se"][0].numpy() == pytest.approx(errors[1:], rel=1e-9)
        assert extra["se"].mean() < 0.8 * rise(PatchGame(), draws(), n=200, design="random")[1]["se"].mean()

    def test_all_masks_together_give_the_expectation(self):
        masks = all_masks(9).double()
        scores = PatchGame().scores(masks[None])[0]
        by_hand = [(scores[masks[:, i] == 1].mean() - scores[masks[:, i] == 0].mean()).item() for i in range(9)]
        assert by_hand == pytest.approx([2, 1, 1.5, 1.5, 0, 0, 0, 0, 0])

    @pytest.mark.parametrize("adjust", [False, True])
    def test_a_constant_game_and_a_cell_that_is_never_seen(self, adjust):
        values, extra = rise(PatchGame(score=constant), draws(), n=20, adjust=adjust)
        assert values.abs().max() < 1e-12 and torch.isfinite(extra["se"]).all()
        values, extra = rise(PatchGame(), draws(), n=20, keep=0.001, adjust=adjust)
        assert torch.isfinite(values).all() and torch.isfinite(extra["se"]).all()

    @pytest.mark.parametrize(
        "asked, said",
        [
            (dict(n=10, adjust=True), "n=10: 9 cells need at least 11 masks to be adjusted for"),
            (dict(n=3), "n=3: 9 cells need at least 8 masks"),
            (dict(n=30, keep=1.0), "keep=1.0: a probability"),
            (dict(n=30, keep=math.nan), "keep=nan"),
        ],
    )
    def test_bad_settings(self, asked, said):
        with pytest.raises(OutOfRange, match=said):
            rise(PatchGame(), draws(), **asked)
        with pytest.raises(UnknownName, match="unknown design 'lattice'"):
            rise(PatchGame(), draws(), n=30, design="lattice")


class TestShapley:
    def test_pair_games_are_exact_with_one_pair(self):
        values, extra = shapley(PatchGame(n_images=2), draws(2), pairs=1)
        assert values.numpy() == pytest.approx(np.tile(SHAPLEY, (2, 1)), abs=1e-12)
        assert extra["total"].tolist() == [6, 6]
        assert torch.isfinite(extra["se"]).all()

    def test_other_games_come_near_the_enumerated_values(self):
        game = PatchGame(score=cubic)
        truth = exact(game)[0]
        assert truth[:5].tolist() == pytest.approx([1 / 3 + 1 / 4, 1 / 3, 1 / 3, -2, 1 / 4])
        values, extra = shapley(PatchGame(score=cubic, n_images=50), draws(50), pairs=40)
        assert values.mean(0).numpy() == pytest.approx(truth.numpy(), abs=0.02)
        assert (extra["se"].mean(0)[:3] / values.std(0)[:3]).numpy() == pytest.approx(np.ones(3), abs=0.3)
        assert values.sum(1).numpy() == pytest.approx(np.full(50, -0.5), abs=1e-12)

    def test_without_reversed_orders_pairs_would_not_be_exact(self):
        from mechvis.attribution.methods.shapley import _gains

        order = torch.arange(9)[None, None]
        assert _gains(PatchGame(), order)[0][0, 0].tolist() == [2, 1, 0, 3, 0, 0, 0, 0, 0]

    def test_cost(self):
        game = PatchGame(n_images=3)
        shapley(game, draws(3), pairs=5)
        assert game.cost.forwards == 3 * (2 + 2 * 5 * (9 - 1))

    def test_a_constant_game(self):
        values, extra = shapley(PatchGame(score=constant), draws(), pairs=3)
        assert not values.any() and not extra["se"].any()

    def test_an_inconsistent_game_is_refused(self):
        with pytest.raises(FailedCheck, match=r"add up to 2, not to .* = 1"):
            checked_sum(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([2.0]))

    def test_bad_settings(self):
        with pytest.raises(OutOfRange, match="pairs=0"):
            shapley(PatchGame(), draws(), pairs=0)
        with pytest.raises(OutOfRange, match=r"25 cells have 2\^25 sets; at most 14"):
            exact(PatchGame(grid=(5, 5)))

    def test_single_cell(self):
        game = CellGame(game=PatchGame(), members=torch.ones(1, 9, dtype=torch.bool))
        assert shapley(game, draws(), pairs=2)[0].tolist() == [[6]]

    def test_on_a_model(self, wired):
        pixels = testing.hand_wired_images(4)[0]
        ask = dict(target=0, progress=False)
        found = attribute(wired, pixels, Shapley(operator="zero", pairs=2, cells=None), **ask)
        assert (found.maps.reshape(4, 9).argmax(1) == 4).all()
        assert found.table["gap"].max() < 1e-5
        both = attribute(wired, pixels, Shapley(operator="zero", pairs=2), seed=5, **ask)
        assert both.table["gap"].max() < 1e-5


class TestCells:
    members = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0, 0]], dtype=torch.bool)

    def test_patches_of_no_cell_stay_and_values_are_shared(self):
        game = CellGame(game=PatchGame(), members=self.members)
        masks = game.masks(torch.tensor([[[1.0, 0.0], [0.0, 0.5]]]))
        assert masks[0].tolist() == [[1, 1, 0, 0] + [1] * 5, [0, 0, 0.5, 0.5] + [1] * 5]
        assert game.spread(torch.tensor([[4.0, 1.0]]))[0].tolist() == [2, 2, 0.5, 0.5, 0, 0, 0, 0, 0]
        assert exact(game)[0].tolist() == [3, 3]

    def test_overlap_and_misfit_are_refused(self):
        with pytest.raises(BadData, match="lies in two cells"):
            CellGame(game=PatchGame(), members=torch.ones(2, 9, dtype=torch.bool))
        with pytest.raises(BadData, match=r"over 9 patches: \[2, 4\]"):
            CellGame(game=PatchGame(), members=torch.ones(2, 4, dtype=torch.bool))

    def test_coarse(self):
        assert [coarse((n, n))[0] for n in (1, 2, 3, 8, 13, 14, 16, 24)] == [1, 2, 3, 4, 7, 7, 4, 6]

    def test_superpixels_follow_colours_and_the_image_alone(self, wired):
        pixels = torch.zeros(2, 3, 12, 12)
        pixels[0, :, 4:] = 1.0
        pixels[1, :, :, 8:] = 1.0
        labels = Superpixels(n=2, compactness=0.01).labels(pixels, (3, 3))
        assert labels[0].tolist() == [[0] * 3, [1] * 3, [1] * 3]
        assert labels[1].tolist() == [[0, 0, 1]] * 3
        images = testing.hand_wired_images(3)[0]
        method = Rise(operator="zero", n=40, cells=Superpixels(n=4))
        all_three = attribute(wired, images, method, target=0, progress=False).maps
        alone = attribute(wired, images[2:], method, target=0, example_ids=[2], progress=False).maps
        assert alone[0] == pytest.approx(all_three[2], abs=1e-5)

    def test_strange_cells(self, wired):
        images = testing.hand_wired_images(1)[0]
        with pytest.raises(BadData, match="cells='fine': give None, 'coarse'"):
            attribute(wired, images, Rise(cells="fine"), target=0, progress=False)
        with pytest.raises(BadData, match="a grid of 4 x 4 cells does not fit"):
            attribute(wired, images, Rise(cells=(4, 4)), target=0, progress=False)
        with pytest.raises(OutOfRange, match="n and steps are at least 1"):
            Superpixels(n=0)
