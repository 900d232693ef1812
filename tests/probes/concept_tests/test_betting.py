"""The betting engine: payoffs that flip their sign, wealth by hand, known levels and powers, and what breaks them."""

import numpy as np
import pytest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.concept_tests.betting import Widths, bet, e_bh, e_bh_greedy
from probes.concept_tests.betting.kernels import Kernel, gaussian
from probes.concept_tests.betting.payoffs import Conditional, Global, Local, global_gain
from probes.concept_tests.betting.wealth import NEWTON, Bets, squashed

PLAIN = Widths(growth=1, points=None)


def pairs(rho, runs, steps, seed):
    """Standard normal pairs of a given correlation."""
    generator = np.random.default_rng(seed)
    y = generator.normal(size=(runs, 2 * steps, 1))
    return y, rho * y + np.sqrt(1 - rho**2) * generator.normal(size=y.shape)


class Tossed:
    """A game with given payoffs."""

    def __init__(self, gains):
        self.gains, self.steps = gains, gains.shape[1]

    def gain(self, step):
        return self.gains[:, step]

    def keep(self, runs):
        self.gains = self.gains[runs]


# the specification's numbers


@pytest.fixture(scope="module")
def table():
    """120 runs of at most 200 steps for each correlation."""
    return {rho: bet(Global(*pairs(rho, 120, 200, 1), Widths()), 120) for rho in (0.0, 0.3, 0.6, 0.9)}


def test_independent_variables_are_rarely_rejected(table):
    """Type I error .008 in the specification; at most .05, and 120 runs have a standard error of .02 there."""
    assert table[0.0].rejected.mean() <= 0.05
    assert 0 <= table[0.0].importance < 0.05


@pytest.mark.parametrize("rho,power,tau", [(0.3, 0.83, 121), (0.6, 1.0, 42), (0.9, 1.0, 23)])
def test_power_and_median_time(table, rho, power, tau):
    found = table[rho]
    assert found.rejected.mean() == pytest.approx(power, abs=0.1)
    assert np.median(found.tau) == pytest.approx(tau, rel=0.2)


@pytest.mark.slow
def test_the_full_table():
    """More runs, and the plain rule for widths, over 200 steps."""
    for seed in (2, 3):
        nothing = bet(Global(*pairs(0.0, 240, 200, seed), Widths()), 240)
        assert nothing.rejected.mean() <= 0.05
    plain = {rho: bet(Global(*pairs(rho, 60, 200, 4), PLAIN), 60) for rho in (0.3, 0.6, 0.9)}
    assert plain[0.3].rejected.mean() == pytest.approx(0.83, abs=0.12)
    assert [np.median(plain[rho].tau) for rho in plain] == pytest.approx([121, 42, 23], rel=0.2)


def test_samples_that_are_used_again_inflate_the_error():
    """The control: the same twenty pairs over and over look like dependence."""
    y, z = pairs(0.0, 60, 20, 3)
    again = bet(Global(np.tile(y, (1, 10, 1)), np.tile(z, (1, 10, 1)), Widths()), 60)
    assert again.rejected.mean() > 0.3


def test_dependence_without_correlation_is_seen():
    generator = np.random.default_rng(0)
    y = generator.normal(size=(20, 400, 1))
    found = bet(Global(y, y**2 + 0.1 * generator.normal(size=y.shape), Widths()), 20)
    assert found.rejected.mean() == 1.0


# payoffs


def test_the_fast_payoff_is_the_witness_written_out():
    y, z = pairs(0.5, 3, 12, 5)
    game = Global(y, z, PLAIN)
    for step in range(12):
        fast = game.gain(step)
        for run in range(3):
            widths = [PLAIN.of(v[run : run + 1, : 2 * step])[0] if step else 1.0 for v in (y, z)]
            assert fast[run] == pytest.approx(global_gain(y[run, :, 0], z[run, :, 0], step, *widths), abs=1e-14)


def test_payoffs_flip_their_sign_with_their_null_twin():
    generator = np.random.default_rng(0)
    y, z, drawn = (generator.normal(size=(4, 20, 1)) for _ in range(3))
    others = generator.normal(size=(4, 20, 3))

    def swapped(first, second, at):
        first, second = first.copy(), second.copy()
        first[:, at], second[:, at] = second[:, at].copy(), first[:, at].copy()
        return first, second

    one = Global(y, z, Widths()).gain(9)
    turned = z.copy()
    turned[:, [18, 19]] = turned[:, [19, 18]]
    np.testing.assert_allclose(Global(y, turned, Widths()).gain(9), -one, atol=1e-14)
    one = Conditional(y, z, drawn, others, Widths()).gain(19)
    np.testing.assert_allclose(Conditional(y, *swapped(z, drawn, 19), others, Widths()).gain(19), -one, atol=1e-14)
    one = Local(z, drawn, Widths()).gain(19)
    np.testing.assert_allclose(Local(*swapped(z, drawn, 19), Widths()).gain(19), -one, atol=1e-14)
    past = generator.normal(size=(15, 4))
    np.testing.assert_array_equal(squashed(-one, past), -squashed(one, past))
    assert np.abs(one).min() > 0


