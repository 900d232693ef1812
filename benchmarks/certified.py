"""What the certified top-K saves, and whether its guarantee holds: `python -m benchmarks.certified`.

1. Simulated worlds (384 units, top 16, tolerance 10 %, 1.28 million images): cost and success of elimination under each
   kind of bound, beside uniform sampling to the same certificate and beside figures that were asked for.
2. Tails: the same with heavy-tailed noise, and with a third of the top units acting on few images only.
3. The bundled model: all effects are computed once, then 200 seeds of elimination read from that table.
4. Wall-clock: one real run beside one full sweep.

The asked figures come from a simulation whose worlds were described in words; the parameters here are in `means_of`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from mechvis.certified.calibration import calibrate
from mechvis.certified.elimination import Elimination, eliminate
from mechvis.certified.order import draw

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


def lookup(
    values: np.ndarray, labels: np.ndarray, top: int, seeds: int, control: np.ndarray | None = None, **more
) -> dict:
    """Elimination with many seeds, effects read from the full table `[unit image]`."""
    means = values.mean(1)
    best = np.argsort(-means, kind="stable")
    bar = means[best[top - 1]]

    def evaluate(units: np.ndarray, images: np.ndarray) -> np.ndarray:
        return values[np.ix_(units, images)]

    good, equal, cost, uniform, out = [], [], [], [], []
    for seed in range(seeds):
        order = draw(values.shape[1], labels, seed)
        known = None if control is None else control[:, order]
        found = eliminate(evaluate, order, len(values), top, eps=EPS, seed=seed, control=known, **more)
        flat = eliminate(evaluate, order, len(values), top, eps=EPS, seed=seed, control=known, uniform=True, **more)
        good.append((means[found.selected] >= bar - EPS * abs(bar)).all())
        equal.append(set(found.selected) == set(best[:top]))
        cost.append(found.evaluations)
        uniform.append(flat.evaluations)
        out.append(found.exhausted)
    row = {
        "top": top, "gap": float((bar - means[best[top]]) / abs(bar)), "success": float(np.mean(good)),
        "equal": float(np.mean(equal)), "cost": float(np.mean(cost)), "uniform": float(np.mean(uniform)),
        "full": values.size, "exhausted": float(np.mean(out)), "seeds": seeds,
    }  # fmt: skip
    print(row, flush=True)
    return row


def bundled(images_n: int, tokens_n: int, seeds: int) -> tuple[list[dict], list[dict]]:
    import torch

    import mechvis
    from mechvis.certified.first_order import first_order
    from mechvis.sweep_inputs import prepare

    torch.set_num_threads(1)
    model = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(images_n, seed=500, correlation=0.5)
    table, clock = [], []
    for units, n, tops in (("heads", images_n, (3, 4, 5, 8)), ("tokens", tokens_n, (2, 8, 16))):
        some = images[:n]
        started = time.perf_counter()
        full = mechvis.sweep(model, some, units=units, metric=["logit_diff", "prob", "accuracy"], progress=False)
        full_seconds = time.perf_counter() - started
        labels = np.asarray(some.labels)
        for metric in ("logit_diff", "prob", "accuracy") if units == "heads" else ("logit_diff",):
            values = full.values[metric].astype(np.float64)
            for top in tops:
                for bound in ("student", "guarded"):
                    found = lookup(values, labels, top, seeds, tails=bound)
                    table.append({"units": f"{len(values)} {units}", "metric": metric, "bound": bound, **found})
        if units == "heads":
            prepared = prepare(
                model, some, units=units, edit="zero", metric="logit_diff", labels=None, reference=None, source=None,
                layers=None, engine="wave", seed=0, allow_overlap=False,
            )  # fmt: skip
            values = full.values["logit_diff"].astype(np.float64)
            control = first_order(prepared, np.arange(n), progress=False)
            rho = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(values, control, strict=True)])
            for top in tops:
                found = lookup(values, labels, top, seeds, control=control, tails="student")
                text = f"student, gradients (correlation {rho.min():.2f} to {rho.max():.2f})"
                table.append({"units": f"{len(values)} {units}", "metric": "logit_diff", "bound": text, **found})
        top = 4 if units == "heads" else 2
        for bound in ("student", "guarded") if units == "heads" else ("student",):
            started = time.perf_counter()
            found = mechvis.certified_top(model, some, top=top, units=units, tails=bound, eps=EPS, progress=False)
            seconds = time.perf_counter() - started
            facts = found.provenance["certificate"]
            clock.append(
                {
                    "units": units, "images": n, "top": top, "bound": bound, "seconds": seconds,
                    "full_seconds": full_seconds,
                    "same": set(facts["selected"]) == set(full.top(top)["unit"]), **facts["evaluations"],
                }
            )  # fmt: skip
            print(clock[-1], flush=True)
    return table, clock


def page(found: dict) -> str:
    lines = [
        "# The certified top-K: cost and success",
        "",
        "`python -m benchmarks.certified`. One evaluation is one unit on one image. *Ratio*: what uniform sampling "
        "needs for the same certificate, divided by what elimination needs. Audit and re-estimation on fresh "
        "images are not in it; they are in the wall-clock table.",
        "",
        "## Simulated worlds",
        "",
        f"{UNITS} units, top {TOP}, tolerance {EPS:.0%}, probability of failure 5 %, {IMAGES:,} images. *Asked*: the "
        "figure of the earlier simulation, whose worlds were described in words only, so its parameters may differ.",
        "",
        "| world | method | evaluations | asked | ratio | success | runs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in found["worlds"]:
        asked = "" if row["asked"] is None else f"{row['asked']:.2g}"
        uniform = row["method"].startswith("uniform")
        ratio = "" if uniform else f"{row['ratio']:.1f}"
        lines.append(
            f"| {row['world']} | {row['method']} | {row['cost']:.2g} | {asked} | {ratio} | {row['success']:.3f} | "
            f"{row['runs']} |"
        )
    lines += ["", "Calibrated by simulation on a pilot of 64 images (mean of the chosen z):", ""]
    lines += ["| world | z | evaluations | success | runs |", "|---|---:|---:|---:|---:|"]
    for row in found["calibration"]:
        lines.append(f"| {row['world']} | {row['z']:.2f} | {row['cost']:.2g} | {row['success']:.3f} | {row['runs']} |")
    lines += [
        "", "## Heavy tails", "",
        "The same worlds with other noise; in the last rows five of the top 16 units act on few images only, with the "
        "same means. Success below 0.95 breaks the promise.", "",
        "| noise | world | bound | evaluations | ratio | success | runs |", "|---|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in found["tails"]:
        lines.append(
            f"| {row['noise']} | {row['world']} | {row['bound']} | {row['cost']:.2g} | {row['ratio']:.1f} | "
            f"{row['success']:.3f} | {row['runs']} |"
        )
    lines += [
        "", "## The bundled classifier", "",
        "scenes-vit, zero ablation, effects of all units on all images computed once; elimination reads from that "
        "table. *Gap*: how far the first unit outside lies below the last inside. *Success*: all returned units within "
        f"{EPS:.0%}; *equal*: the very set of the full sweep; *ran out*: share of seeds in which the last units needed "
        "all images.", "",
        "| units | metric | bound | top | gap | success | equal | evaluations | uniform | full | ran out | seeds |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in found["table"]:
        lines.append(
            f"| {row['units']} | {row['metric']} | {row['bound']} | {row['top']} | {row['gap']:.1%} | "
            f"{row['success']:.3f} | {row['equal']:.3f} | {row['cost']:,.0f} | "
            f"{row['uniform']:,.0f} ({row['uniform'] / row['cost']:.1f} x) | "
            f"{row['full']:,} ({row['full'] / row['cost']:.1f} x) | {row['exhausted']:.0%} | {row['seeds']} |"
        )
    lines += [
        "", "## Wall-clock", "",
        "`mechvis.certified_top` as it comes (audit 5 %, 1,024 fresh images for each returned unit) beside "
        "`mechvis.sweep`, scenes-vit, logit_diff, one thread of a busy machine, one run each.", "",
        "| units | images | top | bound | certified (s) | full (s) | saved | evaluations: decide, audit, fresh | "
        "full sweep | same set |", "|---|---:|---:|---|---:|---:|---:|---|---:|---|",
    ]  # fmt: skip
    for row in found["clock"]:
        lines.append(
            f"| {row['units']} | {row['images']:,} | {row['top']} | {row['bound']} | {row['seconds']:.1f} | "
            f"{row['full_seconds']:.1f} | {row['full_seconds'] / row['seconds']:.1f} x | "
            f"{row['elimination']:,}, {row['audit']:,}, {row['fresh']:,} | {row['full']:,} | "
            f"{'yes' if row['same'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs, to see that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for certified.md and .json")
    options = parser.parse_args()
    runs, few = (5, 2) if options.quick else (200, 25)
    table, clock = bundled(*(256, 96, 5) if options.quick else (4000, 500, 200))
    found = {
        "table": table,
        "clock": clock,
        "worlds": worlds(runs, few),
        "calibration": calibration(1 if options.quick else 40),
        "tails": tails(runs, few),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "certified.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "certified.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
