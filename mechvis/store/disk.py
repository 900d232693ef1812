"""The files of a store as a source of rows: which blocks there are, and their rows read and checked.

Blocks are read whole, neighbours in one go, in the order in which they lie on disk; each is checked before any of its
rows is used.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import ShapeMismatch
from mechvis.store.manifest import Manifest
from mechvis.store.rows import SiteRows
from mechvis.store.shard import Shard, checksums, read_blocks

THREADS = 4
"""Files are read and checked by so many threads; both leave Python's lock."""


class Disk:
    """Rows of some sites of a store."""

    def __init__(self, folder: Path, manifest: Manifest, sites: Sequence[SiteRows] | None = None):
        self.folder, self.manifest = folder, manifest
        self.sites = {site.name: site for site in (manifest.sites.values() if sites is None else sites)}
        self._crcs: dict[Path, np.ndarray] = {}

    def of(self, sites: Sequence[SiteRows]) -> "Disk":
        """The same files, some sites.

        Raises:
            ShapeMismatch: sites whose rows are not about the same tokens.
        """
        for site in sites[1:]:
            if site.tokens != sites[0].tokens:
                raise ShapeMismatch(
                    f"rows of {site.name} and {sites[0].name} are not about the same tokens: {site.per_image} and "
                    f"{sites[0].per_image} per image. Read them one by one."
                )
        return Disk(self.folder, self.manifest, sites)

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the rows, for the state of a reader."""
        return {"store": self.manifest.fingerprint}

    @property
    def blocks(self) -> np.ndarray:
        """First image and the one after the last, of each block, int64 `[block 2]`."""
        step = max(site.images_per_block for site in self.sites.values())
        starts = [np.arange(part.start, part.stop, step) for part in self.manifest.parts]
        stops = [np.minimum(start + step, part.stop) for start, part in zip(starts, self.manifest.parts, strict=True)]
        return np.stack([np.concatenate(starts), np.concatenate(stops)], axis=1)

    def shards(self) -> Iterator[Shard]:
        """Every file of these sites."""
        for part in self.manifest.parts:
            for name in self.sites:
                yield self.manifest.shard(self.folder, name, part)

    def fill(self, images: np.ndarray, into: Mapping[str, Tensor]) -> None:
        """Read the rows of images into `[image*row width]` tensors by site, in the order of `images`.

        Raises:
            StoreCorrupt: names the file that is missing or damaged.
        """
        if len(images) == 0:
            return None
        # Neighbours that lie in one file: one read, however they were asked for.
        each = self.manifest.images_each
        breaks = np.flatnonzero((np.diff(images) != 1) | (images[1:] % each == 0)) + 1
        runs = np.split(np.arange(len(images)), breaks)
        runs = sorted(runs, key=lambda run: images[run[0]])
        tasks = [(name, run) for name in into for run in runs]

        def read(task: tuple[str, np.ndarray]) -> None:
            name, run = task
            self._read(name, int(images[run[0]]), int(images[run[-1]]) + 1, int(run[0]), into[name])

        if len(tasks) == 1:
            return read(tasks[0])
        with ThreadPoolExecutor(THREADS, thread_name_prefix="mechvis store") as pool:
            for done in [pool.submit(read, task) for task in tasks]:
                done.result()
        return None

    def _read(self, name: str, start: int, stop: int, at: int, into: Tensor) -> None:
        """Images `start` to `stop`, all of one file, to rows of `into` from image `at` on."""
        site, each = self.sites[name], self.manifest.images_each
        first = start - start % each
        shard = self.manifest.shard(self.folder, name, range(first, min(first + each, self.manifest.n_images)))
        crcs = self._crcs.get(shard.path)
        if crcs is None:
            crcs = self._crcs[shard.path] = checksums(shard)
        block = site.images_per_block
        one, last = (start - first) // block, -(-(stop - first) // block)
        whole = range(first + one * block, min(first + last * block, shard.images.stop))
        rows = into[at * site.per_image : (at + stop - start) * site.per_image]
        if whole == range(start, stop):
            return read_blocks(shard, one, last, crcs, rows)
        read = torch.empty(len(whole) * site.per_image, site.width, dtype=site.torch_dtype)
        read_blocks(shard, one, last, crcs, read)
        rows.copy_(read[(start - whole.start) * site.per_image : (stop - whole.start) * site.per_image])
        return None
