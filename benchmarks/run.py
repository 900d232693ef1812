"""The same work done by mechvis and by its peers, side by side: `python -m benchmarks [--quick] [--only WORD]`.

1. `plan` lists the rows (tasks) for a device; each says who takes part, what is compared, its bound and its goals.
2. Rows are measured one after the other (:mod:`benchmarks.race`), memory in processes of their own.
3. After every row `results.json` and `results.md` are written: an interruption costs one row, and `--resume` goes on.

A full run writes beside this file, `--quick` into `build/benchmarks`, unless `--out` says otherwise. On a GPU
(`--device cuda`) the files are `results-cuda.*`, with rows in float32, TF32 and bfloat16, and those of the kernels.
Times are this machine's; the ratios are the point.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import caching, forward, kernels, limits, memory, models, race, sweeps, table
from benchmarks.memory import resident
from benchmarks.models import Place
from benchmarks.race import Clock, Goal, Row, Task, quiet
from mechvis import files
from mechvis.errors import StoreCorrupt
from mechvis.testing.operators import declare_torchvision_operators

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "vit-prisma", "triton")
SMALL, BASE, LARGE = "scenes-vit", "ViT-B/16", "ViT-L/14"
HEADS = (Goal(limit=0.46),)
"""Head sweep in float32 beside the fastest peer."""
SCREENED = (*HEADS, Goal(limit=0.18, contender=sweeps.SCREENED))
"""The same with bf16 screening."""
ROW_AT_MOST = 600.0
"""Seconds after which a row begins no further round."""

Job = Task | kernels.Job


def cpu() -> Iterator[Job]:
    """The rows of a full run on a CPU: about 40 minutes."""
    here = Place()
    for name, amounts in (
        (SMALL, ((1, 200), (8, 100), (64, 30))), (BASE, ((1, 12), (4, 5))), (LARGE, ((1, 4),)),
    ):  # fmt: skip
        for batch, rounds in amounts:
            yield forward.task(name, here, batch, rounds)
    for name, batch, rounds in ((SMALL, 8, 60), (BASE, 1, 8), (LARGE, 1, 3)):
        for what in caching.WHATS:
            ours = name == BASE or (name == LARGE and what == "every site")
            yield caching.task(name, here, what, batch, rounds, memory=ours)

    few = {"images": 32, "peers_run": 16}
    yield sweeps.task(SMALL, here, **few, rounds=9, screened=4, goals=HEADS)
    yield sweeps.task(SMALL, here, edit="mean", **few, rounds=7, goals=HEADS)
    yield sweeps.task(SMALL, here, kind="tokens", edit="patch", **few, rounds=3)
    yield sweeps.task(
        SMALL, here, kind="neurons", cells=layers(SMALL, "neurons", 2), some=" of layer 2", **few, rounds=3
    )

    yield sweeps.task(BASE, here, rounds=2, screened=9, goals=SCREENED, memory=True)
    yield sweeps.task(BASE, here, edit="mean", peers_run=8, goals=HEADS, warm_up=False)
    yield sweeps.task(BASE, here, images=4, peers_run=4, rounds=1, screened=9, goals=SCREENED, warm_up=False)
    twice = {"peers_run": 8, "rounds": 2, "warm_up": False}
    yield sweeps.task(BASE, here, kind="tokens", edit="patch", cells=grid(BASE, 12, 12), some=" (12 x 12)", **twice)
    yield sweeps.task(BASE, here, kind="neurons", cells=layers(BASE, "neurons", 10), some=" of layer 10", **twice)
    each = layers(BASE, "neurons", 5, every=32)
    yield sweeps.task(BASE, here, kind="neurons", cells=each, some=" of layer 5 (each 32nd)", **twice)

    once = {"peers_run": 4, "rounds": 1, "warm_up": False}
    yield sweeps.task(LARGE, here, **once, screened=24, goals=SCREENED)
    yield sweeps.task(LARGE, here, edit="mean", cells=layers(LARGE, "heads", 5, 11, 17, 23), some=" of four layers",
                      **once, goals=HEADS)  # fmt: skip
    yield sweeps.task(LARGE, here, kind="tokens", edit="patch", cells=grid(LARGE, 4, 8), some=" (4 x 8)", **once)
    yield sweeps.task(LARGE, here, kind="neurons", cells=layers(LARGE, "neurons", 22), some=" of layer 22", **once)


def quick() -> Iterator[Job]:
    """Fewer rows, rounds and cells, on a CPU: minutes."""
    here = Place()
    for name, batch, rounds in ((SMALL, 1, 60), (SMALL, 8, 30), (BASE, 1, 4), (LARGE, 1, 1)):
        yield forward.task(name, here, batch, rounds)
    for name, batch, rounds in ((SMALL, 8, 15), (BASE, 1, 3)):
        for what in caching.WHATS:
            yield caching.task(name, here, what, batch, rounds, memory=name == BASE and what.startswith("every site"))
    few = {"images": 32, "peers_run": 8}
    yield sweeps.task(SMALL, here, **few, rounds=5, screened=4, goals=HEADS)
    yield sweeps.task(SMALL, here, edit="mean", **few, rounds=3, goals=HEADS)
    yield sweeps.task(SMALL, here, kind="tokens", edit="patch", cells=grid(SMALL, 4, 8), some=" (4 x 8)", **few)
    yield sweeps.task(SMALL, here, kind="neurons", cells=layers(SMALL, "neurons", 2), some=" of layer 2", **few)
    yield sweeps.task(BASE, here, peers_run=4, rounds=1, warm_up=False, screened=9, goals=SCREENED)


def gpu(device: str) -> Iterator[Job]:
    """The rows of a full run on a GPU; `--plan gpu --device cpu` rehearses them where there is none."""
    names = (SMALL, BASE, LARGE)
    precisions = [Place(device=device, precision=word) for word in ("fp32", "tf32", "bf16")]
    for name in names:
        for here in precisions:
            for batch in (1, 8, 64):
                yield forward.task(name, here, batch, 30)
        for what in caching.WHATS:
            yield caching.task(name, precisions[0], what, 8, 20, memory=name == BASE)
    some = {"images": 8, "peers_run": 16, "rounds": 3}
    for name in names:
        for here in precisions:
            for images in (1, 8, 64) if name != LARGE else (1, 8):
                # At small batches a launch costs more than its arithmetic, and peers make many more of them.
                asked = (Goal(limit=0.46 if images == 64 else 0.25), Goal(of="bound", limit=0.5))
                # Screening lowers float32 to bfloat16: it has no place in the other rows.
                again = {SMALL: 4, BASE: 9, LARGE: 24}[name] if here.precision == "fp32" else None
                yield sweeps.task(name, here, images=images, peers_run=16, rounds=5, screened=again, goals=asked,
                                  memory=name == BASE and here.precision == "fp32")  # fmt: skip
        for here in (precisions[0], precisions[2]):
            yield sweeps.task(name, here, edit="mean", **some, goals=HEADS)
            yield sweeps.task(
                name, here, kind="tokens", edit="patch", cells=grid(name, 4, 16), some=" (4 x 16)", **some
            )
            layer = models.shape(name).layers - 2
            cells = layers(name, "neurons", layer)
            yield sweeps.task(name, here, kind="neurons", cells=cells, some=f" of layer {layer}", **some)
    yield from kernels.jobs(device, 30)


def toy(device: str) -> Iterator[Job]:
    """Every kind of row in seconds, for tests."""
    yield forward.task("toy", Place(device=device, precision="tf32"), 2, 2)
    for here in (Place(device=device), Place(device=device, precision="bf16")):
        yield forward.task("toy", here, 2, 2)
        for what in caching.WHATS:
            yield caching.task("toy", here, what, 2, 1, memory=what == "one site" and here.precision == "fp32")
        few = {"images": 2, "peers_run": 3, "rounds": 1}
        again = 2 if here.precision == "fp32" else None
        yield sweeps.task("toy", here, **few, screened=again, goals=HEADS, memory=here.precision == "fp32")
        yield sweeps.task("toy", here, edit="mean", **few)
        yield sweeps.task("toy", here, kind="tokens", edit="patch", cells=grid("toy", 2, 3), **few)
        yield sweeps.task("toy", here, kind="neurons", cells=layers("toy", "neurons", 1), **few)
    yield from kernels.jobs(device, 2)


def layers(name: str, kind: str, *chosen: int, every: int = 1) -> list[tuple[int, int]]:
    """All cells of some layers, or each n-th of them."""
    s = models.shape(name)
    width = {"heads": s.heads, "neurons": s.hidden, "tokens": s.tokens}[kind]
    return [(layer, index) for layer in chosen for index in range(0, width, every)]


def grid(name: str, n_layers: int, n_tokens: int) -> list[tuple[int, int]]:
    """Evenly spread layers x evenly spread positions."""
    s = models.shape(name)
    steps = (
        [round(i * (size - 1) / max(1, n - 1)) for i in range(n)]
        for size, n in ((s.layers, n_layers), (s.tokens, n_tokens))
    )
    across, along = (sorted(set(found)) for found in steps)
    return [(layer, token) for layer in across for token in along]


def plan(options: argparse.Namespace) -> list[Job]:
    """The rows that were asked for."""
    if options.toy:
        jobs = list(toy(options.device))
    elif (options.plan or options.device) in ("gpu", "cuda"):
        jobs = list(gpu(options.device))
    else:
        jobs = list(quick() if options.quick else cpu())
    twice = {job.key for job in jobs if [other.key for other in jobs].count(job.key) > 1}
    if twice:
        raise RuntimeError(f"rows with one key: {sorted(twice)}.")
    # One model after the other: everyone's copies of one fit the memory, and are made once.
    order = list(models.SIZES)
    jobs.sort(key=lambda job: order.index(job.shape) if isinstance(job, Task) else len(order))
    return [job for job in jobs if all(word in job.key for word in options.only or ())]


def measure(job: Job, options: argparse.Namespace) -> Row:
    """One row; whatever goes wrong is in the row."""
    began = time.perf_counter()
    try:
        row = job.run() if isinstance(job, kernels.Job) else _raced(job, options)
    except Exception as error:
        ours = "kernel" if isinstance(job, kernels.Job) else next(iter(job.contenders))
        row = Row(key=job.key, title=job.title, ours=ours, status="failed", reason=race.reason(error))
    row.wall = round(time.perf_counter() - began, 1)
    return row


def _raced(task: Task, options: argparse.Namespace) -> Row:
    if options.device == "cuda":
        torch.cuda.empty_cache()  # what an earlier row left
    with models.precision(task.precision):
        row, kept = race.race(task, Clock(options.device), seconds_at_most=ROW_AT_MOST)
        for name, least in task.least(kept).items():
            low = limits.matmul_rate(task.shape, options.device, "bf16") if least.low_precision else 0.0
            rate = limits.matmul_rate(task.shape, options.device, task.precision)
            seconds = least.seconds(rate, limits.copy_bandwidth(options.device), low)
            row.bounds[name] = asdict(least) | {"seconds": seconds, "share": seconds / row.seconds[name]}
    for name in task.memory:
        if name in row.failed:
            continue
        try:
            found = memory.measure(task.key, name, child(options))
        except (RuntimeError, ValueError) as error:
            row.notes.append(f"No memory figure of {name}: {race.reason(error)}.")
            continue
        row.peak[name], row.held[name] = round(found["peak"], 1), round(found["held"], 1)
    row.goals = race.judge(row, task.goals)
    return row


def child(options: argparse.Namespace) -> list[str]:
    """Options for a process that measures memory."""
    words = ["--device", options.device, "--threads", str(options.threads)]
    words += ["--plan", options.plan] if options.plan else []
    return words + [f"--{word}" for word in ("quick", "toy") if getattr(options, word)]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="fewer rows, rounds and cells: minutes")
    made.add_argument(
        "--only", action="append", metavar="WORD", help="rows whose key holds this word; repeat to narrow"
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    made.add_argument("--out", type=Path, help="folder for the results")
    made.add_argument("--resume", action="store_true", help="keep the rows that are done, and go on")
    made.add_argument("--list", action="store_true", help="print the keys of the rows and stop")
    made.add_argument("--plan", choices=("cpu", "gpu"), help=argparse.SUPPRESS)
    made.add_argument("--toy", action="store_true", help=argparse.SUPPRESS)
    return made


def settle(options: argparse.Namespace) -> None:
    """What has to be so before the first row."""
    declare_torchvision_operators()  # before anything imports torchvision, which transformers and timm do
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here.")
    torch.set_num_threads(options.threads)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit code is 1 if a row failed."""
    options = parser().parse_args(arguments)
    settle(options)
    jobs = plan(options)
    if options.list:
        print("\n".join(job.key for job in jobs))
        return 0
    if not jobs:
        raise SystemExit(f"No row holds {' and '.join(options.only)}; --list prints the keys.")
    partial = options.quick or options.toy or options.plan
    out = options.out or (HERE.parent / "build" / "benchmarks" if partial else HERE)
    files.ensure_writable(out)
    place = out / f"results{'-cuda' if options.device == 'cuda' else ''}"
    known = about(options)
    before = earlier(place.with_suffix(".json"), known, options)
    rows = dict(before)
    for i, job in enumerate(jobs):
        if options.resume and job.key in before and before[job.key].status == "done":
            continue
        print(f"[{i + 1}/{len(jobs)}] {job.title}", flush=True)
        row = rows[job.key] = measure(job, options)
        print("   ", race.describe(row), flush=True)
        write(place, known, rows, options)
    failed = [row.key for row in rows.values() if row.status == "failed"]
    print(f"{len(rows)} rows in {place}.md" + (f", FAILED: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def earlier(path: Path, known: dict[str, Any], options: argparse.Namespace) -> dict[str, Row]:
    """Rows of an earlier run that this one goes on with: with `--resume` or `--only`, from the same conditions."""
    if not (options.resume or options.only) or not path.is_file():
        return {}
    try:
        found = files.read_json(path)
        names = {field.name for field in fields(Row)}
        rows = {entry["key"]: Row(**entry) for entry in found["rows"] if set(entry) == names}
        same = {word: found[word] for word in CONDITIONS} == {word: known[word] for word in CONDITIONS}
    except (StoreCorrupt, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path} cannot be continued ({race.reason(error)}). Move it away, or use another --out."
        ) from error
    if not same or len(rows) != len(found["rows"]):
        raise SystemExit(
            f"{path} was measured under other conditions (machine, versions, threads or options). Move it away, or use "
            "another --out; without --resume and --only it is replaced."
        )
    known["limits"] |= found["limits"]
    return rows


CONDITIONS = ("format", "machine", "threads", "versions", "quick")
"""What must be equal to put rows into one table."""


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What is known of machine and run."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    notes = (
        [] if models.has_prisma() else ["ViT-Prisma is not installed here (`make bench` installs it): no rows of it."]
    )
    return {
        "format": 2,
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks" + "".join(f" --{word}" for word in ("quick", "toy") if getattr(options, word))
        + (" --device cuda" if options.device == "cuda" else "") + f" --threads {options.threads}",
        "machine": machine(options.device),
        "clock": Clock(options.device).name,
        "threads": options.threads,
        "quick": options.quick,
        "versions": versions,
        "notes": notes,
        "limits": {},
    }  # fmt: skip


