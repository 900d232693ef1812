"""The commands of the store: `mechvis harvest`, and `mechvis store show|verify|repair` for what it wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechvis.cli import say
from mechvis.commands import calls, launched, read_images

if TYPE_CHECKING:
    from mechvis.store import Store


@calls(
    "mechvis.store.harvest:harvest",
    "mechvis.parallel.launch:start",
    "mechvis.models.load:load",
    "mechvis.data.folder:folder",
)
def harvest(
    *,
    model: str,
    images: str,
    sites: tuple[str, ...],
    out: Path,
    tokens: str = "all",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    shard: str | None = None,
    budget: str | None = None,
    launch: str | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    metadata: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Keep the activations of some sites on disk, for dictionaries and probes to be trained on.

    All sites are filled by one forward pass per image, which stops at the last of them. The same command continues an
    interrupted one, also with another number of processes.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>; of CLIP the vision tower.
        images: a folder of images, or scenes[:n[:seed]].
        sites: names or patterns (* and ?); `mechvis sites MODEL` lists them.
        out: folder of the store.
        tokens: all, patches, cls, registers, a number to draw per image, or several with commas: cls,patches:16.
        dtype: type on disk; default: the model's own.
        shard: size of a file, e.g. 256MB; default: at most that, and 32 files or more.
        budget: memory for pixels and activations, e.g. 8GB.
        launch: local:2 for two processes, slurm:nodes=2,partition=gpu,... for an array of jobs.
        seed: of tokens that are drawn.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from mechvis.parallel import world

    if launched(launch, out):
        return
    from mechvis.store import harvest as run

    options = _folder(metadata, label_column, group_column, on_corrupt)
    found = read_images(images, **options)
    store = run(
        _tower(model, world().device(device)),
        found,
        list(sites),
        out=out,
        tokens=tokens,
        dtype=dtype,
        shard=shard,
        budget=budget,
        seed=seed,
        progress=progress,
    )
    if world().leads:
        say(repr(store))


@calls("mechvis.store.store:open")
def show(folder: Path, /) -> None:
    """Show what a store of activations holds, and where it comes from.

    Args:
        folder: the store.
    """
    store = _open(folder)
    known = store.provenance
    say(repr(store))
    say(f"model {known['model'].get('name', '')} {store.manifest.plan['model']}, {known['time']}, {known['command']}")


@calls("mechvis.store.store:Store.verify")
def verify(folder: Path, /, *, progress: bool = True) -> None:
    """Read every file of a store and compare it with its checksum; fails if one is missing or damaged.

    Args:
        folder: the store.
        progress: show a progress bar.
    """
    store = _open(folder)
    store.verify(progress=progress)
    say(f"{store.n_bytes / 1e6:,.1f} MB in {len(store.paths())} file(s): all as they were written")


@calls("mechvis.store.store:Store.repair", "mechvis.models.load:load", "mechvis.data.folder:folder")
def repair(
    folder: Path,
    /,
    *,
    model: str,
    images: str,
    exact: bool = True,
    progress: bool = True,
    device: str | None = None,
    metadata: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Compute the files of a store that are missing or damaged again, and those alone.

    Args:
        folder: the store.
        model: the model it was made from.
        images: the images it was made from.
        exact: refuse numbers that differ in the last bits (another machine); --no-exact accepts them.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    store = _open(folder)
    options = _folder(metadata, label_column, group_column, on_corrupt)
    done = store.repair(_tower(model, device), read_images(images, **options), exact=exact, progress=progress)
    for path in done:
        say(f"computed again: {path}")
    say(f"{len(done)} file(s) repaired" if done else "nothing to repair")


store = {"show": show, "verify": verify, "repair": repair}


def _open(folder: Path) -> "Store":
    from mechvis.store import open

    return open(folder)


def _tower(spec: str, device: str | None) -> Any:
    """The image tower that a word on the command line means."""
    import mechvis

    loaded = mechvis.load(spec, device=device)
    return getattr(loaded, "vision", loaded)


def _folder(metadata: Path | None, label_column: str, group_column: str | None, on_corrupt: str) -> dict[str, Any]:
    return {
        "metadata": metadata,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }
