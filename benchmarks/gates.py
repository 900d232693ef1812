"""Do the gates of a card catch explanations that are wrong, and let exact ones pass? `python -m benchmarks.gates`.

1. A seed is a subject: one trained model of planted suite B (variant and model take turns), 24 images of its own, and
   the seed of everything drawn. Twenty of them.
2. Every known-bad explainer (`mechvis.testing.evidence.bad`) and every good one is put before the gates of a smoke card
   of each subject. Bad: caught if any gate fails. Good: a false alarm if any does.
3. The same for rankings of heads: exact effects of two halves of the images, and three ways to get them wrong.

The gates are the card's own functions, but for G6 and G7, which `gates_rules` decides from the numbers that are kept;
curves that decide nothing are not measured. G7 is asked of the models of the seed, with 8 images each as in a smoke
card. Rows are kept in `gates.json` as they are finished, so that a run goes on where it was stopped; `--only NAME` runs
some explainers, `--page` writes the page alone.
"""

import argparse
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gates_page import page
from benchmarks.gates_rules import failed_gates
from mechvis import stats
from mechvis.attribution.method import Method
from mechvis.attribution.question import Question
from mechvis.cards import asking
from mechvis.cards import attribution_gates as gates
from mechvis.cards import of_attribution as card
from mechvis.cards.draft import Draft
from mechvis.faithfulness.answers import Answers
from mechvis.faithfulness.curves import Abpc
from mechvis.removal.game import Game
from mechvis.removal.operators import operator
from mechvis.target import Target
from mechvis.testing import evidence
from mechvis.testing.evidence import bad
from mechvis.testing.evidence.bad import BAD, GOOD, LIMITED

