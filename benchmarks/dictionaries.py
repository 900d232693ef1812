"""Training steps of dictionaries beside other libraries: `python -m benchmarks.dictionaries --peers PYTHON`.

One thread (or one GPU), the same rows, the same initial weights, the same batches, Adam at one learning rate, no
schedule, no loss of dead latents. Every contender is a process of its own, kept waiting between its turns; after some
steps to warm up, all take turns of a few steps, in an order that is reversed every round, so that whatever else a
machine does hits all alike. Told are medians of a step's time on the processor (of the clock on a GPU), and FVU on rows
that were not trained on, before the first step and after the last one.

The libraries live in an environment of their own (see the page), whose Python is given as `--peers`. What was measured
is kept in `dictionaries.json`, by device and size; a size that is there is not measured again unless `--again` is
given. `--page` only draws the page.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.dictionary_contenders import CONTENDERS, OURS
from mechvis import files

HERE = Path(__file__).parent
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d": 64, "n": 1024, "k": 4, "batch": 128, "batches": 4, "warm": 3, "turn": 2, "rounds": 2},
    "small": {"d": 256, "n": 8192, "k": 32, "batch": 512, "batches": 32, "warm": 20, "turn": 4, "rounds": 8},
    "large": {"d": 768, "n": 12288, "k": 32, "batch": 2048, "batches": 8, "warm": 3, "turn": 1, "rounds": 5},
    "gpu-24576": {"d": 768, "n": 24576, "k": 32, "batch": 8192, "batches": 16, "warm": 20, "turn": 10, "rounds": 8},
    "gpu-98304": {"d": 768, "n": 98304, "k": 32, "batch": 8192, "batches": 16, "warm": 20, "turn": 5, "rounds": 8},
}
"""What is trained; `tiny` is a rehearsal."""
IDEAL = {"gpu-24576": 7.7e6, "gpu-98304": 2.61e6}
"""Rows per second of a roofline of one H200 (790 TFLOP/s in bf16, 4.3 TB/s) with the top-k inside the product and the
optimiser in one pass: an estimate, not a measurement."""
LR = 1e-3


def prepare(size: dict[str, Any], folder: Path, device: str, threads: int) -> None:
    """Rows that are sparse sums of directions with some noise, and weights to start from."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(0)
    d, n = size["d"], size["n"]
    count, held_out = size["batch"] * size["batches"], 2048 if n > 2048 else 512
    directions = torch.nn.functional.normalize(torch.randn(2 * d, d, generator=g), dim=1)
    rows = torch.empty(count + held_out, d)
    for part in rows.split(4096):
        at = torch.randint(0, 2 * d, (len(part), 16), generator=g)
        strength = torch.rand(len(part), 16, generator=g) + 0.5
        part.copy_(torch.nn.functional.embedding_bag(at, directions, per_sample_weights=strength, mode="sum"))
        part.add_(0.02 * torch.randn(part.shape, generator=g)).add_(0.3 * directions[0])
    W = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    tensors = {"rows": rows[:count].clone(), "held_out": rows[count:].clone(), "mean": rows[:count].mean(0), "W": W}
    save_file(tensors, folder / "start.safetensors")
    plan = {name: size[name] for name in ("d", "n", "k", "batch")} | {"lr": LR, "device": device, "threads": threads}
    files.write_json(folder / "plan.json", plan)


