"""What the certified top-K saves, and whether its guarantee holds: `python -m benchmarks.certified`.

1. Simulated worlds (:mod:`benchmarks.certified_worlds`): cost and success of elimination under each kind of bound,
   beside uniform sampling to the same certificate and beside figures that were asked for; then with heavy tails.
2. The bundled models: all effects are computed once, then 200 seeds of elimination read from that table.
3. CIGMA scores of the planted and of the bundled shortcut: the same.
4. Wall-clock: one real run beside one full sweep, and one certified scoring of a study beside a full one.

Parts are kept in `certified.json` as they are finished; `--only` runs some of them again.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.certified_page import page
from benchmarks.certified_worlds import EPS, calibration, tails, worlds
from mechvis.certified.elimination import eliminate
from mechvis.certified.order import draw


def lookup(
    values: np.ndarray, strata: np.ndarray, top: int, seeds: int, control: np.ndarray | None = None, **more: Any
) -> dict:
    """Elimination with many seeds, effects read from the full table `[unit image]`."""
    means = values.mean(1)
    best = np.argsort(-means, kind="stable")
    bar = means[best[top - 1]]

    def evaluate(units: np.ndarray, images: np.ndarray) -> np.ndarray:
        return values[np.ix_(units, images)]

    good, equal, cost, uniform, out = [], [], [], [], []
    for seed in range(seeds):
        order = draw(values.shape[1], strata, seed)
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


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What comes out, and how long it took: by the clock, and of the processor (which others on it disturb less)."""
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - processor}


def bundled_model(name: str, images: Any) -> Any:
    """A bundled classifier; of the CLIP model the zero-shot one."""
    import mechvis

    model = mechvis.load(name)
    return model.classifier(images.class_names) if hasattr(model, "classifier") else model


def bundled(count: int, tokens: int, seeds: int) -> tuple[list[dict], list[dict]]:
    """Both bundled models: lookups in the full table, and one real run of each kind beside the full sweep."""
    import mechvis

    images = mechvis.data.scenes(count, seed=500, correlation=0.5)
    table, clock = [], []
    for name, units, n, tops in (
        ("scenes-vit", "heads", count, (3, 4, 5, 8)),
        ("scenes-clip", "heads", count, (3, 5, 8)),
        ("scenes-vit", "tokens", tokens, (2, 8, 16)),
    ):
        some, metrics = images[:n], ["logit_diff", "prob", "accuracy"] if units == "heads" else ["logit_diff"]
        model, strata = bundled_model(name, images), np.asarray(some.labels)
        full, whole = timed(partial(mechvis.sweep, model, some, units=units, metric=metrics, progress=False))
        for metric in metrics:
            values = full.values[metric].astype(np.float64)
            for top in tops:
                for bound in ("student", "guarded"):
                    found = lookup(values, strata, top, seeds, tails=bound)
                    about = {"model": name, "units": f"{len(values)} {units}", "metric": metric, "bound": bound}
                    table.append({**about, **found})
        if units == "heads":
            table += _with_gradients(name, model, some, full, strata, tops, seeds)
        clock += _run(name, model, some, units, full, whole)
    return table, clock


def _with_gradients(
    name: str, model: Any, images: Any, full: Any, strata: np.ndarray, tops: tuple, seeds: int
) -> list[dict]:
    from mechvis.certified.first_order import first_order
    from mechvis.sweep_inputs import prepare

    prepared = prepare(
        model, images, units="heads", edit="zero", metric="logit_diff", labels=None, reference=None, source=None,
        layers=None, engine="wave", seed=0, allow_overlap=False,
    )  # fmt: skip
    values = full.values["logit_diff"].astype(np.float64)
    control = first_order(prepared, np.arange(len(images)), progress=False)
    rho = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(values, control, strict=True)])
    text = f"student, gradients (correlation {rho.min():.2f} to {rho.max():.2f})"
    about = {"model": name, "units": f"{len(values)} heads", "metric": "logit_diff", "bound": text}
    return [{**about, **lookup(values, strata, top, seeds, control=control, tails="student")} for top in tops]


