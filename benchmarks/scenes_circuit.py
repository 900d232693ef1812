"""The circuits of the bundled classifier for object and background, found on some pairs and judged on others:
`python -m benchmarks.scenes_circuit`.

For object swaps and for background swaps: pairs that the model tells apart, split in two halves; EAP-IG on the first
half; the smallest of a few sizes whose faithfulness there reaches 0.9; judged on the second half (CPR, CMD, random
circuits of the same layer profile); stability over two halves of the first. Writes `docs/scenes_circuit.md` and the two
figures beside it.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

import circuits
import mechvis
from circuits.drawing import attention_pictures
from circuits.evaluation import stability
from mechvis.cli import say

DOCS = Path(__file__).parent.parent / "docs"
SIZES = (5, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320)
ENOUGH = 0.9
SEED = 900
MEASURES = (
    "faithfulness",
    "necessity",
    "CPR",
    "CPR, log size",
    "CPR, random order",
    "CMD",
    "CMD, log size",
    "CMD, random order",
    "percentile, random edges",
)


def study(model: Any, change: str, n: int) -> dict[str, Any]:
    """Find, judge and draw one circuit."""
    started = time.perf_counter()
    made = circuits.pairs.scene_swap(model, n, change=change, seed=SEED)
    kept = circuits.pairs.check_pairs(model, made, 1.0, entropy_ratio=None).kept(made)
    first, second = (circuits.task(model, half) for half in kept.halves(SEED))
    scores = circuits.eap(first, verify=64, progress=False)
    faithful = {}
    for size in SIZES:
        circuit = circuits.select(scores, size)
        faithful[size] = float(first.faithfulness(first.measure(circuit.kept[None]))[0])
        if faithful[size] >= ENOUGH:
            break
    judged = circuits.evaluate(circuit, second, scores=scores, progress=False)
    steady = stability(first, lambda half: circuits.eap(half, verify=0, progress=False), n_edges=len(circuit))
    shown = attention_pictures(model, second.clean[:1], circuit.nodes)
    circuits.draw(circuit, pictures=shown, max_edges=120, path=DOCS / f"scenes_circuit_{change}.svg")
    return {
        "change": change,
        "asked": n,
        "kept": len(kept),
        "found_on": len(first),
        "judged_on": len(second),
        "circuit": circuit,
        "sizes": faithful,
        "agreement": scores.provenance["agreement"],
        "evaluation": judged,
        "stability": steady,
        "seconds": time.perf_counter() - started,
    }


def page(found: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Object and background in the bundled classifier: two circuits",
        "",
        "Made by `python -m benchmarks.scenes_circuit`. Pairs are scenes drawn twice, with another object or another",
        "background; kept are those where the model is right on the clean half and says something else on the other.",
        "Edges are scored by EAP-IG (10 midpoints) on half of the pairs; the circuit is the smallest tried whose",
        f"faithfulness there is at least {ENOUGH}; everything below is measured on the other half.",
        "",
    ]
    for one in found:
        circuit, judged = one["circuit"], one["evaluation"]
        agree = one["agreement"]
        tried = ", ".join(f"{size}: {value:.2f}" for size, value in one["sizes"].items())
        lines += [
            f"## {one['change'].capitalize()} swap",
            "",
            f"{one['kept']} of {one['asked']} pairs kept; found on {one['found_on']}, judged on {one['judged_on']}.",
            f"Circuit: {len(circuit)} of {circuit.graph.n_edges} edges; components {', '.join(circuit.nodes)}.",
            f"Faithfulness by number of edges asked for, on the first half: {tried}.",
            "",
            "| on the second half | | 95 % interval |",
            "|---|---:|---|",
        ]
        for name in MEASURES:
            row = judged.measure(name)
            ends = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(f"| {name} | {row['value']:.3f} | {ends} |")
        steady = repr(one["stability"]).removeprefix("Stability(").removesuffix(")")
        lines += [
            "",
            f"Estimates beside exact patching of {agree['n_top']} top and {agree['n_random']} random edges: "
            f"rank correlation {agree['spearman']:.2f}, same sign {agree['sign']:.2f}, "
            f"estimated / exact {agree['ratio']:.2f}, "
            f"largest random one {agree['missed']:.2f} of the largest of the top.",
            f"Stability: {steady}.",
            "",
            f"![{one['change']} swap](scenes_circuit_{one['change']}.svg)",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Both studies and the page."""
    torch.set_num_threads(1)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    model = mechvis.load("scenes-vit")
    found = []
    for change in ("object", "background"):
        found.append(study(model, change, n))
        say(f"{change}: {found[-1]['seconds']:.0f} s\n{found[-1]['evaluation']}\n{found[-1]['stability']}")
    (DOCS / "scenes_circuit.md").write_text(page(found))


if __name__ == "__main__":
    main()
