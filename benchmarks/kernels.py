"""Each kernel against its rivals on a GPU: `python -m benchmarks.kernels`, and in `python -m benchmarks --device cuda`.

Rivals are the plain twin, the plain twin through `torch.compile`, and the time that the memory alone would need: a copy
of as many bytes as the operation must read and write at the least. A kernel stays in the repository only if it beats
the first two; the last one says what is left to gain.

1. Every contender of a row gets the same tensors; what they compute is compared first.
2. Rounds are interleaved, in turned order, and the GPU's cache is overwritten before each timing.
3. A row reports medians, and the memory that a call takes beyond its inputs.

Writes `kernels.md` beside this file. Without a GPU there is nothing to time and nothing is written. `--smoke` runs the
plain twins once at tiny sizes on a CPU, so that the tests see this file work.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import race
from mechvis.kernels.support import Support

HERE = Path(__file__).parent
CACHE_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU today."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""How far kernel and plain twin may be apart, relative to the largest value; the tests are stricter."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model's shape and how many rows and images a call gets."""

    name: str
    images: int
    rows: int
    tokens: int
    heads: int
    d_head: int
    layers: int


VIT_B = Size(name="ViT-B/16", images=8, rows=96, tokens=197, heads=12, d_head=64, layers=12)
VIT_L = Size(name="ViT-L/14 336", images=2, rows=32, tokens=577, heads=16, d_head=64, layers=24)
TINY = Size(name="tiny", images=2, rows=3, tokens=5, heads=2, d_head=4, layers=2)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One call that every contender makes."""

    name: str
    operation: str
    """Folder below `mechvis/kernels`."""
    function: str
    """Function in its `naive.py` and `triton.py`."""
    arguments: tuple
    more: dict
    bytes: int
    """What must be read and written at the least."""
    gradients: bool = False
    """Time forward and backward together."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured for one task."""

    task: Task
    label: str
    seconds: dict[str, float]
    extra: dict[str, int]
    """Bytes beyond the inputs at the highest point, per contender."""
    apart: float
    """Largest difference of kernel and plain twin, relative to the largest value."""


