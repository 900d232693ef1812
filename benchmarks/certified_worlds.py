"""Simulated worlds for the certified top-K: 384 units on 1.28 million images, whose true means are known.

The asked figures come from a simulation whose worlds were described in words; the parameters here are in `means_of`.
"""

import numpy as np

from mechvis.certified.calibration import calibrate
from mechvis.certified.elimination import Elimination, eliminate

UNITS, TOP, EPS, IMAGES = 384, 16, 0.1, 1_281_167
ORDER = np.arange(IMAGES)
WORLDS = ("log-normal", "sparse", "smooth")
ASKED = {"uniform": (7.2e6, 5.1e6, 6.8e6), "student": (2.8e5, 1.4e5, 3.3e5), "0.8": (1.4e5, 9.8e4, 1.6e5),
         "0.55": (1.9e5, 1.2e5, 2.1e5), "z = 1": (3.3e4, 2.7e4, 3.6e4)}  # fmt: skip
"""Evaluations in the three worlds, as asked for."""


def means_of(world: str, generator: np.random.Generator) -> np.ndarray:
    """True mean effects `[unit]`."""
    if world == "log-normal":
        return 0.1 * np.exp(generator.normal(size=UNITS))
    if world == "sparse":
        means = np.zeros(UNITS)
        means[generator.permutation(UNITS)[:24]] = generator.uniform(0.2, 1.0, 24)
        return means
    return generator.permutation(np.exp(-np.arange(UNITS) / 30))


def noise(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and variance 1."""
    if kind == "normal":
        return generator.normal(size=shape)
    if kind == "Student's t, 3 degrees":
        return generator.standard_t(3, size=shape) / np.sqrt(3)
    if kind == "log-normal, sigma 1":
        return (np.exp(generator.normal(size=shape)) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    raise ValueError(kind)


def simulate(
    world: str, seed: int, *, kind: str = "normal", rare: float = 0.0, rho: float = 0.0, uniform: bool = False, **more
) -> tuple[Elimination, bool]:
    """One run of elimination in a world, and whether it kept its promise.

    Effect of unit u on image i: mean_u (1 + f_i / 2) + (0.05 + |mean_u|) noise, with one f_i for all units.
    rare: five of the top units act on this share of the images only (their means are the same).
    rho: correlation of a control variate, known on 16,384 images.
    """
    generator = np.random.default_rng(seed)
    means = means_of(world, generator)
    scale = 0.05 + np.abs(means)
    special = np.zeros(UNITS, dtype=bool)
    if rare:
        special[np.argsort(-means)[generator.permutation(TOP)[:5]]] = True
    control = kept = None
    if rho:
        kept = noise(kind, (UNITS, 16384), generator).astype(np.float32)
        control = rho * kept + np.sqrt(1 - rho**2) * generator.normal(size=kept.shape).astype(np.float32)

    def evaluate(units: np.ndarray, images: np.ndarray) -> np.ndarray:
        shape, m = (len(units), len(images)), means[units, None]
        own = noise(kind, shape, generator) if kept is None or images[-1] >= 16384 else kept[np.ix_(units, images)]
        effects = m * (1 + 0.5 * generator.normal(size=len(images))) + scale[units, None] * own
        if rare:
            hits = (generator.random(shape) < rare) * m / rare * generator.uniform(0.5, 1.5, shape)
            effects = np.where(special[units, None], hits, effects)
        return effects

    found = eliminate(evaluate, ORDER, UNITS, TOP, eps=EPS, control=control, uniform=uniform, **more)
    bar = np.sort(means)[-TOP]
    return found, bool((means[found.selected] >= bar - EPS * abs(bar) - 1e-12).all())


def summary(runs: list[tuple[Elimination, bool]]) -> dict[str, float]:
    cost, uniform = (np.mean([getattr(found, name) for found, _ in runs]) for name in ("evaluations", "uniform"))
    return {
        "cost": float(cost),
        "uniform": float(uniform),
        "ratio": float(uniform / cost),
        "success": float(np.mean([good for _, good in runs])),
        "runs": len(runs),
    }


def worlds(runs: int, few: int) -> list[dict]:
    rows: list[dict] = []
    uniform: dict[tuple[str, str], float] = {}

    def add(name: str, asked: str | None, count: int, **settings) -> None:
        for place, world in enumerate(WORLDS):
            found = summary([simulate(world, seed, **settings) for seed in range(count)])
            # A control variate is compared with uniform sampling without it, as in the asked figures.
            if settings.get("uniform"):
                uniform[world, settings["tails"]] = found["cost"]
            elif base := uniform.get((world, settings.get("tails", ""))):
                found["ratio"] = base / found["cost"]
            row = {"world": world, "method": name, **found, "asked": ASKED[asked][place] if asked else None}
            rows.append(row)
            print(row, flush=True)

    add("uniform, student", "uniform", few, tails="student", uniform=True)
    add("elimination, student", "student", runs, tails="student")
    add("elimination, student, control with correlation 0.8", "0.8", 2 * few, tails="student", rho=0.8)
    add("elimination, student, control with correlation 0.55", "0.55", 2 * few, tails="student", rho=0.55)
    add("elimination, z = 1.96 (not certified)", None, runs, z=1.96)
    add("elimination, z = 1 (not certified)", "z = 1", runs, z=1.0)
    add("uniform, guarded", "uniform", few, tails="guarded", uniform=True)
    add("elimination, guarded (the default)", "student", runs, tails="guarded")
    add("elimination, bernstein", None, few, tails="bernstein")
    return rows


def tails(runs: int, few: int) -> list[dict]:
    rows = []
    cases: list[tuple[str, dict]] = [
        (kind, {"kind": kind}) for kind in ("Student's t, 3 degrees", "log-normal, sigma 1")
    ]
    cases += [(f"5 of the top 16 act on {share:.1%} of images", {"rare": share}) for share in (0.05, 0.02, 0.01)]
    for name, settings in cases:
        for world in WORLDS:
            for bound in ("student", "guarded"):
                count = runs if bound == "student" else 2 * few
                found = summary([simulate(world, seed, tails=bound, **settings) for seed in range(count)])
                rows.append({"noise": name, "world": world, "bound": bound, **found})
                print(rows[-1], flush=True)
    return rows


def calibration(runs: int) -> list[dict]:
    """The half-width that simulation on the pilot chooses, and how it then does."""
    rows = []
    for world in WORLDS:
        chosen, results = [], []
        for seed in range(runs):
            generator = np.random.default_rng([seed, 1])
            means = means_of(world, np.random.default_rng(seed))
            pilot = means[:, None] * (1 + 0.5 * generator.normal(size=64))
            pilot = pilot + (0.05 + np.abs(means))[:, None] * generator.normal(size=(UNITS, 64))
            found = calibrate(pilot, IMAGES, TOP, eps=EPS, runs=100, seed=seed)
            chosen.append(found.z)
            results.append(simulate(world, seed, z=found.z))
        rows.append({"world": world, "z": float(np.mean(chosen)), **summary(results)})
        print(rows[-1], flush=True)
    return rows
