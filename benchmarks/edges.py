"""Edge attribution without forked streams beside the usual form: time and memory per image: `python -m
benchmarks.edges`.

All 32,491 edges of a ViT-B/16 (random weights, one image), EAP and EAP-IG with 10 steps. The usual form keeps what
every writer writes in `d_model` and one stream per reader, with their graph (`circuits/attribution/split.py`, our plain
twin); ours keeps heads `d_head` wide and takes gradients at q, k and v (hooks_circuits.md 4.7). Both give the same
numbers, which is checked. Every measurement is a process of its own. Writes `edges.md` beside this file.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import memory

HERE = Path(__file__).parent
MIB = 2**20
WAYS = {
    "forward": "one forward of the wrapped model, no graph",
    "backward": "one forward and backward of the metric, gradient at the embedding only",
    "eap": "EAP, mechvis",
    "eap split": "EAP, forked streams",
    "ig": "EAP-IG, 10 steps as rows of one batch, mechvis",
    "ig one by one": "EAP-IG, 10 steps, one row at a time, mechvis (`budget=` small)",
    "ig split": "EAP-IG, 10 steps one after the other, forked streams",
}
ROUNDS = int(os.environ.get("ROUNDS", "3"))
"""Timings per way, after the one in which memory is measured."""


def one(way: str, size: str) -> dict[str, Any]:
    """In a process of its own: time (s) and peak memory (MiB) of one image, and a checksum of the scores."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import models
    from circuits.attribution import eap
    from circuits.attribution.split import split_scores
    from circuits.pairs.pairs import Pairs
    from circuits.task import task

    work_on = {}
    for name in ("toy", size):
        model = models.hooked(name, models.Place())
        pixels = torch.randn(2, 3, *model.parts.image_size, generator=torch.Generator().manual_seed(0))
        pairs = Pairs(name="noise", clean=pixels[:1], corrupt=pixels[1:], ids=("noise",))
        made = task(model, pairs, metric="logit", max_undistinguished=1.0)
        work_on[name] = made, made.batch(range(1))
        made.wires  # noqa: B018  made once per study, not per image

    def work(name: str) -> Any:
        made, batch = work_on[name]
        metric = eap._metric(made, batch, 1)
        if way == "forward":
            return made.model.run(made.clean).output
        if way == "backward":
            stream = batch.clean.embed.clone().requires_grad_(True)
            with torch.enable_grad():
                x = stream
                for block in made.model.parts.blocks:
                    x = eap.plain.plain(block, x)
                out = eap.plain.read_out(made.model.parts, x, lambda tokens: tokens[:, [0]])
                return torch.autograd.grad(metric(out).sum(), stream)[0]
        method = "eap" if way.startswith("eap") else "ig"
        if way.endswith("split"):
            return split_scores(made, batch, method=method, steps=10)
        if way == "ig one by one":
            return sum(one_point(made, batch, point) for point in eap.path(10, "midpoint")) / 10
        return eap.batch_scores(made, batch, method=method, steps=10, rule="midpoint")

    def one_point(made: Any, batch: Any, point: float) -> torch.Tensor:
        scores = batch.clean.embed.new_zeros(1, *made.graph.shape)
        stream = eap.interpolated(batch.clean.embed, batch.base.embed, [point])
        differences = eap.Differences.of(batch.clean, batch.base)
        taps = eap.tap(made.model, stream, eap._metric(made, batch, 1), batch.clean.layout)
        with torch.no_grad():
            for readers, gradient in eap.reader_gradients(taps, made.wires):
                eap.contract(scores, differences, readers, gradient, made.wires)
        return scores

    work("toy")
    gc.collect()
    memory.give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before, times = memory.resident("VmRSS"), []
    answer = work(size)
    peak = memory.resident("VmHWM") - before
    for _ in range(ROUNDS):
        start = time.process_time()
        answer = work(size)
        times.append(time.process_time() - start)
    probe = answer.double()
    return {"seconds": statistics.median(times), "peak": peak, "check": [float(probe.abs().sum()), float(probe.sum())]}


def main() -> None:
    """Measure all ways and write the table."""
    size = sys.argv[1] if len(sys.argv) > 1 else "ViT-B/16"
    found = {}
    for way in WAYS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.edges", "--one", way, size]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        sys.stdout.write(f"{way}: {found[way]['seconds']:.2f} s, {found[way]['peak']:.0f} MiB\n")
        sys.stdout.flush()
    for fast, slow in (("eap", "eap split"), ("ig", "ig split"), ("ig one by one", "ig split")):
        for own, other in zip(found[fast]["check"], found[slow]["check"], strict=True):
            assert abs(own - other) <= 1e-3 * found[slow]["check"][0], (fast, own, other)
    (HERE / "edges.json").write_text(json.dumps(found, indent=2) + "\n")
    (HERE / "edges.md").write_text(page(found, size))


def page(found: dict[str, Any], size: str) -> str:
    """The table."""
    backward = found["backward"]["seconds"]
    rows = [
        f"| {WAYS[way]} | {row['seconds']:.2f} | {row['seconds'] / backward:.2f} | {row['peak']:.0f} |"
        for way, row in found.items()
    ]
    ratio = {
        name: (found[a]["seconds"] / found[b]["seconds"], found[b]["peak"] / found[a]["peak"])
        for name, (a, b) in {
            "EAP": ("eap", "eap split"),
            "EAP-IG": ("ig", "ig split"),
            "EAP-IG one row at a time": ("ig one by one", "ig split"),
        }.items()
    }
    lines = [
        f"* {name}: {time_ratio:.2f} of the forked form's time; that form peaks at {memory_ratio:.1f} times the memory."
        for name, (time_ratio, memory_ratio) in ratio.items()
    ]
    return "\n".join(
        [
            "# Edge attribution: time and memory per image",
            "",
            f"`python -m benchmarks.edges`: {size}, random weights, one image, all edges, float32, one CPU thread.",
            f"Time is the process's time on the processor (median of {ROUNDS}); the peak is resident memory beyond",
            "model, libraries and the recorded runs. *x backward*: of one forward and backward pass.",
            "",
            "| way | s | x backward | peak MiB |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            *lines,
            "",
            "What is stored by arithmetic on shapes, per image of a ViT-B/16: forked form 95 MB (differences) + 87",
            "(head results) + 261 (forks, and as much again after the norm); here 15 MB (differences, `d_head` wide)",
            "+ 22 (gradients at q, k, v) + 22 (one layer of readers). The peaks also hold the graph of the pass.",
            "",
        ]
    )


if __name__ == "__main__":
    if "--one" in sys.argv:
        place = sys.argv.index("--one")
        print(json.dumps(one(sys.argv[place + 1], sys.argv[place + 2])))
    else:
        main()
