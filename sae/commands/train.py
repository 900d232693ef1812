"""`mechvis sae train`: a dictionary, from a store of activations or from a model and its images."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import say
from mechvis.commands import calls, launched, read_images


@calls(
    "sae.training.train:train",
    "sae.training.settings:Training",
    "sae.training.job:Job",
    "sae.architectures:configured",
    "sae.data:from_model",
    "sae.data:from_store",
    "sae.parallel.join:join",
    "mechvis.parallel.launch:start",
    "mechvis.models.load:load",
    "mechvis.data.folder:folder",
)
def train(
    *,
    out: Path,
    store: Path | None = None,
    model: str | None = None,
    images: str | None = None,
    reads: tuple[str, ...] = (),
    writes: tuple[str, ...] = (),
    architecture: str = "batch_topk",
    n_latents: int,
    k: int | None = None,
    settings: tuple[str, ...] = (),
    tokens: int = 50_000_000,
    batch: int | None = None,
    lr: float | None = None,
    lr_warm_up: int = 1000,
    decay: float = 0.2,
    sparsity_warm_up: float = 0.05,
    k_start: float = 1.0,
    k_steps: int = 0,
    clip: float | None = 1.0,
    ema: float | None = None,
    dead_after: int = 10_000_000,
    precision: Literal["float32", "bfloat16"] = "float32",
    log_every: int = 100,
    save_every: int = 1000,
    keep: int = 2,
    seed: int = 0,
    which: str = "all",
    buffer: str = "512MB",
    budget: str | None = None,
    shards: int = 1,
    launch: str | None = None,
    progress: bool = True,
    device: str | None = None,
    metadata: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Train a dictionary: an SAE, a transcoder (other sites in --writes) or a crosscoder (several in --reads).

    Rows come from a store (`mechvis sae harvest`) or are computed on the way from a model and images. The same command
    continues an interrupted one, bit by bit.

    Args:
        out: folder for checkpoints, log and the dictionary.
        store: a store of activations, or ...
        model: ... a bundled name, a folder, or hf:<folder or hub id>; of CLIP the vision tower; and ...
        images: ... a folder of images, or scenes[:n[:seed]].
        reads: sites that are read; of a store all, where left out.
        writes: sites that are written, for a transcoder.
        architecture: batch_topk, topk, matryoshka, jumprelu, ... .
        n_latents: latents.
        k: active latents per row, where the architecture has a k.
        settings: others of the architecture: aux=0.03 row_limit=null.
        tokens: rows to train on.
        batch: rows per step; default: by the number of rows, 256 to 8192.
        lr: learning rate; default: by the number of latents.
        lr_warm_up: steps in which it rises.
        decay: last share of the run, in which it falls.
        sparsity_warm_up: first share of the run, in which sparsity terms rise.
        k_start: k starts at that many times its value ...
        k_steps: ... and falls to it in that many steps.
        clip: largest norm of a gradient.
        ema: decay of an average of the weights, which is kept instead of them.
        dead_after: rows without firing that make a latent dead.
        precision: of the encoder's product.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints.
        keep: checkpoints that are kept.
        seed: of the starting values and of the order.
        which: all, patches, cls, a number to draw per image, or several with commas (with --model).
        buffer: memory for shuffling.
        budget: memory for pixels and activations (with --model).
        shards: processes that share the latents; the others share the batch.
        launch: local:2 for two processes, slurm:nodes=2,gpus_per_node=4,tasks_per_node=4,... for one job.
        progress: show a progress bar.
        device: where to train, e.g. cuda.
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from mechvis.errors import BadData

    if (store is None) == (model is None) or (model is None) != (images is None):
        raise BadData(
            "rows come from --store FOLDER, or from --model MODEL --images IMAGES --reads SITE: give one of them."
        )
    if launched(launch, out, together=True):
        return
    from sae.architectures import configured
    from sae.parallel import join, leave
    from sae.training.job import Job
    from sae.training.settings import Training
    from sae.training.train import train as run

    chosen = configured(architecture, n_latents=n_latents, k=k, settings=settings)
    how = Training(
        tokens=tokens, batch=batch, lr=lr, lr_warm_up=lr_warm_up, decay=decay, sparsity_warm_up=sparsity_warm_up,
        k_start=k_start, k_steps=k_steps, clip=clip, ema=ema, dead_after=dead_after, precision=precision,
        log_every=log_every, save_every=save_every, keep=keep, seed=seed,
    )  # fmt: skip
    team, parts = join(shards, device)
    part = (team.rank, team.size)
    if store is not None:
        rows = _stored(store, (*reads, *writes), how.batch, seed, part, buffer)
    else:
        folder = {
            "metadata": metadata,
            "label_column": label_column,
            "group_column": group_column,
            "on_corrupt": on_corrupt,
        }
        rows = _streamed(model, images, (*reads, *writes), how.batch, seed, part, buffer, which, budget, device, folder)
    job = Job(architecture=chosen, reads=reads or None, writes=writes or None)
    found = run(rows, job, how, out=out, device=device, progress=progress, team=team, shards=parts)
    if team.rank == 0 and parts.rank == 0:
        say(repr(found))
        say(f"saved in {out / 'dictionaries' / 'dictionary'}")
    leave()


def _stored(folder: Path, sites: tuple[str, ...], size: int, seed: int, part: tuple[int, int], buffer: str) -> Any:
    from mechvis.store import open
    from sae.data import from_store

    found = open(folder)
    return from_store(found, list(sites) or list(found), size=size, seed=seed, part=part, buffer=buffer)


def _streamed(
    model: str,
    images: str,
    sites: tuple[str, ...],
    size: int,
    seed: int,
    part: tuple[int, int],
    buffer: str,
    which: str,
    budget: str | None,
    device: str | None,
    folder: dict[str, Any],
) -> Any:
    import mechvis
    from mechvis.errors import BadData
    from mechvis.parallel import world
    from sae.data import from_model

    if not sites:
        raise BadData("--model needs --reads SITE; `mechvis sites MODEL` lists them.")
    loaded = mechvis.load(model, device=world().device(device))
    tower = getattr(loaded, "vision", loaded)
    found = read_images(images, **folder)
    return from_model(
        tower, found, list(sites), size=size, seed=seed, part=part, buffer=buffer, which=which, budget=budget
    )
