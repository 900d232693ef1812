"""Counterfactual swaps: F15, the exact search, random swaps as the control, identities on a real model."""

import numpy as np
import pytest
import torch
from einops import rearrange

import mechvis
from mechvis import testing
from mechvis.attribution import PatchSwaps, patch_swaps
from mechvis.attribution.swap_search import Task, greedy, in_order, random_swaps, relaxed, similarity
from mechvis.attribution.swaps import _Place
from mechvis.errors import BadData, BadImages, OutOfRange, ShapeMismatch, UnknownName
from mechvis.plots.patch_swaps import patch_swaps as draw
from mechvis.testing.swap_grid import swap_grid

DOUBLE = torch.float64


def task(scale=9.0, **more):
    grid = swap_grid(scale=scale)
    return Task(**({"logits": grid.logits, "query": grid.query, "other": grid.other, "wanted": 1} | more))


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def images(model):
    """Queries and others with different predictions."""
    pixels = testing.tiny_input("vit", n=40, dtype=DOUBLE)
    classes = model.run(pixels).logits.argmax(1)
    first = pixels[classes == classes.mode().values][:4]
    second = pixels[classes != classes.mode().values][:4]
    assert len(first) == len(second) == 4
    return first, second


class TestSwapGrid:
    def test_one_swap_turns_it(self):
        for verify in (None, 5, 64):
            found = greedy(task(), verify=verify)
            assert found.pairs == ((3, 4),) and found.flipped
            assert found.scores[1] > np.log(0.5) > found.scores[0]

    def test_counts(self):
        assert (greedy(task(), verify=None).forwards, greedy(task(), verify=None).backwards) == (1 + 81, 0)
        found = greedy(task(), verify=10)
        assert (found.forwards, found.backwards) == (1 + 1 + 10, 1)

    def test_relaxed(self):
        found = relaxed(task(), steps=400)
        assert found.amount[3] > 0.9 and found.amount[[0, 1, 2, 4, 5, 6, 8]].max() < 0.05
        assert (found.sources.argmax(1) == 4).all(), "all would take the strongest cell"
        assert found.swaps.pairs == ((3, 4),) and found.swaps.flipped
        more = relaxed(task(), sparse=0.3, steps=400)
        assert more.amount.topk(2).indices.tolist() == [3, 7], "a smaller price: the second cell as well"
        assert len({j for _, j in more.swaps.pairs}) == len(more.swaps.pairs), "sources are used once"

    def test_random_swaps_need_more(self):
        lengths = [len(random_swaps(task(), torch.Generator().manual_seed(seed)).pairs) for seed in range(50)]
        assert np.mean(lengths) > 3

    def test_cells_are_used_once_and_the_search_ends(self):
        stubborn = task(logits=lambda tokens: torch.stack([tokens[..., 1].mean(-1), tokens[..., 0].mean(-1) - 9], 1))
        found = greedy(stubborn)
        assert not found.flipped and len(found.pairs) == 9
        assert all(len({pair[side] for pair in found.pairs}) == 9 for side in (0, 1))
        assert len(greedy(stubborn, most=2).pairs) == 2

    def test_a_decision_that_is_there_already(self):
        found = greedy(task(wanted=0))
        assert found.pairs == () and found.flipped and len(found.scores) == 1

    def test_likeness_forbids_and_prefers(self):
        likeness = torch.full((9, 9), -5.0, dtype=DOUBLE)
        likeness[3, 8] = likeness[7, 4] = 0.0  # only these two look alike
        found = greedy(task(), likeness=likeness, similar=2 / 81)
        assert set(found.pairs) <= {(3, 8), (7, 4)}
        free = greedy(task(), likeness=likeness, similar=1.0, weight=0.0)
        assert free.pairs == ((3, 4),)
        assert greedy(task(), likeness=likeness, similar=1.0, weight=50.0).pairs[0] in {(3, 8), (7, 4)}

    def test_several_distractors_side_by_side(self):
        grid = swap_grid()
        found = greedy(task(other=torch.cat([torch.zeros_like(grid.other), grid.other])))
        assert found.pairs == ((3, 13),)

    def test_zero_and_all_swaps(self):
        grid = swap_grid()
        none, full = in_order(task(), []), in_order(task(), [(i, i) for i in range(9)])
        assert none.scores[0] == pytest.approx(float(grid.logits(grid.query[None]).log_softmax(-1)[0, 1]))
        assert full.flipped

    def test_bad_settings(self):
        for asked in (dict(similar=0.0), dict(weight=-1.0), dict(verify=0)):
            with pytest.raises(OutOfRange, match="a share above 0"):
                greedy(task(), **asked)
        with pytest.raises(OutOfRange, match="none may be negative"):
            relaxed(task(), steps=0)
        with pytest.raises(OutOfRange, match=r"tau=0\.0"):
            similarity(torch.ones(2, 3), torch.ones(2, 3), tau=0.0)
        with pytest.raises(ShapeMismatch, match=r"got \[9, 6\] and \[9, 9, 2\]"):
            task(other=torch.zeros(9, 2))

    def test_similarity_by_hand(self):
        found = similarity(torch.eye(2), 5 * torch.eye(2), tau=1.0)
        assert found.exp()[0].tolist() == pytest.approx([np.e / (np.e + 1), 1 / (np.e + 1)])


