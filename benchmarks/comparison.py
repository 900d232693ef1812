"""Do circuit scores go with accuracy? DDB over models made here, CSS over shifts: `python -m benchmarks.comparison`.

1. Known answers: F4 and planted noise, beside the figures that were asked for.
2. Two families of models of the bundled scenes. *Fine-tuned*: the backbone of `scenes-vit` with a fresh classifier,
   trained as a whole on scenes whose background agrees with the shape in 80 or 95 %, at three learning rates, two
   lengths, two seeds. *Heads*: that backbone frozen, logistic regression on its features at several agreements and
   ridges. Their accuracy on shifted scenes varies widely; DDB on these (unlabelled) is correlated with it, beside
   accuracy at home, confidence, entropy and ATC.
3. For some of the models: CSS over corruptions of five severities and swapped backgrounds, correlated with accuracy.
4. How often fresh images from home alarm, and what scoring costs.

Models and finished parts are kept in `--work`; a part is made again when its file there is deleted. The page says what
did not work as plainly as what did.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparison_page import page

HOME = 0.95
"""Agreement of background and shape in the scenes that count as home."""
SEED = 7100
"""Data sets of scenes from this number on are used here and nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one model of the families is made."""

    family: str
    """`fine-tuned` or `heads`."""
    correlation: float
    """Agreement of background and shape in its training scenes."""
    rate: float = 0.0
    """Learning rate (ten times it for the classifier)."""
    steps: int = 0
    """Steps of 64 scenes."""
    ridge: float = 0.0
    """Of the logistic regression."""
    seed: int = 0
    """Of scenes and weights."""

    @property
    def name(self) -> str:
        """For files and tables."""
        if self.family == "heads":
            return f"head-{self.correlation:g}-{self.ridge:g}-s{self.seed}"
        return f"tuned-{self.correlation:g}-{self.rate:g}-{self.steps}-s{self.seed}"


def plans() -> Iterator[Plan]:
    """The models of both families."""
    for correlation in (0.8, 0.95):
        for rate in (1e-4, 2e-4, 4e-4):
            for steps in (60, 120):
                for seed in (0, 1):
                    yield Plan(family="fine-tuned", correlation=correlation, rate=rate, steps=steps, seed=seed)
    for correlation in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0):
        for ridge in (1e-3, 1e-1):
            yield Plan(family="heads", correlation=correlation, ridge=ridge)


def build(plan: Plan, folder: Path) -> Path:
    """Make a model, unless it is there."""
    from mechvis.models import zoo
    from mechvis.models.training.classifier import ClassifierPlan, build_classifier
    from mechvis.models.training.folders import save_model

    place = folder / plan.name
    if (place / "model.safetensors").exists():
        return place
    from transformers import ViTForImageClassification

    torch.manual_seed(plan.seed)
    model = ViTForImageClassification.from_pretrained(zoo.path("scenes-vit")).eval()
    if plan.family == "heads":
        settings = ClassifierPlan(correlation=plan.correlation, ridge=plan.ridge, seed=400 + plan.seed)
        return save_model(build_classifier(model.vit, settings), place)
    return save_model(_tuned(model, plan), place)


def _tuned(model: Any, plan: Plan, batch: int = 64) -> Any:
    from mechvis.data.scenes import render, sample_factors
    from mechvis.models.training.backbone import to_pixels

    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    groups = [(model.vit, plan.rate), (model.classifier, 10 * plan.rate)]
    optimiser = torch.optim.AdamW([{"params": list(part.parameters()), "lr": rate} for part, rate in groups])
    model.train()
    for step in range(plan.steps):
        # Warm-up over ten steps, then down to zero in a line.
        share = min(1, (step + 1) / 10) * (1 - step / plan.steps)
        for group, (_, rate) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = rate * share
        factors = sample_factors(
            batch, seed=1000 + plan.seed, start=step * batch, correlation=plan.correlation, training=True
        )
        logits = model(pixel_values=to_pixels(render(factors)[0])).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(factors.shape))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def targets(n: int) -> dict[str, Any]:
    """Sets of n shifted scenes: conflicting ones, and home scenes under corruptions."""
    from circuits.comparison import corrupted
    from mechvis.data import scenes

    sets = {"conflicting": scenes(n, seed=SEED + 1, group="conflicting")}
    for place, (kind, severity) in enumerate([("blur", 4), ("noise", 4), ("colour", 5), ("background", 5)]):
        home = scenes(n, seed=SEED + 10 + place, correlation=HOME)
        sets[f"{kind} {severity}"] = corrupted(home, kind, severity)
    return sets


def true_accuracy(folder: Path, n: int) -> dict[str, dict[str, float]]:
    """Accuracy of every model at home and on every target, on n scenes each: the truth that scores are held to."""
    import mechvis
    from circuits.comparison.baselines import answers

    sets = {"home": mechvis.data.scenes(n, seed=SEED, correlation=HOME), **targets(n)}
    found: dict[str, dict[str, float]] = {}
    for plan in plans():
        model = mechvis.load(str(folder / plan.name))
        found[plan.name] = {name: float(answers(model, images)["accuracy"].mean()) for name, images in sets.items()}
        print(plan.name, found[plan.name], flush=True)
    return found


def models_part(folder: Path, accuracy: dict[str, dict[str, float]], target: str, n: int) -> dict[str, Any]:
    """DDB of all models on one target, and its correlation with the true accuracy in several groups of models."""
    import mechvis
    from circuits.comparison import compare_models
    from circuits.comparison.agreement import agreement

    images = targets(n)[target]
    home = mechvis.data.scenes(200, seed=SEED + 2, correlation=HOME)
    found = compare_models(
        {plan.name: str(folder / plan.name) for plan in plans()},
        images,
        id_images=home,
        accuracies={name: values[target] for name, values in accuracy.items()},
        progress=False,
    )
    found.save(folder / "comparisons" / f"models-{target.replace(' ', '-')}")
    groups = {
        "fine-tuned, all": [plan.name for plan in plans() if plan.family == "fine-tuned"],
        "fine-tuned at 0.95": [p.name for p in plans() if p.family == "fine-tuned" and p.correlation == HOME],
        "heads": [plan.name for plan in plans() if plan.family == "heads"],
    }
    scores = ("ddb_out", "ddb_deep", "ddb_global", "id_accuracy", "confidence", "negative_entropy", "atc")
    out: dict[str, Any] = {"n": int(found.table["n"][0]), "groups": {}, "table": found.table.to_dicts()}
    for group, names in groups.items():
        rows = {row["model"]: row for row in found.table.to_dicts()}
        values = {score: np.array([rows[name][score] for name in names]) for score in scores}
        own = np.array([accuracy[name][target] for name in names])
        out["groups"][group] = {
            "models": len(names), "accuracy": [float(own.min()), float(own.max())],
            "correlations": agreement(values, own).to_dicts(),
        }  # fmt: skip
    return out


def data_part(folder: Path, name: str, n: int) -> dict[str, Any]:
    """CSS of one model over the whole ladder, correlated with accuracy, for three distances; and the alarm."""
    import mechvis
    from circuits.comparison import alarm_threshold, compare_data, ladder
    from circuits.comparison.agreement import agreement
    from circuits.comparison.distances import DISTANCES, distance
    from mechvis.errors import MechvisError

    model = mechvis.load(name if name == "scenes-vit" else str(folder / name))
    reference = mechvis.data.scenes(3 * n, seed=SEED + 40, correlation=HOME)
    started = time.process_time()
    found = compare_data(
        model, reference, ladder(mechvis.data.scenes(n, seed=SEED + 41, correlation=HOME)), progress=False
    )
    seconds = time.process_time() - started
    found.save(folder / "comparisons" / f"data-{name}")
    table = found.table.to_dicts()
    sets = [row["set"] for row in table if row["role"] == "other"]
    accuracy = np.array([row["accuracy"] for row in table if row["role"] == "other"])
    whole = found.arrays["weights/reference"]
    values = {}
    for kind in DISTANCES:
        for mass in (0.95, 1.0):
            values[f"{kind}, {'all edges' if mass == 1 else 'top 95 % of the mass'}"] = np.array(
                [distance(whole, found.arrays[f"weights/{name}"], kind, top_mass=mass) for name in sets]
            )
    try:
        alarm = asdict(alarm_threshold(found, 0.9 * float(table[0]["accuracy"])))
    except MechvisError as error:
        alarm = {"error": str(error)}
    return {
        "table": table, "correlations": found.correlations.to_dicts(), "seconds": seconds, "alarm": alarm,
        "distances": agreement(values, accuracy).to_dicts(),
    }  # fmt: skip


def false_alarms(n: int, windows: int) -> dict[str, Any]:
    """Fresh windows of home scenes against the floor: how often p < 0.05, and how often beyond the 99th percentile."""
    import mechvis
    from circuits.comparison import css
    from circuits.comparison.graphs import scores_on
    from circuits.edges.graph import EdgeGraph

    model = mechvis.load("scenes-vit")
    means = mechvis.data.scenes(100, seed=SEED + 60, correlation=HOME)
    pool = scores_on(model, mechvis.data.scenes((2 * 4 + windows) * n, seed=SEED + 61, correlation=HOME), means).values
    graph = EdgeGraph.of(model)
    rows = []
    for at in range(4):
        # Four reference sets, so that one that is unlike its source does not speak for all.
        reference = pool[:, 2 * n * at : 2 * n * (at + 1)]
        for window in range(windows):
            start = (8 + window) * n
            found = css(reference, pool[:, start : start + n], graph=graph, seed=at)
            rows.append((found.p, found.above_floor, found.matched, found.floor_mean))
    p, above, matched, floor = map(np.array, zip(*rows, strict=True))
    return {
        "n": n, "windows": windows, "references": 4, "below 0.05": float((p <= 0.05).mean()),
        "beyond 99 %": float(above.mean()), "matched": float(matched.mean()), "floor": float(floor.mean()),
    }  # fmt: skip


def known_answers() -> dict[str, Any]:
    """F4 and planted noise."""
    from circuits.attribution.eap import edge_values
    from circuits.comparison import data_graph, ddb, distance
    from circuits.task import task
    from mechvis.testing.planted import depth_net, depth_pairs

    depth = []
    for g in (-0.4, 0.0, 0.4):
        model, pairs = depth_net(g), depth_pairs(8)
        made = task(model, pairs.clean, ablation="zero", metric="logit_diff", labels="predicted")
        exact = ddb(edge_values(made), graph=made.graph).value
        graph = data_graph(model, pairs.clean, mean_images=depth_pairs(4).clean, progress=False)
        depth.append({"g": g, "asked": round(9 * g, 9), "logit_diff": exact, "kl": ddb(graph).value})
    planted: dict[str, Any] = {}
    for sigma in (0.1, 0.5, 1.0, 3.0):
        found: dict[str, list[float]] = {}
        for seed in range(20):
            rng = np.random.default_rng(seed)
            weights = rng.normal(size=2000) * np.exp(-2 + 1.5 * rng.normal(size=2000))
            moved = weights + sigma * rng.normal(size=2000)
            for kind, mass in (("spearman", 1.0), ("cosine", 1.0), ("spearman", 0.95)):
                found.setdefault(f"{kind} {mass:g}", []).append(distance(weights, moved, kind, top_mass=mass))
        planted[f"{sigma:g}"] = {name: float(np.mean(values)) for name, values in found.items()}
    return {"depth": depth, "planted": planted}


def main() -> int:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/comparison"), help="folder for models and parts")
    parser.add_argument("--page", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = options.work
    (work / "parts").mkdir(parents=True, exist_ok=True)

    def part(name: str, make: Any, *arguments: Any) -> Any:
        file = work / "parts" / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(make(*arguments), indent=1), encoding="utf-8")
            print("done:", name, flush=True)
        return json.loads(file.read_text(encoding="utf-8"))

    parts: dict[str, Any] = {"known": part("known", known_answers)}
    for plan in plans():
        build(plan, work)
    accuracy = part("accuracy", true_accuracy, work, 300)
    parts["accuracy"] = accuracy
    parts["models"] = {
        target: part(f"models-{target.replace(' ', '-')}", models_part, work, accuracy, target, 80)
        for target in targets(2)
    }
    watched = ("scenes-vit", "tuned-0.8-0.0004-120-s0", "head-0-0.001-s0")
    parts["data"] = {name: part(f"data-{name}", data_part, work, name, 80) for name in watched}
    parts["false alarms"] = part("false-alarms", false_alarms, 80, 20)
    options.page.write_text(page(parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
