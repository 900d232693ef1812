"""How wide must intervals be in practice? Half-widths for elimination, by simulating it on the pilot's own effects.

The union bound of :mod:`mechvis.certified.elimination` is careful: it pays for the worst case over all units and
rounds. Here

1. the pilot (the effects of all units on the first images) makes a world: its means, drawn together by as much as its
   noise spread them, are taken for the truth; its images, drawn with replacement, for the noise;
2. elimination runs in that world many times, with half-widths of z standard errors;
3. the smallest z whose error, plus one standard error of it, is at most delta is found, and the next wider one of the
   grid is taken: the pilot's means only resemble the true ones. Without this step 17 of 20 runs in a log-normal world
   were right (benchmarks/certified.py).

The guarantee is then calibrated, not certified: it holds as far as the pilot's images look like all images. What the
pilot never shows (a unit that matters on one image in a thousand) no simulation from it can show.
"""

from dataclasses import dataclass

import numpy as np

from mechvis.certified.elimination import Evaluate, eliminate
from mechvis.errors import FailedCheck

GRID = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Half-widths that are tried, in standard errors."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The chosen half-width and how it did."""

    z: float
    """Half-width in standard errors."""
    error: float
    """Share of simulated runs that returned a unit below the tolerance."""
    runs: int
    """Simulated runs."""
    evaluations: float
    """Mean evaluations of a simulated run."""
    pilot: int
    """Images of the pilot."""


def calibrate(
    pilot: np.ndarray,
    n_images: int,
    top: int,
    *,
    eps: float = 0.1,
    delta: float = 0.05,
    by: str = "effect",
    max_images: int | None = None,
    runs: int = 200,
    seed: int = 0,
) -> Calibration:
    """Choose z from the effects of the pilot.

    Args:
        pilot: effects `[unit image]` of all units; images with NaN are left out.
        n_images: all images.
        top: units to find.
        eps: tolerance, as in :func:`mechvis.certified.elimination.eliminate`.
        delta: error to stay below.
        by: as there.
        max_images: as there.
        runs: simulated runs for each z.
        seed: of the simulation.

    Raises:
        FailedCheck: no z of the grid is good enough; use the certified widths.
    """
    pilot = np.asarray(pilot, dtype=np.float64)
    pilot = pilot[:, ~np.isnan(pilot).any(0)]
    units, n = pilot.shape
    if n < 2:
        raise FailedCheck("calibration needs at least two images without NaN in the pilot. Use the certified widths.")
    mean = pilot.mean(1)
    residual = (pilot - mean[:, None]) * np.sqrt(n / (n - 1))
    # Noise has spread the measured means; a world of these means would be easier than the real one.
    spread = mean.var()
    shrink = np.sqrt(max(0.0, 1 - (residual.var(1) / n).mean() / spread)) if spread > 0 else 0.0
    truth = mean.mean() + shrink * (mean - mean.mean())
    order = np.arange(n_images)

    def simulated(z: float) -> tuple[float, float]:
        """Error and mean cost with half-widths of z; the error is 1 as soon as it is surely too large."""
        wrong, cost = 0, 0
        for run in range(runs):
            # All images of this world; its means differ a little from those they are drawn with, as real ones do.
            drawn = np.random.default_rng([seed, run]).integers(0, n, n_images)
            means = truth + residual @ np.bincount(drawn, minlength=n) / n_images
            found = eliminate(
                _world(truth, residual, drawn), order, units, top, eps=eps, delta=delta, by=by, z=z,
                max_images=max_images,
            )  # fmt: skip
            score = np.abs(means) if by == "size" else means
            bar = np.sort(score)[-top]
            wrong += not (score[found.selected] >= bar - eps * abs(bar)).all()
            cost += found.evaluations
            if wrong > runs * delta:
                return 1.0, 0.0
        return wrong / runs, cost / runs

    enough = False
    for z in GRID:
        error, cost = simulated(z)
        good = error + np.sqrt(error * (1 - error) / runs) <= delta
        if good and enough:
            return Calibration(z=z, error=error, runs=runs, evaluations=cost, pilot=n)
        enough = good
    raise FailedCheck(
        f"no half-width up to {GRID[-1]} standard errors kept the simulated error below {delta}. "
        "Use the certified widths (without calibrate)."
    )


def _world(truth: np.ndarray, residual: np.ndarray, drawn: np.ndarray) -> Evaluate:
    def evaluate(units: np.ndarray, images: np.ndarray) -> np.ndarray:
        return truth[units, None] + residual[np.ix_(units, drawn[images])]

    return evaluate
