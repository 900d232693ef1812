"""Each mask is asked once; orders are fair; presets say every setting; all metrics of a list share their questions."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName
from mechvis.faithfulness import (
    PRESETS,
    Abpc,
    Answers,
    Deletion,
    FunctionGame,
    Insertion,
    Measured,
    MuFidelity,
    PointingGame,
    SaCo,
    Sparseness,
    additive,
    curves,
    measure,
    metric,
    preset,
    titles_of,
)
from mechvis.faithfulness.metric import GameMetric, measured
from mechvis.faithfulness.orders import counts_of, descending, kept_first, removed_first
from mechvis.removal import Blur
from mechvis.target import Target


class Counting:
    """A game that counts rows and has two classes."""

    def __init__(self, n=3, contrast=True):
        self.rows, self.n_patches, self.grid, self.seed = 0, 6, (2, 3), 0
        self.ids = list(range(n))
        self.weights = torch.rand(n, 6, generator=torch.Generator().manual_seed(0)).double()
        classes = torch.zeros(n, dtype=torch.long)
        self.target = (
            Target(classes=classes, contrast=classes + 1, form="logit_diff") if contrast else Target(classes=classes)
        )

    def outputs(self, masks):
        self.rows += masks.shape[0] * masks.shape[1]
        first = torch.einsum("ip,irp->ir", self.weights, masks.double())
        return torch.stack([first, 1 - first], -1)

    def scores(self, masks, target=None):
        raise AssertionError("several forms come from outputs")


def test_a_mask_is_asked_once_whatever_is_read():
    game = Counting()
    answers = Answers(game)
    masks = (torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5).bool()
    masks[:, 4] = masks[:, 0]
    masks[:, 1] = ~masks[:, 0]
    difference = answers.scores(masks)
    asked = game.rows
    assert asked <= 3 * 4, "a repeated mask was asked again"
    prob, again = answers.scores(masks.float(), "prob"), answers.scores(masks, "logit")
    assert game.rows == asked
    torch.testing.assert_close(difference, 2 * again - 1)
    torch.testing.assert_close(prob, torch.sigmoid(difference))
    assert torch.equal(answers.right(masks).bool(), difference > 0)
    more = torch.cat([masks, torch.ones(3, 1, 6).bool()], 1)
    assert torch.equal(answers.scores(more)[:, :5], difference) and game.rows <= asked + 3


def test_images_with_different_numbers_of_new_masks():
    answers = Answers(Counting(n=2))
    first = torch.stack([torch.eye(6), torch.ones(6, 6)])
    plain = Answers(Counting(n=2)).scores(torch.eye(6).expand(2, -1, -1))
    answers.scores(first)
    assert torch.equal(answers.scores(torch.eye(6).expand(2, -1, -1)), plain)


def test_forms_that_a_game_does_not_have():
    with pytest.raises(BadData, match="a contrast gives logit_diff"):
        Answers(Counting(contrast=False)).full(3, "logit_diff")
    with pytest.raises(BadData, match="it is a plain function of masks"):
        Answers(additive(torch.ones(1, 2))).right(torch.ones(1, 1, 2))
    with pytest.raises(ShapeMismatch, match="with 6 patches"):
        Answers(Counting()).scores(torch.ones(3, 1, 5))
    with pytest.raises(ShapeMismatch, match="2 maps for the 3 images"):
        Answers(Counting()).ids(2)


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 32])
def test_counts_are_the_same_from_both_ends(n, steps):
    counts = counts_of(n, steps)
    assert counts[0] == 0 and counts[-1] == n and counts == sorted(set(counts))
    assert [n - count for count in reversed(counts)] == counts
    assert len(counts) <= min(steps, n) + 2


def test_ties_are_drawn_fairly_and_per_image():
    n = 3000
    answers = Answers(FunctionGame(function=lambda m: m.sum(-1), grid=(1, 4), ids=range(n)))
    order = descending(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double().expand(n, -1), answers)
    assert (order[:, 0] == 0).all()
    for place in (1, 2, 3):
        share = torch.bincount(order[:, place], minlength=4) / n
        assert share[0] == 0 and (share[1:] - 1 / 3).abs().max() < 0.03
    alone = Answers(FunctionGame(function=lambda m: m.sum(-1), grid=(1, 4), ids=[17]))
    assert torch.equal(descending(torch.tensor([[1.0, 0, 0, 0]]).double(), alone)[0], order[17])


def test_masks_of_an_order():
    order = torch.tensor([[2, 0, 1]])
    assert removed_first(order, [0, 2]).int().tolist() == [[[1, 1, 1], [0, 1, 0]]]
    assert kept_first(order, [0, 2]).int().tolist() == [[[0, 0, 0], [1, 0, 1]]]


def test_insertion_is_the_ascending_deletion_backwards():
    game = Counting(n=5)
    maps = torch.rand(5, 6, generator=torch.Generator().manual_seed(3))
    up, down = curves(maps, game, form="prob"), curves(-maps, game, form="prob")
    assert torch.equal(up.insertion.flip(1), down.deletion)
    a, b = (Abpc().measure(sign * maps, game).values for sign in (1, -1))
    np.testing.assert_allclose(a, -b, atol=1e-12)
    both = Insertion().measure(maps, game).values - Deletion().measure(maps, game).values
    np.testing.assert_allclose(a, both, atol=1e-12)


def test_normalised_curves_run_from_one_to_zero_and_count_what_is_undefined():
    weights = torch.tensor([[4.0, 2.0, 1.0, 0.0], [1.0, -1.0, 0.0, 0.0]])
    found = Abpc(normalise=True).measure(torch.tensor([[4.0, 3.0, 2.0, 1.0]]).expand(2, -1), additive(weights))
    assert found.values[0] == pytest.approx(3.25 / 7) and np.isnan(found.values[1])
    assert found.reasons == {"the score is the same with all patches and with none": 1}
    assert found.excluded == 1 and found.n == 1 and found.unreliable
    np.testing.assert_allclose(found.curves["deletion"][0], np.array([7, 3, 1, 0, 0]) / 7)
    assert np.isnan(found.curves["deletion"][1]).all()
    # The other order of aggregation: both sides summed first. Image 2 has span 0 and area 2 * 0.25 + ...
    top = found.extra["top"]
    assert found.ratio_of_means()[0] == pytest.approx(top.sum() / 7)


def test_normalised_deletion_starts_from_nothing():
    game = FunctionGame(function=lambda m: 10 + m[..., 0] * 4 + m[..., 1], grid=(1, 2))
    # 15, 11, 10 -> 1, 0.2, 0
    assert Deletion(normalise=True).measure(torch.tensor([[2.0, 1.0]]), game).values[0] == pytest.approx(0.35)
    found = Insertion(normalise=True).measure(torch.tensor([[2.0, 1.0]]), game)
    assert found.values[0] == pytest.approx((0 + 2 * 0.8 + 1) / 4)
    np.testing.assert_allclose(found.curves["deletion"], [[1.0, 0.2, 0.0]])
    np.testing.assert_allclose(found.curves["insertion"], [[0.0, 0.8, 1.0]])
    # A score that rises when patches go: the sign of the span stays in the ratio.
    falling = FunctionGame(function=lambda m: 10 - m[..., 0] * 4 - m[..., 1], grid=(1, 2))
    assert Deletion(normalise=True).measure(torch.tensor([[2.0, 1.0]]), falling).values[0] == pytest.approx(0.35)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_everything(name):
    chosen = preset(name)
    assert len({repr(one) for one in chosen}) == len(chosen) == len(set(titles_of(chosen)))
    removing = [one for one in chosen if isinstance(one, GameMetric)]
    if removing:
        assert len({one.operator for one in removing}) >= 2
        assert all(one.describe()["settings"]["order"] for one in removing)
    chosen.clear()
    assert preset(name), "a caller's list is his own"


def test_presets_are_frozen():
    """A preset never changes: a better one gets another version."""
    told = [f"{one.id} {sorted(one.settings().items(), key=str)}" for one in preset("smoke-v1")[:4]]
    assert told == [
        "abpc@1 [('epsilon', 0.001), ('form', None), ('normalise', False), ('operator', 'mean'), "
        "('order', 'mean_of_ratios'), ('steps', 8)]",
        "mu_fidelity@1 [('correlation', 'spearman'), ('form', None), ('n', 32), ('operator', 'mean'), "
        "('order', 'mean_of_ratios'), ('share', 0.2)]",
        "n_inf@1 [('form', None), ('n', 32), ('nonnegative', False), ('operator', 'mean'), "
        "('order', 'mean_of_ratios'), ('share', 0.2)]",
        "saco@1 [('form', None), ('groups', 8), ('operator', 'mean'), ('order', 'mean_of_ratios')]",
    ]
    with pytest.raises(UnknownName, match="Nearest: s"):
        preset("standard")


def test_measure_shares_questions():
    games = {name: Answers(Counting()) for name in ("mean", "blur")}
    maps = torch.rand(3, 6, generator=torch.Generator().manual_seed(3))
    found = measure(maps, games, "smoke-v1")
    assert list(found)[:2] == ["abpc/mean/steps=8", "mu_fidelity/mean/n=32"]
    rows = games["mean"].game.rows
    measure(maps, games, preset("smoke-v1"))
    assert games["mean"].game.rows == rows, "the same maps were asked again"
    alone = Abpc(steps=8).measure(maps, Counting())
    np.testing.assert_array_equal(found["abpc/mean/steps=8"].values, alone.values)


def test_measure_with_masks_and_without():
    maps = torch.rand(3, 6)
    found = measure(maps, lambda name: Counting(), [PointingGame(), Sparseness()], masks=torch.ones(3, 4, 6))
    assert list(found) == ["pointing_game", "sparseness"]
    with pytest.raises(BadData, match="give masks="):
        measure(maps, lambda name: Counting(), [PointingGame()])
    with pytest.raises(BadData, match="no game for the operator 'mean'; games: blur"):
        measure(maps, {"blur": Counting()}, [SaCo()])
    with pytest.raises(BadData, match="asks the method again"):
        measure(maps, lambda name: Counting(), [metric("mprt")()])
    with pytest.raises(BadData, match="saco/mean is in the list twice"):
        measure(maps, lambda name: Counting(), [SaCo(), SaCo()])


def test_a_game_with_another_operator_is_refused():
    class Blurred(Counting):
        operator = Blur()

    with pytest.raises(BadData, match="the game for 'mean' takes patches away by 'blur'"):
        measure(torch.rand(3, 6), {"mean": Blurred()}, [SaCo()])
    assert list(measure(torch.rand(3, 6), {"blur": Blurred()}, [SaCo(operator="blur")])) == ["saco/blur"]


def test_both_orders_of_aggregation():
    weights = torch.tensor([[4.0, 2.0, 1.0, 0.0], [8.0, 0.0, 0.0, 2.0]])
    maps = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).expand(2, -1)
    found = Abpc(normalise=True).measure(maps, additive(weights))
    first = Abpc(normalise=True).aggregate(found)[0]
    second = Abpc(normalise=True, order="ratio_of_means").aggregate(found)[0]
    assert first == pytest.approx(found.values.mean()) and second == pytest.approx(found.extra["top"].sum() / 17)
    assert abs(first - second) > 0.001
    with pytest.raises(OutOfRange, match="deletion is not a ratio"):
        Deletion(order="ratio_of_means").aggregate(Deletion().measure(maps, additive(weights)))
    with pytest.raises(UnknownName, match="unknown order"):
        Deletion(order="median").aggregate(found)


def test_values_that_cannot_be_are_refused():
    from mechvis.errors import NotFinite

    with pytest.raises(NotFinite, match="x of image 1 is nan for no known reason"):
        measured("x", torch.tensor([1.0, torch.nan]))
    found = measured("x", torch.tensor([1.0, torch.nan]), {"why": torch.tensor([False, True]), "more": [True, True]})
    assert found.reasons == {"why": 1, "more": 1} and found.excluded == 2
    with pytest.raises(OutOfRange, match="x is not a ratio per image"):
        found.ratio_of_means()


def test_unreliable_beyond_one_in_twenty():
    assert not Measured(name="x", values=np.array([np.nan] + [1.0] * 19)).unreliable
    assert Measured(name="x", values=np.array([np.nan] * 2 + [1.0] * 19)).unreliable
    assert Measured(name="x", values=np.array([np.nan])).unreliable


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Abpc(epsilon=0.0), "epsilon=0.0"),
        (Abpc(steps=0), "steps=0"),
        (MuFidelity(n=2), "n=2: a correlation needs at least 3 sets"),
        (MuFidelity(share=1.5), "share=1.5"),
        (MuFidelity(correlation="kendall"), "unknown correlation 'kendall'"),
        (metric("sensitivity_n")(shares=()), "no sizes"),
        (metric("sensitivity_n")(n=1), "n=1"),
        (metric("n_inf")(n=0), "0 sets per image"),
        (SaCo(groups=1), "groups=1: pairs need at least two"),
        (metric("pgi")(rate=0.0), "rate=0.0"),
        (metric("irof")(cells=0), "cells=0"),
        (metric("completeness_gap")(epsilon=-1.0), "epsilon=-1.0"),
        (metric("sign_agreement")(k=0), "k=0"),
        (metric("road_morf")(shares=(2.0,)), "shares="),
        (metric("positive_perturbation")(form="prob"), "form='prob' has no meaning"),
    ],
)
def test_settings_that_cannot_be(one, words):
    with pytest.raises((OutOfRange, UnknownName, BadData), match=words):
        one.measure(torch.rand(3, 6), Counting())


def test_maps_that_do_not_fit():
    with pytest.raises(ShapeMismatch, match="maps have 5 patches, the game has 6"):
        Abpc().measure(torch.rand(3, 5), Counting())
    with pytest.raises(ShapeMismatch, match="at least one of each"):
        Abpc().measure(torch.rand(3, 2, 3), Counting())