def test_conditional_and_local_by_hand():
    generator = np.random.default_rng(1)
    y, z, drawn, others = (generator.normal(size=(1, 6, 1)) for _ in range(4))
    widths = [PLAIN.of(points[:, :5])[0] for points in (y, z, others)]

    def k(a, b, width):
        return np.exp(-np.square(a - b) / (2 * width**2))

    def witness(score):
        total = 0.0
        for i in range(5):
            shared = k(y[0, 5, 0], y[0, i, 0], widths[0]) * k(others[0, 5, 0], others[0, i, 0], widths[2])
            total += shared * (k(score, z[0, i, 0], widths[1]) - k(score, drawn[0, i, 0], widths[1])) / 5
        return total

    by_hand = witness(z[0, 5, 0]) - witness(drawn[0, 5, 0])
    assert Conditional(y, z, drawn, others, PLAIN).gain(5)[0] == pytest.approx(by_hand, abs=1e-14)
    width = PLAIN.of(np.concatenate([z[:, :5], drawn[:, :5]], axis=1))[0]
    seen = [np.mean(k(a, z[0, :5, 0], width) - k(a, drawn[0, :5, 0], width)) for a in (z[0, 5, 0], drawn[0, 5, 0])]
    assert Local(z, drawn, PLAIN).gain(5)[0] == pytest.approx(seen[0] - seen[1], abs=1e-14)


@pytest.mark.parametrize("make", [
    lambda a, b: Global(a, b, Widths()),
    lambda a, b: Conditional(a, b, -b, np.concatenate([a, a**2], axis=2), Widths()),
    lambda a, b: Local(a, b, Widths()),
])  # fmt: skip
def test_the_future_does_not_matter(make):
    """Payoffs of the first steps are the same whatever comes later: nothing looks ahead."""
    y, z = pairs(0.5, 3, 20, 1)
    later_y, later_z = y.copy(), z.copy()
    later_y[:, 20:], later_z[:, 20:] = 9.0, -3.0
    first, other = make(y, z), make(later_y, later_z)
    for step in range(10):
        np.testing.assert_array_equal(first.gain(step), other.gain(step))


def test_side_by_side_is_one_by_one():
    y, z = pairs(0.4, 6, 80, 2)
    together = bet(Global(y, z, Widths()), 6)
    alone = [bet(Global(y[[run]], z[[run]], Widths()), 1) for run in range(6)]
    np.testing.assert_array_equal(together.tau, [int(one.tau[0]) for one in alone])
    np.testing.assert_allclose(together.wealth, [one.wealth[0] for one in alone], rtol=1e-12)


# kernels


def test_widths():
    past = np.array([[[0.0], [1.0], [3.0]], [[5.0], [5.0], [5.0]]])
    assert Widths(share=1.0).of(past).tolist() == [3.0, 1.0], "alike points have no distance"
    assert Widths(share=0.5).of(past)[0] == 2.0
    many = np.random.default_rng(0).normal(size=(1, 600, 2))
    assert Widths().of(many)[0] == pytest.approx(PLAIN.of(many)[0], rel=0.1)
    kernel = Kernel(Widths(growth=2, points=None))
    kernel(many[:, :1], many[:, :100])
    before = kernel.width
    kernel(many[:, :1], many[:, :199])
    assert kernel.width is before
    kernel(many[:, :1], many[:, :200])
    assert kernel.width is not before


def test_kernels_of_vectors():
    generator = np.random.default_rng(0)
    new, past = generator.normal(size=(2, 3, 4)), generator.normal(size=(2, 5, 4))
    by_hand = np.exp(-np.square(new[:, :, None] - past[:, None]).sum(3) / (2 * np.array([1.0, 4.0]))[:, None, None])
    np.testing.assert_allclose(gaussian(new, past, np.array([1.0, 2.0])), by_hand, atol=1e-12)
    np.testing.assert_allclose(gaussian(new[..., :1], past[..., :1], np.ones(2)).shape, (2, 3, 5))


# wealth


def test_wealth_by_hand():
    bets = Bets(1)
    assert bets.settle(np.array([0.8]))[0] == 1.0, "the first bet is nothing"
    share = min(0.5, NEWTON * 0.8 / (1 + 0.64))
    assert bets.share[0] == share == 0.5
    assert bets.settle(np.array([-0.6]))[0] == pytest.approx(1 - 0.3)
    slope = -0.6 / 0.7
    assert bets.share[0] == pytest.approx(np.clip(0.5 + NEWTON * slope / (1 + 0.64 + slope**2), 0, 0.5))
    assert bets.wealth[0] == pytest.approx(0.7)


