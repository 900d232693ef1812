"""Harvesting: run a model over images once, and keep what some sites say, in files that can be read in any order.

1. One image is run to see what a row of each site is. From that follow the size on disk (said, and refused if the disk
   has less), the images per file and the images per forward pass. Both are kept in the ledger by the first process.
2. Processes share the pieces (all sites of the images of one file) as those of a sweep are shared
   (:mod:`mechvis.parallel.share`). What the ledger keeps of a finished piece are the checksums of its files: no process
   ever reads what another has written.
3. A piece: its images go through the model in fixed batches, stopped at the last site that is wanted; rows go straight
   to the files of their sites, which get their names when they are complete. The next images are read meanwhile, and
   rows are written while the next batch is computed.
4. The last one to finish writes the manifest.

Memory holds two batches, however large the files are. The death of a process costs the pieces it was at.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from mechvis import files
from mechvis.engine import budget_bytes
from mechvis.errors import BadData, OutputNotWritable, StoreCorrupt
from mechvis.parallel.claims import Claims
from mechvis.parallel.ledger import Ledger, Piece, cut
from mechvis.parallel.share import POLL, Share
from mechvis.parallel.world import world
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.store.forward import Forward, Read, images_at_once, namer, reader
from mechvis.store.manifest import IMAGES, NAME, Manifest, job_of, load, plan_of, shard_path
from mechvis.store.piece import batches_of, write_rows
from mechvis.store.rows import SiteRows, one_image, rows_at
from mechvis.store.shard import Shard
from mechvis.store.store import Store
from mechvis.sweep_inputs import image_table

logger = logging.getLogger(__name__)

SHARD = 256 * 10**6
"""Largest file, unless `shard=` says otherwise."""
MOST_IMAGES = 8192
"""Images of a piece at most, unless `shard=` says otherwise: where rows are few (class tokens) a file of the largest
size would hold so many that a death costs hours."""
PIECES = 32
"""Pieces at least, if there are images enough: so many processes can share them, and so little is lost with one."""


def harvest(
    model: Any,
    images: Any,
    sites: str | Sequence[str],
    *,
    out: str | Path,
    tokens: str | int = "all",
    dtype: Any = None,
    shard: str | int | None = None,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Store:
    """Run images through a model and keep the activations of some sites on disk.

    The same call continues what was interrupted; processes that call it with the same `out` share the work, in any
    number and on any machines (docs/scale.md). The files are the same, bit by bit.

    Args:
        model: a wrapped image tower (for CLIP: `clip.vision`).
        images: an `ImageSet`, or pixels `[image channel height width]`.
        sites: names or patterns; all are filled by one forward pass, which stops at the last of them.
        out: the folder.
        tokens: which tokens become rows: `all`, `patches`, `cls`, `registers`, how many to draw per image (`16`), or
            several: `"cls,patches:16"` (see `mechvis.store.tokens`). Sites without tokens have one row per image.
        dtype: type on disk: `float32`, `bfloat16`, `float16`; None keeps the model's own.
        shard: size of a file, e.g. `"256MB"`. By default at most that, and so that there are 32 pieces to share.
        budget: memory for pixels and activations, e.g. `"8GB"`; by default a share of what is free.
        seed: of tokens that are drawn.
        progress: show a progress bar (of several processes the first does).

    Returns:
        The store, opened.

    Raises:
        UnknownSite: a pattern matches nothing.
        BadData: tokens that a site does not have; no preprocessing.
        NotFinite: NaN or Inf; names site and image.
        ResultMismatch: the folder holds activations of something else; says what differs.
        OutputNotWritable: the folder cannot be written, or the disk has not enough room. What is finished is kept.
        OutOfMemory: not even one image fits the budget.
        StoreCorrupt: files of finished pieces are gone; repair the store.

    Example:
        >>> store = harvest(model, images, "blocks.2.hook_resid_post", out="runs/acts")    # doctest: +SKIP
        >>> store["blocks.2.hook_resid_post"].shape                                        # doctest: +SKIP
        (65536, 128)
    """
    read, first = reader(model, images), one_image(model, images)
    found = rows_at(model, first, sites, n_images=len(images), tokens=tokens, dtype=dtype, seed=seed)
    rows = {site.name: site for site in found}
    folder = Path(out)
    plan = plan_of(model, images, rows, tokens=tokens, seed=seed)
    ledger = Ledger(folder / "pieces", plan)
    batch = images_at_once(model, first, found, budget_bytes(budget, model.device))
    images_each, batch = ledger.agree(*_cut(found, len(images), shard, batch))
    pieces = cut(len(images), 1, images_each, 1)
    job = _Job(Forward(model=model, read=read, sites=rows, describe=namer(images)), folder, job_of(ledger.plan), batch)
    for site in found:
        files.ensure_writable(folder / "shards" / site.folder)
    _room(job, pieces)
    receipts: dict[str, np.ndarray] = {}
    began = time.monotonic()
    show = progress and world().leads
    with track(len(images), "harvest", " images", show=show) as bar, Claims(ledger.folder) as claims:

        def finished(piece: Piece, kept: dict[str, np.ndarray]) -> None:
            receipts[piece.name] = kept["sha256"]
            bar.update(len(piece.images))

        _sweep(folder, pieces, claims)
        share = Share(ledger, pieces, claims, finished)
        try:
            _work(job, share, finished)
        except OutputNotWritable as error:
            done = len(list(ledger.finished(pieces)))
            raise OutputNotWritable(
                f"{error} {done} of {len(pieces)} pieces are finished and kept; the same command continues."
            ) from error
        _sweep(folder, pieces, claims)
    towers, _ = model._for_size(tuple(first.shape[2:]))
    timings = {"harvest": round(time.monotonic() - began, 3)}
    manifest = Manifest(
        plan=ledger.plan,
        images_each=images_each,
        batch=batch,
        sites=rows,
        prefix=tuple(towers.prefix),
        grid=towers.grid,
        sha256={name: [receipts[p.name][i].tobytes().hex() for p in pieces] for i, name in enumerate(rows)},
        # By its fingerprint: hashing the weights once more would cost as much as some forward passes.
        provenance=provenance(
            SimpleNamespace(name=model.name, fingerprint=plan["model"]), images, seed=seed, timings=timings
        ),
    )
    _publish(folder, manifest, images)
    store = Store(folder, load(folder))
    if absent := store.absent():
        raise StoreCorrupt(
            f"{len(absent)} file(s) that were finished are missing or cut short, e.g. {absent[0]}. "
            "mechvis.store.open(folder).repair(model, images) computes them again (`mechvis store repair`)."
        )
    return store


@dataclass(frozen=True)
class _Job:
    """What does not change from piece to piece."""

    forward: Forward
    folder: Path
    name: str
    batch: int

    def shards(self, images: range) -> list[Shard]:
        """The files of a piece."""
        sites = self.forward.sites.values()
        return [Shard(shard_path(self.folder, site, images), site, images, self.name) for site in sites]

    def batches(self, images: range) -> list[np.ndarray]:
        """Positions of the images that share a forward pass."""
        return batches_of(images, self.batch)

    def compute(self, images: range, ahead: "_Ahead", last: Callable[[], None]) -> np.ndarray:
        """Write the files of a piece; returns their checksums.

        Args:
            images: of the piece.
            ahead: reads them.
            last: called before the last batch is computed.
        """
        return write_rows(self.shards(images), self._rows(self.batches(images), ahead, last))

    def _rows(
        self, batches: list[np.ndarray], ahead: "_Ahead", last: Callable[[], None]
    ) -> Iterator[dict[str, Tensor]]:
        for i, batch in enumerate(batches):
            pixels = ahead.pixels(batch)
            if i + 1 < len(batches):
                ahead.begin(batches[i + 1])
            else:
                last()
            yield self.forward.rows(batch, pixels)


def _cut(sites: Sequence[SiteRows], n_images: int, shard: str | int | None, batch: int) -> tuple[int, int]:
    """Images per file, and per forward pass (where the cut of a sweep has units)."""
    widest = max(sites, key=lambda site: site.bytes_per_image)
    block = widest.images_per_block
    step = max(batch, block)  # both are powers of two
    each = max(1, (SHARD if shard is None else size_bytes("shard", shard)) // widest.bytes_per_image)
    if shard is None:
        each = min(each, MOST_IMAGES, max(step, -(-n_images // PIECES)))
    whole = step if each >= step else block if each >= block else 1
    each -= each % whole
    return each, min(batch, each)


def size_bytes(what: str, size: str | int) -> int:
    """A size such as "256MB" in bytes.

    Raises:
        BadData: not a size.
    """
    try:
        return budget_bytes(size, None)
    except (BadData, AttributeError):
        raise BadData(f"{what}={size!r} is not a size; write for example {what}='256MB'.") from None


def _room(job: _Job, pieces: Sequence[Piece]) -> None:
    """Say how large the store will be, and refuse if the disk has less.

    Raises:
        OutputNotWritable: not enough room.
    """
    needed = total = 0
    for piece in pieces:
        for shard in job.shards(piece.images):
            total += shard.n_bytes
            there = shard.path.stat().st_size if shard.path.exists() else 0
            needed += 0 if there == shard.n_bytes else shard.n_bytes
    free = shutil.disk_usage(job.folder).free
    sites = job.forward.sites
    told = f"{job.folder}: {len(sites)} site(s), {total / 1e6:,.1f} MB in {len(pieces) * len(sites)} file(s)"
    if needed > free:
        raise OutputNotWritable(
            f"{told}; {needed / 1e6:,.1f} MB are still to be written and {free / 1e6:,.1f} MB are free. Use another "
            "disk, fewer tokens (tokens='patches:16'), fewer sites, dtype='bfloat16', or mechvis.store.stream."
        )
    if world().leads:
        logger.info("%s, %.1f MB to be written, %.0f MB free.", told, needed / 1e6, free / 1e6)


def _work(job: _Job, share: Share, finished: Callable[[Piece, dict[str, np.ndarray]], None]) -> None:
    """Compute pieces until none is left."""
    with _Ahead(job.forward.read) as ahead:
        piece = share.take()
        while piece is not None:
            started, following = time.monotonic(), _Following(job, share, ahead)
            try:
                receipt = {"sha256": job.compute(piece.images, ahead, following)}
            except OutputNotWritable:
                # Overtaken, after a pause long enough to be given up: the unfinished file was swept away.
                receipt = share.ledger.read(piece)
                if receipt is None:
                    raise
            share.done(piece, receipt, time.monotonic() - started)
            finished(piece, receipt)
            piece = following.piece or share.take()


class _Following:
    """Takes the next piece, without waiting for one, and begins to read its first images."""

    def __init__(self, job: _Job, share: Share, ahead: "_Ahead"):
        self.job, self.share, self.ahead = job, share, ahead
        self.piece: Piece | None = None

    def __call__(self) -> None:
        self.piece = self.share.take(wait=False)
        if self.piece is not None:
            self.ahead.begin(self.job.batches(self.piece.images)[0])


class _Ahead:
    """Reads images in a thread: one batch ahead, no further. What goes wrong there is raised where it is asked for."""

    def __init__(self, read: Read):
        self.read = read
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="mechvis reader")
        self.coming: dict[int, Future] = {}

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def begin(self, images: np.ndarray) -> None:
        """Start reading, unless that has begun."""
        if int(images[0]) not in self.coming:
            self.coming[int(images[0])] = self.pool.submit(self.read, images)

    def pixels(self, images: np.ndarray) -> Tensor:
        """The pixels of some images."""
        self.begin(images)
        return self.coming.pop(int(images[0])).result()


def _sweep(folder: Path, pieces: Sequence[Piece], claims: Claims) -> None:
    """Remove what processes that died have left half written. Nobody who lives loses a file: a piece that is being
    computed has a claim."""
    names = {f"images-{p.images.start:08d}-{p.images.stop:08d}": p.name for p in pieces}
    for left in list((folder / "shards").glob("*/.images-*.tmp")):
        name = names.get(left.name[1:].split(".")[0])
        if name is not None and claims.void(name):
            with suppress(FileNotFoundError):
                left.unlink()


def _publish(folder: Path, manifest: Manifest, images: Any) -> None:
    """Write the manifest; of several processes that share the harvest, one does, and all come back when it is there."""
    with Claims(folder / "pieces") as claims:
        while not _published(folder, manifest):
            if claims.take("store"):
                manifest.save(folder, image_table(images))
                return
            time.sleep(POLL)


def _published(folder: Path, manifest: Manifest) -> bool:
    try:
        there = load(folder)
        files.read_together(folder, files.read_manifest(folder, NAME), IMAGES)
    except (BadData, StoreCorrupt):
        return False
    return there.fingerprint == manifest.fingerprint
