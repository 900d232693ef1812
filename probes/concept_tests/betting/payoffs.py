"""What a bet pays before it is squashed: how much more a witness of dependence sees in the data than in its null twin.

Each payoff takes fresh points at step t and a witness learnt from all points before; swapping the points with their
null twin flips its sign, so under the null hypothesis it is symmetric around zero and no bet on it can win on average.

==============  ============================  =============================  =======================================
payoff          null hypothesis               null twin                      witness
==============  ============================  =============================  =======================================
`Global`        Y independent of Z            z of two fresh pairs swapped   HSIC: mean[k(y,.) k(z,.)]
                                                                             - mean k(y,.) mean k(z,.)
`Conditional`   Y independent of Z_j given    z_j drawn from its             cMMD: mean k(u, U) - mean k(u, U~)
                the other concepts            conditional distribution
`Local`         f(H | S and j) distributed    f(H | S)                       xMMD: mean k(y, Y) - mean k(y, Y0)
                as f(H | S)
==============  ============================  =============================  =======================================

With two fresh pairs the sum over them minus the sum over the swapped ones is a covariance over the past,

    g = mean[(k(y1,.) - k(y2,.)) (k(z1,.) - k(z2,.))] - mean[k(y1,.) - k(y2,.)] mean[k(z1,.) - k(z2,.)]

which is what :class:`Global` computes; `global_gain` is the sum as written. Arrays are `[run point d]`.

Source: SKIT (Teneggi et al. 2024), methods2.md 17.7 (**C**).
"""

from typing import Protocol

import numpy as np
from jaxtyping import Float

from mechvis.errors import ShapeMismatch
from probes.concept_tests.betting.kernels import Kernel, Widths, gaussian

Points = Float[np.ndarray, "run point d"]


class Payoff(Protocol):
    """A game of several runs side by side."""

    steps: int
    """How many bets the data allow."""

    def gain(self, step: int) -> Float[np.ndarray, " run"]:
        """What step `step` (from 0) pays, from points before it and the fresh ones."""
        ...

    def keep(self, runs: np.ndarray) -> None:
        """Go on with some of the runs only."""
        ...


class Global:
    """HSIC by swapping the concept's values of two fresh pairs: uses two images per step."""

    def __init__(self, y: Points, z: Points, widths: Widths):
        _same("y and z", y, z)
        self.y, self.z = y, z
        self.steps = y.shape[1] // 2
        self.kernels = Kernel(widths), Kernel(widths)

    def gain(self, step: int) -> Float[np.ndarray, " run"]:
        seen, fresh = slice(0, 2 * step), slice(2 * step, 2 * step + 2)
        if step == 0:
            return np.zeros(len(self.y))
        for_y, for_z = (
            kernel(points[:, fresh], points[:, seen])
            for kernel, points in zip(self.kernels, (self.y, self.z), strict=True)
        )
        by_y, by_z = for_y[:, 0] - for_y[:, 1], for_z[:, 0] - for_z[:, 1]
        return (by_y * by_z).mean(1) - by_y.mean(1) * by_z.mean(1)

    def keep(self, runs: np.ndarray) -> None:
        self.y, self.z = self.y[runs], self.z[runs]
        for kernel in self.kernels:
            kernel.keep(runs)


class Conditional:
    """cMMD between `(y, z_j, others)` and the same with a drawn `z_j`: one image per step."""

    def __init__(self, y: Points, z: Points, drawn: Points, others: Points, widths: Widths):
        _same("y, z, drawn z and the other concepts", y, z, drawn, others)
        self.y, self.z, self.drawn, self.others = y, z, drawn, others
        self.steps = y.shape[1]
        self.kernels = Kernel(widths), Kernel(widths), Kernel(widths)

    def gain(self, step: int) -> Float[np.ndarray, " run"]:
        if step == 0:
            return np.zeros(len(self.y))
        seen, fresh = slice(0, step), slice(step, step + 1)
        for_y, for_z, for_others = self.kernels
        shared = for_y(self.y[:, fresh], self.y[:, seen]) * for_others(self.others[:, fresh], self.others[:, seen])
        two = np.concatenate([self.z[:, fresh], self.drawn[:, fresh]], axis=1)
        to_real = for_z(two, self.z[:, seen])
        to_drawn = gaussian(two, self.drawn[:, seen], for_z.width)
        difference = (to_real[:, 0] - to_drawn[:, 0]) - (to_real[:, 1] - to_drawn[:, 1])
        return (shared[:, 0] * difference).mean(1)

    def keep(self, runs: np.ndarray) -> None:
        self.y, self.z, self.drawn, self.others = (points[runs] for points in (self.y, self.z, self.drawn, self.others))
        for kernel in self.kernels:
            kernel.keep(runs)


class Local:
    """xMMD between outputs with and without the concept held fixed: one draw of each per step."""

    def __init__(self, held: Points, free: Points, widths: Widths):
        _same("outputs with the concept held and without", held, free)
        self.held, self.free = held, free
        self.steps = held.shape[1]
        self.kernel = Kernel(widths)

    def gain(self, step: int) -> Float[np.ndarray, " run"]:
        if step == 0:
            return np.zeros(len(self.held))
        seen = slice(0, step)
        new = np.concatenate([self.held[:, step : step + 1], self.free[:, step : step + 1]], axis=1)
        past = np.concatenate([self.held[:, seen], self.free[:, seen]], axis=1)
        values = self.kernel(new, past)
        witness = values[:, :, :step].mean(2) - values[:, :, step:].mean(2)
        return witness[:, 0] - witness[:, 1]

    def keep(self, runs: np.ndarray) -> None:
        self.held, self.free = self.held[runs], self.free[runs]
        self.kernel.keep(runs)


def global_gain(y: np.ndarray, z: np.ndarray, step: int, width_y: float, width_z: float) -> float:
    """The slow truth of :class:`Global` for one run: the witness written out, four times.

    Args:
        y: `[point]`, two per step.
        z: likewise.
        step: from 0; points `2 step` and `2 step + 1` are fresh, those before are the past.
        width_y: of the kernel.
        width_z: likewise.
    """
    past_y, past_z = y[: 2 * step], z[: 2 * step]
    if not len(past_y):
        return 0.0

    def witness(a: float, b: float) -> float:
        of_a = np.exp(-np.square(a - past_y) / (2 * width_y**2))
        of_b = np.exp(-np.square(b - past_z) / (2 * width_z**2))
        return float((of_a * of_b).mean() - of_a.mean() * of_b.mean())

    (y1, y2), (z1, z2) = y[2 * step : 2 * step + 2], z[2 * step : 2 * step + 2]
    return witness(y1, z1) + witness(y2, z2) - witness(y1, z2) - witness(y2, z1)


def _same(what: str, *arrays: np.ndarray) -> None:
    shapes = {array.shape[:2] for array in arrays}
    if len(shapes) != 1 or any(array.ndim != 3 for array in arrays):
        raise ShapeMismatch(f"{what} are [run point d] over the same points, got {[list(a.shape) for a in arrays]}.")
