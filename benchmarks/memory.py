"""Peak memory of one contender, in a process of its own: `python -m benchmarks.memory KEY CONTENDER [options]`.

1. Build the contender and run it (or something smaller that loads the same code) once.
2. Give freed memory back to the system, note what is resident, and start the record of the peak anew.
3. Run it, and read the peak, and what is resident while the answer is still there.

On a GPU these are the bytes that torch's allocator handed out; on Linux the resident memory of the process. Other
systems have no record that can be started anew: there the figure is missing, and its reason stands in the table.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.race import Contender, quiet

ROOT = Path(__file__).parent.parent
MIB = 2**20


def measure(key: str, name: str, options: Sequence[str]) -> dict[str, float]:
    """Peak and held memory (MiB) of a contender, from a process of its own.

    Raises:
        RuntimeError: the process failed; its last line of complaint.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", key, name, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def of(contender: Contender, device: str) -> dict[str, float]:
    """Peak and held memory (MiB) of a contender in this process."""
    with quiet(), torch.no_grad():
        work = contender.build()
        (contender.warm or work)()
        gc.collect()
        before = _begin(device)
        answer = work()
        peak, after = _end(device)
    del answer
    return {"before": before, "peak": peak - before, "held": after - before}


def _begin(device: str) -> float:
    """Start the record anew; what is in use now, in MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    if sys.platform != "linux":
        raise RuntimeError("peak memory on a CPU is measured on Linux only")
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def _end(device: str) -> tuple[float, float]:
    """The peak and what is in use now, in MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MIB, torch.cuda.memory_allocated() / MIB
    return resident("VmHWM"), resident("VmRSS")


def give_back() -> None:
    """Freed memory back to the system; otherwise the next run would reuse it unseen. The C library of GNU can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


def resident(field: str) -> float:
    """A memory figure of this process in MiB, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from benchmarks import run

    key, name, *rest = sys.argv[1:] if arguments is None else arguments
    options = run.parser().parse_args(rest)
    run.settle(options)
    task: Any = next(task for task in run.plan(options) if task.key == key)
    with run.models.precision(task.precision):
        print(json.dumps(of(task.contenders[name], options.device)))


if __name__ == "__main__":
    main()
