"""Kills a training again and again at random moments (SIGKILL), continues it, and compares with one left alone.

Children are forked from this process, which has imported everything, so that a start takes milliseconds.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import sae

ARCHITECTURES = {
    "topk": sae.TopK(n_latents=64, k=4, k_aux=8),
    "batch_topk": sae.BatchTopK(n_latents=64, k=4, k_aux=8, normalise="mean_square"),
}
SETTINGS = {
    **{"tokens": 32 * 60, "batch": 32, "lr": 3e-3, "ema": 0.99, "k_start": 2.0, "k_steps": 20},
    **{"log_every": 7, "save_every": 3, "dead_after": 64, "init_rows": 256},
}


def rows() -> torch.Tensor:
    return torch.randn(500, 16, generator=torch.Generator().manual_seed(1))


def train(out: Path) -> None:
    sae.train(rows(), ARCHITECTURES, sae.Training(**SETTINGS), out=out, progress=False)


def child(out: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            train(out)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def finish(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit(f"a continued training failed with status {status}")


def content(out: Path) -> dict[str, bytes]:
    """What has to be the same: weights, and the log without its times."""
    found = {
        str(path.relative_to(out)): path.read_bytes() for path in (out / "dictionaries").glob("*/weights.safetensors")
    }
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    found["log"] = json.dumps([{k: v for k, v in line.items() if k != "rows_per_second"} for line in lines]).encode()
    return found


def main(out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    finish(child(out / "left-alone"))
    whole = time.monotonic() - began
    expected, dice = content(out / "left-alone"), random.Random(seed)
    steps, same = [], 0
    for trial in range(kills):
        folder = out / f"killed-{trial}"
        pid = child(folder)
        time.sleep(dice.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*")) if folder.exists() else []
        steps.append(int(kept[-1].split("-")[1]) if kept else 0)
        finish(child(folder))
        same += content(folder) == expected
    print(json.dumps({"kills": kills, "same": same, "reached": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