SEEDS, IMAGES, PLANTED_IMAGES = 20, 24, 8
FIRST_IMAGE_SEED = 7_000
HERE = Path(__file__).with_name("gates.json")
FRESH = HERE.with_name("gates_fresh.json")
"""Seeds that chose no threshold."""
LEVEL = "smoke"
EXPLAINERS: dict[str, Method] = {
    **{name: kind() for name, kind in BAD.items()},
    **{f"good: {name}": one for name, one in GOOD.items()},
    **{f"limited: {name}": one for name, one in LIMITED.items()},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What one seed stands for."""

    name: str
    """Planted model."""
    ask: Question
    """Its images, and the score that is explained."""
    answers: dict[str, Answers]
    """Removal games by operator; they remember what they were asked."""
    control_areas: dict[tuple[str, str], np.ndarray]
    """ABPC of each control, by (operator, control)."""


@lru_cache(maxsize=2)
def subject(seed: int, n: int = IMAGES) -> Subject:
    """The model, images and controls of a seed."""
    variants = evidence.variants_of("B")
    variant = variants[seed % len(variants)]
    numbers = evidence.seeds_of(variant)
    planted = evidence.load(variant, numbers[seed // len(variants) % len(numbers)])
    pixels = evidence.variant(variant).draw(n, FIRST_IMAGE_SEED + seed).pixels
    predicted = planted.model.run(pixels).output.argmax(1)
    ask = Question(
        model=planted.model,
        pixels=pixels,
        target=Target(classes=predicted, rule="predicted"),
        ids=torch.arange(n),
        seed=seed,
    )
    names = card.OPERATORS[LEVEL]
    answers = {
        name: Answers(
            Game(model=ask.model, pixels=pixels, target=ask.target, operator=operator(name), ids=ask.ids, seed=seed)
        )
        for name in names
    }
    areas = {}
    for control in card.CONTROLS:
        maps = asking.ask_in_batches(control, ask)
        for name in names:
            areas[name, control.NAME] = _area(maps, answers[name], name)
    return Subject(name=planted.name, ask=ask, answers=answers, control_areas=areas)


def gates_of(method: Method, seed: int, *, n: int = IMAGES, planted_images: int = PLANTED_IMAGES) -> dict[str, Any]:
    """The gates of a smoke card: `{"subject", "gates": {id: [status, statistic]}, ...}`."""
    where = subject(seed, n)
    maps, gap = asking.whole_in_batches(method, where.ask)
    asked = gates.Asked(method=method, ask=where.ask, maps=maps, gap=gap)
    draft = Draft(kind="attribution", object_id="", subject={}, method={}, data={}, task={}, level=LEVEL, seed=seed)
    gates.finite(draft, asked)
    found: dict[str, Any] = {"subject": where.name}
    if bool(torch.isfinite(maps).all()):
        gates.no_op(draft, asked, {name: one.game for name, one in where.answers.items()})
        gates.complete(draft, asked)
        gates.random_weights(draft, asked, card.COPIES[LEVEL])
        gates.target(draft, asked)
        gates.invariance(draft, asked)
        own = {name: _area(maps, answers, name) for name, answers in where.answers.items()}
        found["better"] = _intervals(own, where.control_areas, seed)
        found["planted"] = _planted(method, seed, planted_images)
        if method.CLAIMS.random:
            again = asking.ask_in_batches(method, replace(asked.few, seed=seed + 1))
            found["between_seeds"] = float(
                np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(again, maps, strict=False)])
            )
    found["gates"] = {gate.id: [gate.status, gate.statistic] for gate in draft.gates}
    return found


def _area(maps: torch.Tensor, answers: Answers, name: str) -> np.ndarray:
    return Abpc(steps=card.STEPS[LEVEL], operator=name).measure(maps, answers).values


def _intervals(own: dict, controls: dict, seed: int) -> dict[str, list[float]]:
    """(low, high) of the paired 95 % interval: ABPC minus that of each control, under each operator."""
    found = {}
    for (name, who), values in controls.items():
        one = stats.paired_difference(own[name], values, seed=seed)
        found[f"{who}/{name}"] = [float(one.low[0]), float(one.high[0])]
    return found


def _planted(method: Method, seed: int, n: int) -> dict[str, list[float]]:
    """AUROC and contest on each planted model; NaN where the method fails."""
    found = evidence.score(method, seed=seed, models=seed % 3, n=n).table
    return {row["variant"]: [row["auroc"], row["contest"]] for row in found.iter_rows(named=True)}


def share_the_good_map() -> None:
    """Let the broken explainers share the map that they break: asked the same, it is the same."""
    plain, known = bad._good, {}

    def good(ask: Question) -> Any:
        told = (ask.model.fingerprint, ask.pixels.numpy().tobytes(), tuple(ask.target.classes.tolist()))
        key = hash(told)
        if key not in known:
            known[key] = plain(ask)
        return known[key]

    bad._good = good


def read(path: Path = HERE) -> dict[str, Any]:
    """Rows so far, by `explainer/seed`."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(rows: dict[str, Any], path: Path = HERE) -> None:
    """Keep the rows, one a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    path.with_suffix(".part").write_text("{\n" + lines + "\n}\n")
    path.with_suffix(".part").replace(path)


def run(only: list[str] | None = None, seeds: int = SEEDS, path: Path = HERE, first: int = 0) -> dict[str, Any]:
    """Everything that is not there yet; seed by seed, so that a stopped run has judged all explainers equally."""
    from benchmarks.gates_rankings import RANKINGS, ranking_gates

    share_the_good_map()
    for seed in range(first, first + seeds):
        for name in [*EXPLAINERS, *RANKINGS]:
            key = f"{name}/{seed}"
            if key in read(path) or (only and name not in only):
                continue
            row = gates_of(EXPLAINERS[name], seed) if name in EXPLAINERS else ranking_gates(name, seed)
            write(read(path) | {key: row}, path)
            failed = failed_gates(row)
            print(key, row["subject"], "caught by" if failed else "passes", *failed, flush=True)
    return read(path)


def main() -> None:
    """Run and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gates", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="explainers")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0, help="first seed; others than 0 are kept in gates_fresh.json")
    parser.add_argument("--page", action="store_true", help="write the page of what is there")
    given = parser.parse_args()
    if given.first:
        run(given.only, given.seeds, FRESH, given.first)
    rows = read() if given.page or given.first else run(given.only, given.seeds)
    HERE.with_suffix(".md").write_text(page(rows, read(FRESH) if FRESH.exists() else None))


if __name__ == "__main__":
    main()