def test_squashing():
    gain = np.array([0.3, -2.0])
    np.testing.assert_array_equal(squashed(gain, np.zeros((1, 2))), np.tanh(gain))
    past = np.random.default_rng(0).normal(size=(50, 2))
    scale = np.quantile(past, 0.9, axis=0) - np.quantile(past, 0.1, axis=0)
    np.testing.assert_allclose(squashed(gain, past), np.tanh(gain / scale))
    np.testing.assert_array_equal(squashed(gain, np.ones((9, 2))), np.tanh(gain))
    tiny = np.array([0.0, 0.0, 1e-310])[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(squashed(gain, tiny), [1.0, -1.0])


def test_a_fair_game_is_hardly_ever_won():
    """Ville: wealth 1 / alpha is reached with probability at most alpha, and the mean wealth stays 1."""
    fair = np.random.default_rng(0).choice([-3.0, 3.0], size=(2000, 150))
    found = bet(Tossed(fair), 2000)
    assert found.rejected.mean() <= 0.05 and found.wealth.mean() == pytest.approx(1, abs=0.15)
    better = np.random.default_rng(0).choice([-3.0, 3.0], size=(50, 150), p=[0.2, 0.8])
    assert bet(Tossed(better), 50).rejected.mean() == 1


def test_runs_go_on_to_the_goal():
    winning = np.ones((2, 60))
    winning[1, 3:] = -1
    short, long = bet(Tossed(winning), 2), bet(Tossed(winning), 2, stop=1000.0)
    assert short.tau[0] == long.tau[0] and 20 <= short.wealth[0] < 1000 <= long.wealth[0]
    assert not long.rejected[1] and long.tau[1] == 60
    with pytest.raises(OutOfRange, match="stop=5 is below 1/alpha = 20"):
        bet(Tossed(winning), 2, stop=5)
    with pytest.raises(OutOfRange, match="alpha=1"):
        bet(Tossed(winning), 2, alpha=1)
    with pytest.raises(NotFinite, match="the payoff of step 3"):
        bet(Tossed(np.array([[0.1, 0.2, np.nan]])), 1)
    with pytest.raises(BadData, match="no step to bet on"):
        bet(Tossed(np.zeros((1, 0))), 1)


def test_settings_of_kernels():
    with pytest.raises(OutOfRange, match="share=0"):
        Widths(share=0)
    with pytest.raises(OutOfRange, match=r"growth=0\.5"):
        Widths(growth=0.5)
    with pytest.raises(OutOfRange, match="a distance needs two points"):
        Widths(points=1)
    with pytest.raises(ShapeMismatch, match=r"y and z are \[run point d\]"):
        Global(np.zeros((1, 4, 1)), np.zeros((1, 5, 1)), Widths())


# many at once


def test_e_bh_by_hand():
    e = np.array([100.0, 1.0, 50.0, 26.0])  # thresholds 80, 40, 26.7, 20
    assert e_bh(e).tolist() == [True, False, True, False]
    assert e_bh(np.array([100.0, 20.0, 50.0, 20.0])).tolist() == [True] * 4, "the last one counts"
    assert e_bh_greedy(np.array([100.0, 20.0, 50.0, 20.0])).tolist() == [True, False, True, False]
    assert not e_bh_greedy(np.array([79.0, 79.0, 79.0, 79.0])).any() and e_bh(np.full(4, 79.0)).all()
    assert e_bh(np.array([20.0]))[0] and not e_bh(np.array([19.9]))[0] and e_bh_greedy(np.array([np.inf]))[0]


def test_the_greedy_form_never_rejects_more():
    generator = np.random.default_rng(0)
    for _ in range(200):
        e = np.exp(generator.normal(2, 2, size=8))
        assert (e_bh_greedy(e) <= e_bh(e)).all()


def test_e_bh_controls_false_discoveries():
    """E-values that depend on each other: two of twenty are real."""
    generator = np.random.default_rng(1)
    false, found = [], []
    for _ in range(300):
        x = generator.normal(size=20) * 0.7 + generator.normal() * 0.7
        mean = np.zeros(20)
        mean[:2] = 5.0
        e = np.exp(3 * (x + mean) - 9 * 0.98 / 2)
        chosen = e_bh(e, 0.1)
        false.append(chosen[2:].sum() / max(1, chosen.sum()))
        found.append(chosen[:2].mean())
    assert np.mean(false) <= 0.1 and np.mean(found) > 0.9


@pytest.mark.parametrize("rejecting", [e_bh, e_bh_greedy])
def test_bad_e_values(rejecting):
    with pytest.raises(OutOfRange, match="not negative"):
        rejecting(np.array([-1.0]))
    with pytest.raises(NotFinite, match="e-value 1 is NaN"):
        rejecting(np.array([1.0, np.nan]))
    with pytest.raises(ShapeMismatch, match="at least one entry"):
        rejecting(np.array([]))
    with pytest.raises(OutOfRange, match="alpha=0"):
        rejecting(np.array([1.0]), 0)