class TestPlace:
    @pytest.mark.parametrize("layer", [0, 1])
    def test_no_swap_is_the_query(self, model, images, layer):
        place = _Place(model, layer, (12, 12), 64)
        one = place.task(images[0][0], images[1][0], 0)
        testing.assert_close(one.logits(one.query[None]), model.run(images[0][:1]).logits, 1e-12, "no swap")

    def test_before_block_0_content_moves_and_position_does_not(self, model, images):
        """A swap is the same as moving pixels; swapped tokens as they are would move positions too."""
        place = _Place(model, 0, (12, 12), 64)
        one = place.task(images[0][0], images[1][0], 0)
        moved = images[0][0].clone()
        moved[:, 8:12, 4:8] = images[1][0][:, 0:4, 8:12]  # patch 7 of the query is patch 2 of the other
        truth = model.run(moved[None]).logits
        testing.assert_close(one.logits(one.swapped(one.query, torch.tensor([[7, 2]]))), truth, 1e-12, "pixels")
        with torch.no_grad():
            whole = torch.cat([model.parts.embed(images[0][:1]), model.parts.embed(images[1][:1])])
        whole[0, 1 + 7] = whole[1, 1 + 2]
        from mechvis.attribution.tail import tail

        assert not torch.allclose(tail(model, whole[:1], 0, (12, 12)), truth, atol=1e-3)

    def test_the_full_swap_at_the_start_is_the_other_image(self, model, images):
        place = _Place(model, 0, (12, 12), 64)
        found = place.whole(images[0][0], images[1][0])
        testing.assert_close(found.logprobs, model.run(images[1][:1]).logits[0].log_softmax(-1), 1e-12, "all swaps")


