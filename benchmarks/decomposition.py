"""What a decomposition costs beside a plain forward: `python -m benchmarks.decomposition`.

A ViT-B/16 and a ViT-L/14 of random weights, 1,000 classes, one thread, batches of images. Contenders, interleaved,
median of the process's time on the processor: the plain forward; `mechvis.decompose.terms` of the last four layers, of
all layers, of the last four with every token; and the straightforward way (every head's `hook_result` at every token,
the norm and the head applied to each), which is also the twin that the terms are compared with.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mechvis
from benchmarks import memory
from benchmarks.models import SIZES
from mechvis import files
from mechvis.data.preprocess import plain_scaling
from mechvis.decompose.terms import fix, terms
from mechvis.provenance import versions

HERE = Path(__file__).parent
CONTENDERS = ("plain forward", "last four layers", "all layers", "last four, every token", "results of every head")


def model_of(name: str) -> Any:
    """A wrapped ViT of random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    size = {"hidden_size": 768, "num_hidden_layers": 12, **SIZES[name]}
    module = ViTForImageClassification(ViTConfig(**size)).eval()
    return mechvis.load(module, preprocess=plain_scaling(224, 224))


def contenders(model: Any, pixels: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Everybody who does the task, by name."""
    last, every, token = (fix(model, layers=layers, tokens=t) for layers, t in ((-4, False), (None, False), (-4, True)))
    return {
        "plain forward": lambda: model.run(pixels).output,
        "last four layers": lambda: terms(model, pixels, fixed=last),
        "all layers": lambda: terms(model, pixels, fixed=every),
        "last four, every token": lambda: terms(model, pixels, fixed=token),
        "results of every head": lambda: straightforward(model, pixels),
    }


@torch.no_grad()
def straightforward(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Every head's result at every token of the last four layers, then the norm and the head on the class token."""
    n = len(model.parts.blocks)
    sites = [f"blocks.{layer}.attn.hook_result" for layer in range(n - 4, n)]
    cache = model.run(pixels, capture=[*sites, "ln_final.hook_scale"]).cache
    results = torch.cat([cache[site] for site in sites], dim=2)
    centred = results - results.mean(-1, keepdim=True)
    normed = centred / cache["ln_final.hook_scale"][:, :, None] * model.parts.ln_final.weight
    return normed[:, 0] @ model.bare.classifier.weight.T


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Median seconds per image by contender, and how far the twin differs."""
    model = model_of(name)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    who = contenders(model, pixels)
    twin = straightforward(model, pixels)
    found = terms(model, pixels, layers=-4)
    heads = found.values[:, list(found.heads.values())]
    times: dict[str, list[float]] = {contender: [] for contender in who}
    for turn in range(rounds):
        order = list(who.items())
        for contender, run in order if turn % 2 == 0 else reversed(order):
            began = time.process_time()
            run()
            times[contender].append((time.process_time() - began) / batch)
    peaks = {contender: _peak(name, batch, contender) for contender in who}
    return {
        "model": name,
        "batch": batch,
        "rounds": rounds,
        "seconds": {contender: statistics.median(taken) for contender, taken in times.items()},
        "peak": peaks,
        "twin": float((heads - twin).abs().max() / heads.abs().max()),
        "error": found.error,
    }


def _peak(name: str, batch: int, contender: str) -> float:
    """MiB beyond what was there before, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.decomposition", "--batch", str(batch)]
    done = subprocess.run([*command, "--one", contender, "--model", name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one(name: str, batch: int, contender: str) -> float:
    """Peak of one contender in this process."""
    model = model_of(name)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    run = contenders(model, pixels)[contender]
    model.run(pixels[:1])
    before = memory._begin("cpu")
    run()
    return memory._end("cpu")[0] - before


def page(found: list[dict[str, Any]]) -> str:
    """The table."""
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        "# What a decomposition costs",
        "",
        f"`python -m benchmarks.decomposition`; one thread, {said}. Random weights, 1,000 classes. Times are medians "
        "of the process's time on the processor, interleaved, per image. *Peak*: memory beyond what was there after "
        "one image had gone through the model, in a process of its own.",
        "",
        "| model | contender | s per image | of a plain forward | peak (MiB) |",
        "|---|---|---:|---:|---:|",
    ]
    for part in found:
        plain = part["seconds"]["plain forward"]
        lines += [
            f"| {part['model']}, batch {part['batch']} | {name} | {taken:.3f} | {taken / plain:.3f} | "
            f"{part['peak'][name]:.0f} |"
            for name, taken in part["seconds"].items()
        ]
    lines += [
        "",
        *(
            f"* {part['model']}: sum of the terms beside the logits {part['error']:.1e} (float32, relative), heads "
            f"beside the straightforward way {part['twin']:.1e}; {part['rounds']} rounds."
            for part in found
        ),
        "",
        "The straightforward way makes `[image token head d_model]` results; the terms pool `z` over tokens first and "
        "meet `W_O`, the gain of the norm and the head folded into one matrix per head.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", default=None)
    parser.add_argument("--out", type=Path, default=HERE / "decomposition.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one(options.model, options.batch, options.one)))
        return
    names = [options.model] if options.model else ["ViT-B/16", "ViT-L/14"]
    found = [measure(name, options.batch, options.rounds) for name in names]
    files.write_text(options.out, page(found))
    print(page(found))


if __name__ == "__main__":
    main()
