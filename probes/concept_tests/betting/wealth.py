"""Testing by betting: wealth that cannot grow under the null hypothesis, at whatever moment one looks.

    W_0 = 1,   W_t = W_{t-1} (1 + v_t kappa_t),   reject when W_t >= 1 / alpha

kappa_t is a payoff between -1 and 1 whose mean is not positive under the null hypothesis, v_t the share of the wealth
that is bet, decided before kappa_t is seen. Then W is a supermartingale, and by Ville's inequality it ever reaches
1/alpha with probability at most alpha: one may stop when one likes. Steps of a test:

1. g_t, the payoff before squashing (:mod:`probes.concept_tests.betting.payoffs`);
2. `kappa_t = tanh(g_t / scale)`, scale = difference of the 90 % and the 10 % quantile of past g, 1 for the first two;
3. bet v_t by online Newton: `u = kappa / (1 + v kappa)`, `a += u^2` (from 1),
   `v <- clip(v + 2 / (2 - ln 3) u / a, 0, 1/2)`.

Source: SKIT, methods2.md 17.7 (**C**).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, NotFinite, OutOfRange
from probes.concept_tests.betting.payoffs import Payoff

ALPHA, TAU_MAX = 0.05, 400
NEWTON = 2 / (2 - math.log(3))
"""Step of online Newton for log(1 + v kappa) with v up to 1/2."""
LARGEST_BET = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How some runs of a test ended."""

    tau: Int[np.ndarray, " run"]
    """Step (from 1) at which the wealth first reached 1 / alpha; `steps` where it never did."""
    rejected: np.ndarray
    """Whether it did, bool `[run]`."""
    wealth: Float[np.ndarray, " run"]
    """Wealth where the run stopped: an e-value."""
    steps: int
    """Longest possible run."""
    alpha: float
    """Level."""

    @property
    def importance(self) -> float:
        """Mean of `1 - tau / steps`: 0 never rejected, near 1 rejected at once."""
        return float((1 - self.tau / self.steps).mean())


class Bets:
    """The online Newton bettor of several runs."""

    def __init__(self, runs: int, largest: float = LARGEST_BET):
        self.share, self.curvature = np.zeros(runs), np.ones(runs)
        self.wealth, self.largest = np.ones(runs), largest

    def settle(self, kappa: Float[np.ndarray, " run"]) -> Float[np.ndarray, " run"]:
        """Pay what the present bets win on these payoffs, then learn from them; returns the wealth."""
        growth = 1 + self.share * kappa
        self.wealth = self.wealth * growth
        slope = kappa / growth
        self.curvature = self.curvature + np.square(slope)
        self.share = np.clip(self.share + NEWTON * slope / self.curvature, 0.0, self.largest)
        return self.wealth

    def keep(self, runs: np.ndarray) -> None:
        """Go on with some of the runs only."""
        self.share, self.curvature, self.wealth = self.share[runs], self.curvature[runs], self.wealth[runs]


def squashed(gain: Float[np.ndarray, " run"], past: Float[np.ndarray, "step run"]) -> Float[np.ndarray, " run"]:
    """Payoff in (-1, 1): `tanh(g / scale)`, odd in g, with a scale from past g."""
    if len(past) < 2:
        return np.tanh(gain)
    low, high = np.quantile(past, [0.1, 0.9], axis=0)
    # Past payoffs that are all alike (a constant variable) have no scale.
    scale = np.where(high > low, high - low, 1.0)
    # The first widths may be tiny, and so the first payoffs: a quotient that overflows is a certain bet, tanh(inf) = 1.
    with np.errstate(over="ignore"):
        return np.tanh(gain / scale)


def bet(payoff: Payoff, runs: int, *, alpha: float = ALPHA, stop: float | None = None) -> Outcome:
    """Play a payoff in several runs until each reaches its goal or the data end.

    Args:
        payoff: the game.
        runs: how many it holds.
        alpha: level; `tau` is the first step with wealth 1 / alpha.
        stop: wealth at which a run ends; default 1 / alpha. e-BH over K concepts needs up to K / alpha.

    Raises:
        OutOfRange: alpha not between 0 and 1, or a goal below 1 / alpha.
        BadData: no step to bet on.

    Example:
        >>> y = np.random.default_rng(0).normal(size=(1, 400, 1))
        >>> from probes.concept_tests.betting.kernels import Widths
        >>> from probes.concept_tests.betting.payoffs import Global
        >>> bool(bet(Global(y, y, Widths()), 1).rejected[0])
        True
    """
    if not 0 < alpha < 1:
        raise OutOfRange(f"alpha={alpha}: a level lies between 0 and 1.")
    goal = 1 / alpha if stop is None else stop
    if goal < 1 / alpha:
        raise OutOfRange(f"stop={goal} is below 1/alpha = {1 / alpha:g}: no run could reject.")
    if payoff.steps < 1:
        raise BadData("there is no step to bet on: a global test needs two images per step, others one.")
    tau, wealth = np.full(runs, payoff.steps), np.ones(runs)
    rejected, active = np.zeros(runs, bool), np.arange(runs)
    bets, gains = Bets(runs), np.empty((payoff.steps, runs))
    for step in range(payoff.steps):
        gain = payoff.gain(step)
        if not np.isfinite(gain).all():
            raise NotFinite(f"the payoff of step {step + 1} is NaN or Inf; look at the scores and outputs.")
        gains[step, active] = gain
        now = bets.settle(squashed(gain, gains[:step, active]))
        wealth[active] = now
        first = active[(now >= 1 / alpha) & ~rejected[active]]
        tau[first], rejected[first] = step + 1, True
        if (done := now >= goal).any():
            going = np.flatnonzero(~done)
            active = active[going]
            if not len(active):
                break
            bets.keep(going)
            payoff.keep(going)
    return Outcome(tau=tau, rejected=rejected, wealth=wealth, steps=payoff.steps, alpha=alpha)