class TestPatchSwaps:
    def test_on_a_model(self, model, images, tmp_path):
        found = patch_swaps(model, *images, layer=0, likeness=None, progress=False)
        table = found.table
        assert table["valid"].all() and table["flipped"].all()
        assert (table["swaps"] <= table["random_swaps"]).all() and found.facts["fewer_than_random"] > 0
        assert (table["p_after"] > table["p_before"]).all()
        assert found.tables["swaps"].group_by("image").len()["len"].sum() == table["swaps"].sum()
        # The swaps, done in pixels, do what the table says.
        for row in table.iter_rows(named=True):
            pixels = rearrange(images[0][row["image"]], "c (d h) (a w) -> (d a) c h w", d=3, a=3).clone()
            source = rearrange(images[1][row["image"]], "c (d h) (a w) -> (d a) c h w", d=3, a=3)
            for i, j in found.of(row["image"]):
                pixels[i] = source[j]
            logits = model.run(rearrange(pixels, "(d a) c h w -> 1 c (d h) (a w)", d=3)).logits
            wanted = int(model.run(images[1][row["image"]][None]).logits.argmax())
            assert int(logits.argmax()) == wanted
            assert float(logits.softmax(-1)[0, wanted]) == pytest.approx(row["p_after"], abs=1e-9)
        again = PatchSwaps.load(found.save(tmp_path / "swaps"))
        assert again.table.equals(table) and again.of(0) == found.of(0)
        picture = np.zeros((12, 12, 3), np.uint8)
        assert len(again.plot(picture, picture, 0).axes) == 2
        with pytest.raises(OutOfRange, match="no pair 99"):
            found.of(99)

    def test_searches_and_likeness(self, model, images):
        few = [some[:2] for some in images]
        ask = dict(progress=False, randoms=2)
        exact = patch_swaps(model, *few, search="exact", layer=0, likeness=None, **ask)
        screened = patch_swaps(model, *few, search="screened", layer=0, likeness=None, verify=81, **ask)
        assert screened.tables["swaps"].equals(exact.tables["swaps"]), "all pairs verified: the same"
        assert patch_swaps(model, *few, search="relaxed", layer=0, **ask).table["swaps"].min() >= 1
        alike = patch_swaps(model, *few, **ask)
        assert alike.facts["layer"] == 1
        other = mechvis.load(testing.tiny("dinov2", dtype=DOUBLE), preprocess=testing.tiny_preprocess())
        assert len(patch_swaps(model, *few, likeness=other, layer=0, **ask).table) == 2

    def test_pairs_do_not_see_each_other(self, model, images):
        ask = dict(layer=1, progress=False, likeness=None)
        all_four = patch_swaps(model, *images, **ask)
        first = patch_swaps(model, *(some[:1] for some in images), batch_size=7, **ask)
        assert first.of(0) == all_four.of(0)
        assert first.table["random_swaps"][0] == all_four.table["random_swaps"][0]

    def test_bad_input(self, model, images):
        with pytest.raises(BadData, match="the model says the same of both images in every pair"):
            patch_swaps(model, images[0], images[0], progress=False)
        with pytest.raises(ShapeMismatch, match="4 images and 2 others"):
            patch_swaps(model, images[0], images[1][:2], progress=False)
        with pytest.raises(UnknownName, match="unknown search 'best'"):
            patch_swaps(model, *images, search="best", progress=False)
        with pytest.raises(UnknownName, match="unknown likeness 'dino'"):
            patch_swaps(model, *images, likeness="dino", progress=False)
        with pytest.raises(OutOfRange, match="layer=3: blocks are 0 to 2"):
            patch_swaps(model, *images, layer=3, progress=False)


class TestFigure:
    def test_frames_and_lines(self):
        image = np.zeros((12, 12, 3), np.uint8)
        figure = draw(image, image, [(0, 8), (4, 4)], grid=(3, 3), title="two $ swaps")
        frames = [[patch.get_xy() for patch in axes.patches] for axes in figure.axes]
        assert frames == [[(-0.5, -0.5), (3.5, 3.5)], [(7.5, 7.5), (3.5, 3.5)]]
        assert len(figure.artists) == 2
        assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]
        figure.canvas.draw()

    def test_bad_input(self):
        image = np.zeros((12, 12, 3), np.uint8)
        with pytest.raises(OutOfRange, match=r"the swap \(0, 9\) is outside the 3 x 3 patches"):
            draw(image, image, [(0, 9)], grid=(3, 3))
        with pytest.raises(BadImages):
            draw(image.astype(float), image, [], grid=(3, 3))
        with pytest.raises(ShapeMismatch, match="at least one each"):
            draw(image, image, [], grid=(0, 3))