def machine(device: str) -> str:
    """Processor or GPU, in words."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB), CUDA {torch.version.cuda}"
    name = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def write(place: Path, known: dict[str, Any], rows: dict[str, Row], options: argparse.Namespace) -> None:
    """Both files, whole or not at all."""
    for row in rows.values():
        subject, *_ = row.key.split("/")
        if subject == "kernels" or row.status == "failed":
            continue
        name = next(name for name in models.SIZES if row.key.startswith(f"{subject}/{name}/"))
        for word in ("fp32", "bf16") if options.device == "cpu" else ("fp32", "tf32", "bf16"):
            words = f"matrix products of {name}'s MLP, {word} (GFLOP/s)"
            if words not in known["limits"]:
                known["limits"][words] = limits.matmul_rate(name, options.device, word) / 1e9
    known["limits"]["copy, read and written (GB/s)"] = limits.copy_bandwidth(options.device) / 1e9
    files.write_json(place.with_suffix(".json"), known | {"rows": [asdict(row) for row in rows.values()]})
    files.write_text(place.with_suffix(".md"), table.page(known, list(rows.values())))


def vit_b_16() -> nn.Module:
    """The shape of ViT-B/16, random weights, for `benchmarks.loading`."""
    return models.bare(BASE, Place())


__all__ = ["main", "quiet", "resident", "vit_b_16"]

if __name__ == "__main__":
    sys.exit(main())
