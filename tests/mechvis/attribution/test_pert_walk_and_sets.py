"""MHE against the exact stationary mean; H-Sets on games of pairs; Harsanyi dividends by hand."""

import itertools

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.attribution import HSets, InteractionSets, Mhe, attribute, interaction_sets, pnn
from mechvis.attribution.methods.h_sets import dividends, grow, search, set_dividends
from mechvis.attribution.methods.mhe import walk
from mechvis.attribution.methods.shapley import all_masks, exact
from mechvis.attribution.question import Question
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.target import target_of
from mechvis.testing.patch_game import PatchGame

DOUBLE = torch.float64


def draws(n=1, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def wired():
    bare = testing.hand_wired_vit(dtype=DOUBLE)
    with torch.no_grad():
        bare.classifier.weight.mul_(10)
    return mechvis.load(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", dtype=DOUBLE)


class TestWalk:
    def test_its_mean_is_that_of_the_distribution(self):
        """Without the rule for small areas, masks come in proportion to `e^-d`: all 16 masks are enumerated."""

        def away(masks):
            return 2 * (1 - masks[..., 0].double()) + 0.7 * masks[..., 3].double()

        masks = all_masks(4)
        chance = (-away(masks)).exp()
        weight = chance * (1 - away(masks)).clamp(min=0)
        truth = (weight[:, None] * masks).sum(0) / weight.sum()
        kept, accepted = walk(away, draws(100), 4, iterations=2500, near=0.0)
        assert kept.mean(0).numpy() == pytest.approx(truth.numpy(), abs=0.02)
        assert ((accepted > 0.1) & (accepted < 1)).all()

    def test_positive_negative_and_neutral_cells_of_an_additive_score(self):
        weight = torch.zeros(64, dtype=DOUBLE)
        weight[[9, 10, 17, 18]], weight[[45, 46]] = 1.5, -1.5

        def probability(masks):
            return torch.sigmoid(masks.double() @ weight)

        clean = probability(torch.ones(64))
        either, _ = walk(lambda m: (probability(m) - clean).abs(), draws(4), 64, iterations=4000)
        fall, _ = walk(lambda m: (clean - probability(m)).clamp(min=0), draws(4), 64, iterations=4000)
        positive, negative, neutral = weight > 0, weight < 0, weight == 0
        for kept in (either, fall):
            assert (kept[:, positive].mean(1) > kept[:, neutral].mean(1) + 0.04).all()
        assert (fall[:, negative].mean(1) < fall[:, neutral].mean(1)).all()

    def test_dissimilarity_beyond_one_is_clamped(self):
        kept, _ = walk(lambda m: 5 * (1 - m[..., 0].double()), draws(), 3, iterations=200)
        assert torch.isfinite(kept).all() and kept[0, 0] == kept.max()

    def test_a_constant_output_leaves_only_the_area(self):
        kept, _ = walk(lambda m: 0.0 * m[..., 0].double(), draws(), 9, iterations=300)
        assert torch.isfinite(kept).all() and kept.max() < 0.2

    @pytest.mark.parametrize("asked", [dict(iterations=0), dict(beta=0.0), dict(beta=0.99), dict(most=1.0)])
    def test_bad_settings(self, asked):
        with pytest.raises(OutOfRange, match="0 < beta <= most < 1"):
            walk(lambda m: m.sum(-1), draws(), 3, **({"iterations": 3} | asked))


class TestMhe:
    def test_the_patch_that_is_read_and_cost(self, wired):
        images = testing.hand_wired_images(3, dtype=DOUBLE)[0] * 0.5 + 0.5
        for positives in (False, True):
            method = Mhe(operator="zero", iterations=150, positives=positives)
            found = attribute(wired, images, method, target=0, progress=False)
            assert (found.maps.reshape(3, 9).argmax(1) == 4).all()
            assert found.facts["forwards"] == 3 * (150 + 1 + 1)

    def test_scales_are_averaged(self, model, pixels):
        both = attribute(model, pixels, Mhe(iterations=20, scales=(2, 3)), target=0, progress=False).maps
        each = [
            attribute(model, pixels, Mhe(iterations=20, scales=(side,)), target=0, progress=False).maps
            for side in (2, 3)
        ]
        assert both == pytest.approx((each[0] + each[1]) / 2, abs=1e-6)
        finer = attribute(model, pixels, Mhe(iterations=20, scales=(3, 8)), target=0, progress=False)
        assert finer.facts["forwards"] == 3 * (20 + 1 + 1), "a grid finer than the patches is walked once"

    def test_bad_scales(self, model, pixels):
        with pytest.raises(OutOfRange, match=r"scales=\(\)"):
            attribute(model, pixels, Mhe(scales=()), target=0, progress=False)


class TestPnn:
    def test_by_hand(self):
        game = PatchGame(score=lambda m: m[..., 0] - m[..., 1] + 0.5 * m[..., 2])
        right = torch.tensor([[1.0, 0, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]])
        assert pnn(game, right).tolist() == [1 + 1 - 0.5]
        assert pnn(game, 1 - right).item() < 0, "signs turned round"
        assert pnn(game, torch.zeros(1, 9)).tolist() == [-0.5], "a flat map is all negative, and the score falls"

    def test_bad_input(self):
        with pytest.raises(OutOfRange, match=r"low=0.6, high=0.5"):
            pnn(PatchGame(), torch.zeros(1, 9), low=0.6)
        with pytest.raises(ShapeMismatch, match=r"over 9 patches, got \[1, 4\]"):
            pnn(PatchGame(), torch.zeros(1, 4))


class TestDividends:
    def test_two_three_five(self):
        assert dividends(torch.tensor([[0.0, 2, 3, 10]])).tolist() == [[0, 2, 3, 5]]

    def test_against_the_definition_and_shapley(self):
        values = torch.randn(1, 16, generator=draws()[0], dtype=DOUBLE)
        masks = all_masks(4).tolist()
        by_hand = []
        for big in masks:
            members = [i for i in range(4) if big[i]]
            total = 0.0
            for count in range(len(members) + 1):
                for some in itertools.combinations(members, count):
                    total += (-1) ** (len(members) - count) * float(values[0, sum(2**i for i in some)])
            by_hand.append(total)
        found = dividends(values)[0]
        assert found.numpy() == pytest.approx(by_hand, abs=1e-12)
        power = torch.tensor([1, 2, 4, 8])
        game = PatchGame(grid=(2, 2), score=lambda m: values[0][(m.long() * power).sum(-1)])
        shares = torch.tensor(
            [float((found / all_masks(4).sum(1).clamp(min=1))[all_masks(4)[:, i]].sum()) for i in range(4)]
        )
        assert shares.numpy() == pytest.approx(exact(game)[0].numpy(), abs=1e-6)

    def test_of_sets_in_a_game(self):
        sets = torch.zeros(1, 3, 9, dtype=torch.bool)
        sets[0, 0, [2, 3, 0]] = True
        sets[0, 1, 1] = True
        found = set_dividends(PatchGame(), sets, 3)[0]
        assert found[0].tolist() == [0, 2, 0, 0, 0, 0, 3, 0], "patches 0, 2, 3: 2 alone, 3 by the last two"
        assert found[1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
        assert not found[2].any()

    def test_sets_that_are_too_large(self):
        with pytest.raises(OutOfRange, match=r"size=9: between 1 and 8"):
            set_dividends(PatchGame(), torch.ones(1, 1, 9, dtype=torch.bool), 9)


class TestGrow:
    def test_sets_do_not_overlap_and_stop(self):
        both = torch.zeros(6, 6)
        for one, other, strength in ((0, 1, 1.0), (1, 2, 0.8), (2, 3, 0.6), (4, 5, 0.3)):
            both[one, other] = both[other, one] = -strength
        shares = torch.tensor([3.0, 0, 0, 0, -2.0, 0])
        found = grow(shares, both, n_sets=2, size=3, mu=0.5)
        assert found.int().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
        assert not grow(shares, 0 * both, n_sets=8, size=3, mu=0.5)[6:].any(), "no patch is left"


class TestHSets:
    def question(self, model, pixels):
        return Question(
            model=model,
            pixels=pixels,
            target=target_of(model, model.run(pixels).logits, target=2),
            ids=torch.arange(len(pixels)),
        )

    def test_hessian_against_automatic_second_derivatives(self, model, pixels):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import pad

        from mechvis.attribution.tail import tail

        ask = self.question(model, pixels[:1])
        found = search(HSets(step=1e-4, path=64), ask)
        stream = model.run(pixels[:1], capture=["hook_embed"]).cache["hook_embed"].detach()
        nothing = ask.parts.embed(pixels[:1].mean((2, 3), keepdim=True).expand_as(pixels[:1]).contiguous()).detach()

        def score(mask):
            mixed = torch.lerp(nothing, stream, pad(mask[None], (1, 0), value=1.0)[..., None])
            return tail(model, mixed, 0, (12, 12))[0, 2]

        with sdpa_kernel(SDPBackend.MATH):
            truth = torch.autograd.functional.hessian(score, torch.ones(9, dtype=DOUBLE))
        testing.assert_close(found.interactions[0], truth, 1e-3, "Hessian")
        gap = score(torch.ones(9, dtype=DOUBLE)) - score(torch.zeros(9, dtype=DOUBLE))
        assert float(found.shares[0].sum()) == pytest.approx(gap.item(), rel=1e-2), "integrated gradients are complete"

    def test_map_is_alone_plus_shares(self, model, pixels):
        ask = self.question(model, pixels)
        method = HSets(size=2, n_sets=2, mu=0.0)
        found = search(method, ask)
        values = method.maps(ask).values
        for image in range(3):
            by_hand = found.alone[image].double().clone()
            for one, worth in zip(found.sets[image], found.dividends[image], strict=True):
                by_hand[one] += worth[3] / 2
            assert values[image].numpy() == pytest.approx(by_hand.numpy(), abs=1e-9)

    def test_record(self, model, pixels, tmp_path):
        found = interaction_sets(model, pixels, HSets(size=3, mu=0.2), target=2, progress=False)
        table = found.table
        assert set(table["image"]) <= {0, 1, 2} and table["patches"].str.split(" ").list.len().min() >= 2
        pairs = table.filter(table["patches"].str.split(" ").list.len() == 2)
        assert (pairs["value"] - pairs["alone"]).to_numpy() == pytest.approx(pairs["dividend"].to_numpy(), abs=1e-9)
        assert InteractionSets.load(found.save(tmp_path / "sets")).table.equals(table)
        assert found.arrays["sets"].shape == (3, 5, 3, 3)
        assert found.arrays["interactions"] == pytest.approx(np.swapaxes(found.arrays["interactions"], 1, 2))
        with pytest.raises(BadData, match="no two patches interact"):
            interaction_sets(model, pixels, HSets(size=1), target=2, progress=False)

    @pytest.mark.parametrize(
        "asked, said", [(dict(size=9), "size=9"), (dict(mu=2.0), r"mu=2\.0"), (dict(step=0.0), r"step=0\.0")]
    )
    def test_bad_settings(self, model, pixels, asked, said):
        with pytest.raises(OutOfRange, match=said):
            attribute(model, pixels, HSets(**asked), target=2, progress=False)