def _run(name: str, model: Any, images: Any, units: str, full: Any, whole: dict[str, float]) -> list[dict]:
    import mechvis

    rows = []
    top = 4 if units == "heads" else 2
    for bound in ("student", "guarded") if units == "heads" else ("student",):
        settings = {"top": top, "units": units, "tails": bound, "eps": EPS, "progress": False}
        found, took = timed(partial(mechvis.certified_top, model, images, **settings))
        facts = found.provenance["certificate"]
        rows.append(
            {
                "model": name, "units": units, "images": len(images), "top": top, "bound": bound, **took,
                "full_seconds": whole["seconds"], "full_cpu": whole["cpu"],
                "same": set(facts["selected"]) == set(full.top(top)["unit"]),
                **facts["evaluations"],
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def cigma(count: int, seeds: int) -> tuple[list[dict], list[dict]]:
    """CIGMA scores of `count` selection images, planted and bundled, and certified scorings beside the full one."""
    import mechvis
    from circuits.certified import Certified, rank_top, strata_of
    from circuits.masks import Masks, read_masks
    from circuits.ranking import Work, rank_all
    from circuits.study_inputs import Split
    from mechvis import testing

    planted = testing.shortcut_images(count)
    scenes = mechvis.data.scenes(count, seed=900, correlation=0.5)
    table, clock = [], []
    for name, model, images, fill, tops in (
        ("ShortcutViT", testing.shortcut_vit(), planted.image_set(), "zero", {"guarded": (1,), "cigma": (2,)}),
        ("scenes-vit", mechvis.load("scenes-vit"), scenes, "mean", {"guarded": (2, 3, 4), "cigma": (2, 3)}),
    ):
        select = Split(images, Masks(read_masks(images, model.preprocess), np.zeros(count), "given"))
        options = {"mode": "zero", "fill": fill, "tau": 1.0, "means": None}
        for rank_by in ("guarded", "cigma"):
            work = Work(
                model=model, select=select, options=options, run={"budget": None, "progress": False}, rank_by=rank_by,
                seed=0, where={},
            )  # fmt: skip
            full, whole = timed(partial(rank_all, work))
            values = full.scores.values[rank_by]
            about = {"model": name, "units": f"{len(values)} heads", "metric": rank_by}
            for top in tops[rank_by]:
                for bound in ("student", "guarded"):
                    found = lookup(values, strata_of(images), top, seeds, tails=bound)
                    table.append({**about, "bound": bound, **found})
            if rank_by == "cigma":
                continue
            top = min(3, max(tops[rank_by]))
            for bound in ("student", "guarded"):
                found, took = timed(partial(rank_top, work, Certified(top=top, tails=bound, eps=EPS)))
                facts, row = found.scores.provenance["certificate"], {**about, "images": count, "top": top, **took}
                row |= {"bound": bound, "full_seconds": whole["seconds"], "full_cpu": whole["cpu"]}
                same = [set(some.order[:top]) for some in (full, found)]
                recommended = [set(full.recommended) & same[0], set(found.recommended)]
                row |= {"same": same[0] == same[1], "recommended": recommended[0] == recommended[1]}
                clock.append({**row, **facts["evaluations"]})
                print(clock[-1], flush=True)
    return table, clock


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs, to see that it works")
    parser.add_argument("--only", nargs="+", default=None, help="some parts; the others stay as they are in --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for certified.md and .json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs, few = (5, 2) if options.quick else (200, 25)
    parts: dict[str, Callable[[], dict[str, list[dict]]]] = {
        "models": lambda: dict(
            zip(("table", "clock"), bundled(*(256, 96, 5) if options.quick else (4000, 500, 200)), strict=True)
        ),
        "cigma": lambda: dict(
            zip(("cigma", "cigma_clock"), cigma(*(200, 5) if options.quick else (4000, 200)), strict=True)
        ),
        "worlds": lambda: {"worlds": worlds(runs, few)},
        "calibration": lambda: {"calibration": calibration(1 if options.quick else 40)},
        "tails": lambda: {"tails": tails(runs, few)},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "certified.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if options.only and kept.exists() else {}
    for name in options.only or parts:
        found |= parts[name]()
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "certified.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