class Contender:
    """A process that takes steps when it is told to."""

    def __init__(self, name: str, python: str, folder: Path, threads: int):
        ours = {"PYTHONPATH": str(HERE.parent)} if name in OURS else {"PYTHONPATH": ""}
        one = {word: str(threads) for word in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [python, "-P", "-W", "ignore", str(HERE / "dictionary_contenders.py"), name, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=os.environ | ours | one,
        )  # fmt: skip

    def answer(self, **asked: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; without a question, wait for the process to be ready.

        Raises:
            RuntimeError: it ended; with the last line of what it said.
        """
        try:
            if asked:
                self.process.stdin.write(json.dumps(asked) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["nothing"]
            raise RuntimeError(said[-1][:300])
        return json.loads(line)

    def end(self) -> None:
        """End it: without input it stops by itself."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.errors.close()


def measure(names: list[str], size: dict[str, Any], peers: str | None, device: str, threads: int) -> dict[str, Any]:
    """Interleaved rounds of some contenders at one size.

    Args:
        names: of `CONTENDERS`.
        size: of `SIZES`.
        peers: Python that has the other libraries; None: only our own take part.
        device: where to train.
        threads: of every contender.

    Returns:
        By contender: seconds of each measured step, FVU before and after; or why it did not run.
    """
    found: dict[str, Any] = {}
    running: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        prepare(size, folder, device, threads)
        for name in names:
            if name not in OURS and peers is None:
                continue
            contender = Contender(name, sys.executable if name in OURS else peers, folder, threads)
            try:
                ready = contender.answer()
                before = contender.answer(judge=True)
                contender.answer(steps=size["warm"])
            except RuntimeError as error:
                found[name] = {"failed": str(error)}
                contender.end()
                continue
            running[name] = contender
            found[name] = {"seconds": [], "start": before["fvu"], "torch": ready["torch"]}
        for turn in range(size["rounds"]):
            for name in list(running) if turn % 2 == 0 else list(reversed(running)):
                found[name]["seconds"].append(running[name].answer(steps=size["turn"])["seconds"])
        for name, contender in running.items():
            found[name] |= contender.answer(judge=True)
            contender.end()
    return found


def machine(peers: str | None, device: str) -> dict[str, Any]:
    """What the page says of machine and versions."""
    asked = ("sae-lens", "dictionary-learning", "overcomplete", "eai-sparsify", "torch")
    code = (
        "import json\nfrom importlib.metadata import version, PackageNotFoundError\nfound={}\n"
        f"for name in {asked!r}:\n try: found[name]=version(name)\n except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    versions = {}
    if peers is not None:
        versions = json.loads(subprocess.run([peers, "-c", code], capture_output=True, text=True, check=True).stdout)
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    from sae.screen import native

    return {
        "processor": processor if device == "cpu" else torch.cuda.get_device_name(device),
        "bf16": native() if device == "cpu" else True,
        "peers": versions,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def step_of(found: dict[str, Any]) -> float:
    """Median seconds of a step."""
    return statistics.median(second for turn in found["seconds"] for second in turn)


def spread_of(found: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float]:
    """How many times as fast the first is as the other: of the medians, and the quartiles over rounds."""
    pairs = zip(found["seconds"], other["seconds"], strict=True)
    rounds = sorted(statistics.median(theirs) / statistics.median(mine) for mine, theirs in pairs)
    low, high = rounds[len(rounds) // 4], rounds[-1 - len(rounds) // 4]
    return step_of(other) / step_of(found), low, high


def main() -> None:
    """The command."""
    from benchmarks.dictionaries_page import page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=None, help="Python that has the other libraries")
    parser.add_argument("--size", choices=list(SIZES), action="append", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--warm", type=int, default=None, help="steps before the first that is measured")
    parser.add_argument("--contender", choices=list(CONTENDERS), action="append", default=None)
    parser.add_argument("--again", action="store_true", help="measure what was measured already")
    parser.add_argument("--page", action="store_true", help="only draw the page")
    parser.add_argument("--out", type=Path, default=HERE / "dictionaries.md")
    options = parser.parse_args()
    kept = options.out.with_suffix(".json")
    results = files.read_json(kept) if kept.exists() else {}
    sizes = options.size or (["small", "large"] if options.device == "cpu" else ["gpu-24576", "gpu-98304"])
    for name in [] if options.page else sizes:
        key = f"{options.device} {name}"
        if key in results and not options.again:
            continue
        other = {"rounds": options.rounds, "warm": options.warm}
        size = SIZES[name] | {word: value for word, value in other.items() if value is not None}
        found = measure(options.contender or list(CONTENDERS), size, options.peers, options.device, options.threads)
        about = machine(options.peers, options.device)
        results[key] = {"size": size, "threads": options.threads, "machine": about, "contenders": found}
        files.write_json(kept, results)
    files.write_text(options.out, page(results))
    print(page(results))


if __name__ == "__main__":
    main()
