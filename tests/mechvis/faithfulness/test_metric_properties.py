"""What must hold for any map and any game: bounds, symmetries, and that nothing depends on what was asked before."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from mechvis.faithfulness import (
    Abpc,
    Answers,
    Auroc,
    AveragePrecision,
    Deletion,
    EffectiveComplexity,
    Entropy,
    FunctionGame,
    Insertion,
    MuFidelity,
    NInf,
    PointingGame,
    RankAccuracy,
    RelevanceMass,
    SaCo,
    Sparseness,
    additive,
    variance_shares,
)
from mechvis.faithfulness.complexity import gini
from mechvis.faithfulness.orders import counts_of, descending
from mechvis.faithfulness.subsets import size_of, spearman, subsets
from mechvis.stats import benjamini_hochberg, benjamini_yekutieli, max_statistic_p

NUMBERS = st.floats(-100, 100, allow_nan=False, width=32)
MAPS = arrays(np.float64, (3, 6), elements=NUMBERS)
MASKS = arrays(bool, (3, 4, 6))


def game(seed):
    """A game with pairs; image i is example i."""
    pairs = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(seed)).double()
    return FunctionGame(function=lambda m: torch.einsum("irp,ipq,irq->ir", m, pairs, m), grid=(2, 3))


@given(MAPS, st.integers(0, 50))
def test_insertion_less_deletion_is_abpc_and_sign_turns_it(maps, seed):
    answers, maps = Answers(game(seed)), torch.from_numpy(maps)
    abpc = Abpc().measure(maps, answers).values
    np.testing.assert_allclose(
        abpc, Insertion().measure(maps, answers).values - Deletion().measure(maps, answers).values, atol=1e-9
    )
    distinct = [len(set(row.tolist())) == 6 for row in maps]
    turned = Abpc().measure(-maps, answers).values
    np.testing.assert_allclose(abpc[distinct], -turned[distinct], atol=1e-9)


@given(MAPS, st.integers(0, 50))
def test_coefficients_stay_in_their_bounds(maps, seed):
    answers, maps = Answers(game(seed)), torch.from_numpy(maps)
    for one, low, high in ((SaCo(), -1, 1), (NInf(n=20), 0, 1), (MuFidelity(n=20), -1, 1)):
        found = one.measure(maps, answers)
        known = found.values[~np.isnan(found.values)]
        assert (known >= low - 1e-9).all() and (known <= high + 1e-9).all()
        assert found.excluded == sum(found.reasons.values())


@given(MAPS, MAPS)
def test_orders_alone_decide_what_says_so(maps, other):
    """Deletion of a map and of any rising function of it is the same (without ties)."""
    maps = torch.from_numpy(maps)
    if any(len(set(row.tolist())) < 6 for row in maps):
        return
    answers = Answers(additive(torch.from_numpy(other), (2, 3)))
    ranks = maps.argsort(1).argsort(1).double()
    np.testing.assert_array_equal(Deletion().measure(maps, answers).values, Deletion().measure(ranks, answers).values)


@given(arrays(np.float64, (3, 6), elements=st.floats(0.5, 100, width=32)), st.integers(0, 20))
def test_perfect_maps_are_perfect(weights, seed):
    weights = torch.from_numpy(weights)
    answers = Answers(FunctionGame(function=additive(weights).function, grid=(2, 3), seed=seed))
    assert NInf(n=20).measure(weights, answers).values.max() < 1e-9
    assert np.nanmin(np.append(SaCo(groups=6).measure(weights, answers).values, 1)) == pytest.approx(1)
    assert np.nanmin(np.append(MuFidelity(n=20).measure(weights, answers).values, 1)) == pytest.approx(1)


@given(MAPS, MASKS)
def test_localisation_is_a_share_and_auroc_turns_with_the_sign(maps, masks):
    maps, masks = torch.from_numpy(maps), torch.from_numpy(masks)
    for one in (PointingGame(), RelevanceMass(), RankAccuracy(), Auroc(), AveragePrecision()):
        found = one.measure(maps, masks, (2, 3))
        known = found.values[~np.isnan(found.values)]
        assert ((known >= -1e-12) & (known <= 1 + 1e-12)).all()
        assert found.excluded == sum(found.reasons.values())
    up, down = (Auroc().measure(sign * maps, masks, (2, 3)).values for sign in (1, -1))
    np.testing.assert_allclose(up + down, np.where(np.isnan(up), np.nan, 1.0))


@given(MAPS)
def test_shapes_of_maps(maps):
    maps = torch.from_numpy(maps)
    zero = (maps == 0).all(1).numpy()
    sparse, bits, count = (kind().measure(maps).values for kind in (Sparseness, Entropy, EffectiveComplexity))
    for values, low, high in ((sparse, 0, 5 / 6), (bits, 0, math.log(6)), (count, 1, 6)):
        assert (np.isnan(values) == zero).all()
        assert ((values[~zero] >= low - 1e-9) & (values[~zero] <= high + 1e-9)).all()


@given(arrays(np.float64, 7, elements=st.floats(0.25, 100, width=32)))
def test_gini_is_half_the_mean_difference(values):
    """The other definition: mean |a - b| over all pairs, over twice the mean."""
    pairs = np.abs(values[:, None] - values[None]).mean()
    assert gini(torch.from_numpy(values)[None]).item() == pytest.approx(pairs / (2 * values.mean()), abs=1e-9)


@given(arrays(np.int64, (2, 9), elements=st.integers(0, 4)), arrays(np.int64, (2, 9), elements=st.integers(0, 4)))
def test_rank_correlation_is_scipys(a, b):
    ours = spearman(torch.from_numpy(a).double(), torch.from_numpy(b).double())
    for image in range(2):
        if np.ptp(a[image]) and np.ptp(b[image]):
            assert ours[image].item() == pytest.approx(spearmanr(a[image], b[image]).statistic, abs=1e-12)
        else:
            assert ours[image].isnan()


@given(st.integers(1, 300), st.integers(1, 100))
def test_counts(n, steps):
    counts = counts_of(n, steps)
    assert counts[0] == 0 and counts[-1] == n and counts == sorted({n - count for count in counts})


@given(st.integers(2, 400), st.floats(0.001, 0.999))
def test_sizes(n, share):
    assert 1 <= size_of(share, n) <= n - 1 and abs(size_of(share, n) - share * n) <= 1


@given(MAPS)
def test_orders_are_orders(maps):
    answers = Answers(game(0))
    order = descending(torch.from_numpy(maps), answers)
    assert (order.sort(1).values == torch.arange(6)).all()
    assert (torch.from_numpy(maps).gather(1, order).diff(dim=1) <= 0).all()


@given(arrays(bool, (3, 5, 6)), arrays(bool, (3, 4, 6)), st.integers(0, 50))
def test_answers_do_not_depend_on_what_was_asked_before(first, second, seed):
    answers = Answers(game(seed))
    answers.scores(torch.from_numpy(first))
    again = answers.scores(torch.from_numpy(second))
    torch.testing.assert_close(again, game(seed).scores(torch.from_numpy(second)))


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 5))
def test_sets_leave_something_in_and_something_out(p, n, seed):
    answers = Answers(FunctionGame(function=lambda m: m.sum(-1), grid=(1, p), seed=seed))
    sizes = subsets(answers, 2, n, None).sum(2)
    assert sizes.min() >= 1 and sizes.max() <= p - 1


@given(arrays(np.float64, (3, 2, 5), elements=NUMBERS))
def test_shares_add_up(values):
    total = sum(variance_shares(values).values())
    assert total == pytest.approx(1) or total == 0


@given(arrays(np.float64, 12, elements=st.floats(0, 1)))
def test_the_cautious_correction_is_never_below_the_other(p):
    assert (benjamini_yekutieli(p) >= benjamini_hochberg(p) - 1e-12).all()
    assert (benjamini_yekutieli(p) <= 1).all()


@given(arrays(np.float64, (3, 6), elements=NUMBERS))
def test_p_of_the_largest_statistic_is_a_p(values):
    found = max_statistic_p(values, flips=19)
    assert ((found >= 1 / 20) & (found <= 1)).all()
    np.testing.assert_array_equal(found, max_statistic_p(-values, flips=19))
