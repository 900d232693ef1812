"""What the processes of test_parallel.py do: every kind of training in parts, one after the other, into files."""

import sys
from pathlib import Path

import torch

import sae
from sae import parallel
from sae.training.train import train

SETTINGS = {
    "tokens": 64 * 20,
    "batch": 64,
    "lr": 1e-3,
    "log_every": 5,
    "save_every": 6,
    "dead_after": 200,
    "init_rows": 256,
}
TOPK = sae.TopK(n_latents=192, k=3, k_aux=6)
BATCH_TOPK = sae.BatchTopK(n_latents=192, k=3, k_aux=6, normalise="mean_square")
KINDS = {"topk": TOPK, "batch_topk": BATCH_TOPK}


class Interrupted(Exception):
    """Stands for a kill, at the same step everywhere."""


class Stops(sae.TensorRows):
    """Rows that end in an exception."""

    def __init__(self, *args, after: int, **options):
        super().__init__(*args, **options)
        self.left = after

    def __next__(self):
        # Looking at the data before the start does not count: it is put back.
        if self.left == 0:
            raise Interrupted
        self.left -= 1
        return super().__next__()


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    codes = torch.rand(1024, 24, generator=generator) * (torch.rand(1024, 24, generator=generator) < 0.15)
    return codes @ atoms + 0.01 * torch.randn(1024, 16, generator=generator)


def run(architecture, out: Path, team, shards, after: int | None = None, **more):
    settings = sae.Training(**{**SETTINGS, **more})
    part = (team.rank, team.size)
    if after is None:
        data = sae.TensorRows(rows(), size=settings.batch, part=part)
    else:
        # Four batches are looked at before the first step.
        data = Stops(rows(), size=settings.batch, part=part, after=after + 256 // settings.batch)
    try:
        return train(data, architecture, settings, out=out, progress=False, team=team, shards=shards)
    except Interrupted:
        return None


def main(out: Path) -> None:
    here = parallel.join()
    split = parallel.join(shards=2)
    for name, architecture in KINDS.items():
        run(architecture, out / f"data-{name}", *here)
        run(architecture, out / f"shards-{name}", *split)
    # A run that is interrupted in two processes is ended in one, and the other way round (see the test).
    run(TOPK, out / "data-to-one", *here, after=14)
    run(TOPK, out / "shards-to-one", *split, after=14)
    run(TOPK, out / "one-to-data", *here)
    run(TOPK, out / "one-to-shards", *split)
    # Killed and continued with as many processes.
    for name, group in (("data-again", here), ("shards-again", split)):
        run(TOPK, out / name, *group, after=14)
        run(TOPK, out / name, *group)
    parallel.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