def tasks(size: Size, dtype: torch.dtype, device: str) -> Iterator[Task]:
    """The calls of a sweep, of a patching run, of edge attribution, and of a dictionary's training."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    rows, tokens, heads, d_head = size.rows, size.tokens, size.heads, size.d_head
    width, item = heads * d_head, torch.empty(0, dtype=dtype).element_size()
    z, means = draw(rows, tokens, heads, d_head), draw(tokens * heads, d_head)

    # One head per row, as a head sweep has it; then every head of every row, as mean ablation of a layer has it.
    row = torch.arange(rows, device=device).repeat_interleave(tokens)
    token = torch.arange(tokens, device=device).repeat(rows)
    one = (row, token, row % heads)
    every = tuple(t.flatten() for t in torch.meshgrid(
        *(torch.arange(n, device=device) for n in (rows, tokens, heads)), indexing="ij"
    ))  # fmt: skip
    for name, target, function in (
        ("one head per row, in place", one, "patch_rows_"), ("one head per row", one, "patch_rows"),
        ("all heads", every, "patch_rows"), ("all heads, with gradients", every, "patch_rows"),
    ):  # fmt: skip
        factor = torch.ones(len(target[0]), dtype=dtype, device=device)
        source = target[1] * heads + target[2]
        moved = 2 * len(factor) * d_head * item if function == "patch_rows_" else 2 * z.numel() * item
        gradients = name.endswith("gradients")
        keep = factor * (0.5 if gradients else 0)
        yield Task(
            name=name, operation="patch_rows", function=function, bytes=moved * (2 if gradients else 1),
            arguments=(z.clone(), *target, keep, factor, means, source), more={"check": False}, gradients=gradients,
        )  # fmt: skip

    change, weight = draw(size.images, tokens, heads, d_head), draw(heads, d_head, width) / d_head**0.5
    mid, vectors = draw(size.images, tokens, width), [draw(width) for _ in range(3)]
    read = (mid.numel() + change.numel() + weight.numel()) * item
    for gradients in (False, True):
        yield Task(
            name="heads of a layer" + (", with gradients" if gradients else ""), operation="expand_norm",
            function="expand_norm", arguments=(mid, change, weight, *vectors), more={"eps": 1e-6}, gradients=gradients,
            bytes=(read + 2 * heads * mid.numel() * item) * (2 if gradients else 1),
        )  # fmt: skip

    q, k, v = draw(3, rows, tokens, heads, d_head).unbind(0)
    head = torch.arange(rows, device=device) % heads
    drop = torch.rand(rows, tokens, generator=generator, device=device) < 0.5
    pattern = draw(size.images, tokens, tokens).float().softmax(-1).to(dtype)
    edits = {
        "keys dropped": {"drop": drop},
        "pattern replaced": {"pattern": pattern, "pattern_source": torch.arange(rows, device=device) % size.images},
    }
    for name, edit in edits.items():
        yield Task(
            name=name, operation="patch_attention", function="patch_attention", arguments=(q, k, v, head),
            more={"scale": d_head**-0.5, "check": False} | edit, bytes=4 * q.numel() * item,
        )  # fmt: skip

    # Readers of one layer: query, key and value inputs of each head, and the MLP.
    sources, readers = heads * size.layers, 3 * heads + 1
    change, weight = draw(size.images, tokens, sources, d_head), draw(sources, d_head, width)
    gradient = draw(size.images, tokens, readers, width)
    yield Task(
        name="all heads to the readers of a layer", operation="edge_scores", function="edge_scores",
        arguments=(change, weight, gradient), more={},
        bytes=(change.numel() + weight.numel() + gradient.numel()) * item + size.images * sources * readers * 4,
    )  # fmt: skip
    yield from _of_dictionaries(draw, rows * tokens // 4, 32 * width, width)


def _of_dictionaries(draw: Callable[..., Tensor], rows: int, n: int, width: int) -> Iterator[Task]:
    """The sparse part of a training step with 32 of `n` latents per row. Sorting entries by latent is not timed: a step
    does it once."""
    k = 32
    pre, x, weight = draw(rows, n), draw(rows, width), draw(n, width)
    item, dead = pre.element_size(), torch.arange(n, device=pre.device) % 50 == 0
    for name, more in ((f"{k} of all latents", {}), (f"{k} among dead latents", {"among": dead})):
        read = rows * (n if not more else int(dead.sum())) * item
        yield Task(
            name=name, operation="topk", function="topk", arguments=(pre, k), more=more,
            bytes=read + rows * k * (item + 8),
        )  # fmt: skip
    values, latents = pre.topk(k)
    support, values = Support.from_rows(latents, n), values.flatten()
    entries, used = len(support), int(latents.unique().numel())
    yield Task(
        name="reconstruction", operation="sparse_decode", function="sparse_decode", arguments=(values, support, weight),
        more={}, bytes=used * width * item + entries * (item + 8) + rows * width * 4,
    )  # fmt: skip
    yield Task(
        name="gradients of values", operation="sparse_grad", function="entry_products", arguments=(x, weight, support),
        more={}, bytes=(rows + used) * width * item + entries * (16 + 4),
    )  # fmt: skip
    for name, more in (("gradients of weights", {}), ("gradients of weights, with norms", {"against": weight})):
        yield Task(
            name=name, operation="sparse_grad", function="segment_sum", arguments=(values, x, support), more=more,
            bytes=rows * width * item + entries * (16 + item) + n * width * (4 + (item if more else 0)),
        )  # fmt: skip


def call(function: Callable, task: Task) -> Callable[[], Tensor]:
    """The task done by one contender; answers one tensor to compare."""

    def forward() -> Tensor:
        out = function(*task.arguments, **task.more)
        return out if isinstance(out, Tensor) else out[-1]

    if not task.gradients:
        return forward
    inputs = [i for i, t in enumerate(task.arguments) if isinstance(t, Tensor) and t.is_floating_point()]
    if task.operation == "patch_rows":
        inputs = [0, 6]  # the factors are constants

    def both() -> Tensor:
        given = list(task.arguments)
        leaves = [given[i].detach().requires_grad_() for i in inputs]
        for i, leaf in zip(inputs, leaves, strict=True):
            given[i] = leaf
        out = function(*given, **task.more)
        out = out if isinstance(out, Tensor) else out[-1]
        return torch.autograd.grad(out, leaves, torch.ones_like(out))[0]

    return both


def naive(task: Task) -> Callable:
    """The plain twin."""
    return getattr(importlib.import_module(f"mechvis.kernels.{task.operation}.naive"), task.function)


def kernel(task: Task) -> Callable:
    """The Triton twin."""
    return getattr(importlib.import_module(f"mechvis.kernels.{task.operation}.triton"), task.function)


def measure(task: Task, label: str, rounds: int, device: str = "cuda") -> Row:
    """Time all contenders of a task on the GPU; on a CPU, where Triton only interprets, to see that this works."""
    # Compiled code is kept by function, a few versions of each; past that torch quietly stops compiling.
    torch.compiler.reset()
    contenders = {
        "kernel": call(kernel(task), task),
        "naive": call(naive(task), task),
        "compiled": call(torch.compile(naive(task), dynamic=False), task),
    }
    half = torch.empty(max(1, task.bytes // 2), dtype=torch.uint8, device=device)
    contenders["copy"] = lambda: half.clone()
    flush = torch.empty(CACHE_BYTES if device == "cuda" else 1, dtype=torch.uint8, device=device)
    answers, extra = {}, {}
    for name, contender in contenders.items():
        for _ in range(3):
            answers[name] = contender()
        answers[name] = answers[name].float().clone() if name in ("kernel", "naive") else None
        extra[name] = _memory(contender) if device == "cuda" else 0
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds):
        for name in list(contenders)[:: 1 if round_ % 2 else -1]:
            flush.zero_()
            times[name].append(_seconds(contenders[name], device))
    true = answers["naive"]
    apart = float((answers["kernel"] - true).abs().max() / true.abs().max().clamp(min=1e-30))
    seconds = {name: statistics.median(found) for name, found in times.items()}
    return Row(task=task, label=label, seconds=seconds, extra=extra, apart=apart)


def _memory(contender: Callable[[], Tensor]) -> int:
    """Bytes beyond the inputs at the highest point."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contender()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _seconds(contender: Callable[[], Tensor], device: str) -> float:
    """One timing, by the GPU's own clock where there is one."""
    if device != "cuda":
        start = time.perf_counter()
        contender()
        return time.perf_counter() - start
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    contender()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the common report: which task, at which size."""

    size: Size
    dtype: torch.dtype
    operation: str
    name: str
    rounds: int
    device: str

    @property
    def label(self) -> str:
        """Size and type."""
        return f"{self.size.name} {str(self.dtype).removeprefix('torch.')}"

    @property
    def key(self) -> str:
        """As other rows have it."""
        return f"kernels/{self.label}/{self.operation}/{self.name}".replace(" ", "-").replace(",", "")

    @property
    def title(self) -> str:
        """What is done."""
        return f"{self.operation}: {self.name}, {self.label}"

    def run(self) -> race.Row:
        """Measure it. Raises: race.Disagreement: kernel and plain twin differ."""
        found = tasks(self.size, self.dtype, self.device)
        task = next(t for t in found if (t.operation, t.name) == (self.operation, self.name))
        row = measure(task, self.label, self.rounds, self.device)
        if not row.apart <= TOLERANCE[self.dtype]:
            raise race.Disagreement(f"kernel and plain twin are apart by {row.apart:.1e} of the largest value.")
        s = row.seconds
        goals = (
            race.Goal(limit=1.0),
            *((race.Goal(of="bound", limit=0.85),) if task.operation == "patch_rows" else ()),
        )
        made = race.Row(
            key=self.key, title=self.title, ours="kernel", seconds=s, rounds=self.rounds, peers=["naive", "compiled"],
            ratios={name: s["kernel"] / value for name, value in s.items() if name != "kernel"},
            peak={name: value / 2**20 for name, value in row.extra.items()},
            bounds={"kernel": {"bytes": task.bytes, "seconds": s["copy"], "share": s["copy"] / s["kernel"]}},
            notes=[f"Apart from the plain twin by {row.apart:.0e} of the largest value; the bound is a copy of as many "
                   f"bytes ({task.bytes / s['kernel'] / 1e9:.0f} GB/s reached)."],
        )  # fmt: skip
        made.goals = race.judge(made, goals)
        return made


def jobs(device: str, rounds: int) -> Iterator[Job]:
    """All rows of the common report; on a CPU at tiny size."""
    names = [(task.operation, task.name) for task in tasks(TINY, torch.float32, "cpu")]
    for size in (VIT_B, VIT_L) if device == "cuda" else (TINY,):
        for dtype in (torch.float32, torch.bfloat16):
            for operation, name in names:
                yield Job(size=size, dtype=dtype, operation=operation, name=name, rounds=rounds, device=device)


def table(rows: Sequence[Row], where: str) -> str:
    """The rows as a page."""
    lines = [
        "# Kernels against their rivals",
        "",
        f"Written by `python -m benchmarks.kernels` on {where}. Times are medians in milliseconds. GB/s counts the "
        "bytes that the operation must move at the least; the share is that of a copy of as many bytes. Memory is what "
        "a call takes beyond its inputs, in MB. A kernel that beats only one of the plain twin and its compiled form, "
        "or neither, is to be removed.",
        "",
        "| operation | call | size | kernel | plain | compiled | copy | GB/s | share of copy | memory: kernel, plain, "
        "compiled | apart | faster than both |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        s, m = row.seconds, row.extra
        lines.append(
            f"| {row.task.operation} | {row.task.name} | {row.label} | "
            + " | ".join(f"{1000 * s[name]:.3f}" for name in ("kernel", "naive", "compiled", "copy"))
            + f" | {row.task.bytes / s['kernel'] / 1e9:.0f} | {s['copy'] / s['kernel']:.2f} | "
            + ", ".join(f"{m[name] / 1e6:.0f}" for name in ("kernel", "naive", "compiled"))
            + f" | {row.apart:.1e} | {'yes' if s['kernel'] < min(s['naive'], s['compiled']) else '**no**'} |"
        )
    return "\n".join(lines) + "\n"


def smoke() -> int:
    """Every task once by its plain twin, tiny, on a CPU; how many there were."""
    done = 0
    for dtype in (torch.float32, torch.bfloat16):
        for task in tasks(TINY, dtype, "cpu"):
            answer = call(naive(task), task)()
            print(f"{task.operation}: {task.name}, {dtype}: {list(answer.shape)}, {task.bytes} bytes at the least")
            done += 1
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code is 0 also where nothing could be timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="plain twins only, tiny, on a CPU; writes nothing")
    parser.add_argument("--rounds", type=int, default=30, help="timings per contender")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for kernels.md")
    given = parser.parse_args(arguments)
    if given.smoke:
        print(f"{smoke()} calls of the plain twins; nothing was timed and nothing was written.")
        return 0
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was timed and nothing was written.")
        return 0
    rows = []
    for size in (VIT_B, VIT_L):
        for dtype in (torch.float32, torch.bfloat16):
            for task in tasks(size, dtype, "cuda"):
                rows.append(measure(task, f"{size.name} {str(dtype).removeprefix('torch.')}", given.rounds))
                print(table(rows[-1:], "this GPU").splitlines()[-1], flush=True)
    from importlib import metadata

    where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {metadata.version('triton')}"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "kernels.md").write_text(table(rows, where), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
