"""Finding damaged files of a store, and computing these alone again.

A file is found by its SHA-256 (the whole of it), and what is wrong is told by its blocks. It is made again by the very
forward passes that made it: the same images share a pass, and the pass keeps the same sites up to the last one that is
wanted. On the same kind of machine the bytes are therefore the same, and that is checked before the file takes the old
one's place.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mechvis import files
from mechvis.errors import StoreCorrupt
from mechvis.parallel.ledger import Ledger, Piece
from mechvis.progress import track
from mechvis.store.forward import Forward, namer, reader
from mechvis.store.manifest import IMAGES, NAME, Manifest, plan_of, refuse_other
from mechvis.store.piece import batches_of, write_rows
from mechvis.store.rows import one_image, rows_at
from mechvis.store.shard import Shard, checksums, read_blocks
from mechvis.sweep_inputs import image_table

if TYPE_CHECKING:
    from mechvis.store.store import Store

logger = logging.getLogger(__name__)


def damaged(store: "Store", *, progress: bool = False) -> dict[Path, str]:
    """The files of a store that are missing or damaged, and what is wrong; see `Store.damaged`."""
    manifest, found = store.manifest, {}
    with track(store.n_bytes, "verify", "B", show=progress) as bar:
        for name in store:
            for part, expected in zip(manifest.parts, manifest.sha256[name], strict=True):
                shard = manifest.shard(store.folder, name, part)
                if what := _wrong(shard, expected):
                    found[shard.path] = what
                bar.update(shard.n_bytes)
    try:
        files.read_together(store.folder, files.read_manifest(store.folder, NAME), IMAGES)
    except StoreCorrupt as error:
        found[store.folder / IMAGES] = str(error)
    return found


def repair(store: "Store", model: Any, images: Any, *, exact: bool = True, progress: bool = False) -> list[Path]:
    """Compute the damaged files of a store again; see `Store.repair`."""
    bad = damaged(store, progress=progress)
    if not bad:
        return []
    manifest, folder = store.manifest, store.folder
    known = manifest.plan
    read, first = reader(model, images), one_image(model, images)
    asked = {name: known[name] for name in ("tokens", "dtype", "seed")}
    sites = rows_at(model, first, known["sites"], n_images=len(images), **asked)
    rows = {site.name: site for site in sites}
    refuse_other(plan_of(model, images, rows, tokens=known["tokens"], seed=known["seed"]), known, folder)
    forward = Forward(model=model, read=read, sites=manifest.sites, describe=namer(images))
    changed = manifest
    for number, part in enumerate(manifest.parts):
        names = [name for name in manifest.sites if manifest.shard(folder, name, part).path in bad]
        if names:
            expected = [manifest.sha256[name][number] for name in names]
            shards = [manifest.shard(folder, name, part) for name in names]
            changed = _again(forward, changed, number, shards, expected if exact else None)
    if changed is not manifest or folder / IMAGES in bad:
        changed.save(folder, image_table(images))
        store.manifest = changed
    store.forget()
    return list(bad)


def _again(
    forward: Forward, manifest: Manifest, number: int, shards: list[Shard], expected: list[str] | None
) -> Manifest:
    """Compute some files of a piece again; returns the manifest with their checksums."""
    part, last = shards[0].images, shards[-1].site.name
    for shard in shards:
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("computing %s again.", shard.path)
    batches = (forward.rows(images, upto=last) for images in batches_of(part, manifest.batch))
    found = [digest.tobytes().hex() for digest in write_rows(shards, batches, expected)]
    new = {name: list(known) for name, known in manifest.sha256.items()}
    for shard, digest in zip(shards, found, strict=True):
        new[shard.site.name][number] = digest
    if new == manifest.sha256:
        return manifest
    if (pieces := shards[0].path.parents[2] / "pieces" / "plan.json").exists():
        # The ledger too: the same harvest, called again, would bring the old checksums back.
        digests = [np.frombuffer(bytes.fromhex(known[number]), dtype=np.uint8) for known in new.values()]
        Ledger(pieces.parent, manifest.plan).write(Piece(part, range(1)), {"sha256": np.stack(digests)})
    logger.warning("images %d to %d: other bits than before; their checksums are corrected.", part.start, part.stop - 1)
    return replace(manifest, sha256=new)


def _wrong(shard: Shard, expected: str) -> str | None:
    """What is wrong with a file, or None."""
    try:
        if files.file_checksum(shard.path) == expected:
            return None
        crcs, bad = checksums(shard), []
        for block in range(shard.n_blocks):
            start = block * shard.site.images_per_block
            n = min(shard.site.images_per_block, len(shard.images) - start) * shard.site.per_image
            try:
                read_blocks(
                    shard, block, block + 1, crcs, torch.empty(n, shard.site.width, dtype=shard.site.torch_dtype)
                )
            except StoreCorrupt:
                bad.append((shard.images.start + start, shard.images.start + start + n // shard.site.per_image - 1))
    except StoreCorrupt as error:
        if not shard.path.exists():
            return "missing"
        return str(error).removeprefix(f"{shard.path} ").split(". store.repair")[0]
    if not bad:
        return "damaged behind the activations (tokens or checksums)"
    told = ", ".join(f"{a} to {b}" for a, b in bad[:4]) + (" ..." if len(bad) > 4 else "")
    return f"damaged in {len(bad)} of {shard.n_blocks} blocks (images {told})"
