"""A store of activations, opened: what is in it, rows by number or by image, batches for training, checks and repair.

Nothing is loaded before it is asked for, and whatever is read is checked: a flipped byte is an error that names the
file and its images, never a number.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import OutOfRange, StoreCorrupt, UnknownSite, nearest
from mechvis.store.disk import Disk
from mechvis.store.manifest import IMAGES, NAME, Manifest, load
from mechvis.store.reader import BUFFER, Reader
from mechvis.store.rows import SiteRows
from mechvis.store.tokens import type_names


class Activations:
    """The rows of one site, as an array that lies on disk.

    Example:
        >>> rows = store["blocks.2.hook_resid_post"]      # doctest: +SKIP
        >>> rows[1000:1064].shape, rows.where([1000])      # doctest: +SKIP
        (torch.Size([64, 128]), (array([15]), array([40])))
    """

    def __init__(self, site: SiteRows, disk: Disk, manifest: Manifest):
        self.site, self._disk, self._manifest = site, disk, manifest

    def __len__(self) -> int:
        return self._manifest.n_images * self.site.per_image

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, width)."""
        return len(self), self.site.width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers on disk, and of what is read."""
        return self.site.torch_dtype

    @property
    def block(self) -> int:
        """Images that are read together, and stay together in the first step of shuffling."""
        return min(self.site.images_per_block, self._manifest.images_each)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Tensor:
        """Rows `[row width]` by number (one number: `[width]`), checked as they are read.

        Raises:
            OutOfRange: there is no such row.
            StoreCorrupt: a file is missing or damaged; names it.
        """
        if isinstance(index, slice):
            chosen = np.arange(len(self))[index]
        else:
            chosen = np.atleast_1d(np.asarray(index))
            if chosen.dtype == bool and len(chosen) == len(self):
                chosen = chosen.nonzero()[0]
            if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
                raise OutOfRange(f"rows are chosen by whole numbers, a slice or a mask of all rows, not {index!r}.")
            outside = chosen[(chosen < -len(self)) | (chosen >= len(self))]
            if len(outside):
                raise OutOfRange(f"row {int(outside[0])} of {self.site.name}: there are {len(self)}.")
            chosen = chosen.astype(np.int64) % max(1, len(self))
        per_image = self.site.per_image
        images, place = np.unique(chosen // per_image, return_inverse=True)
        rows = self._images(images)[torch.from_numpy(place * per_image + chosen % per_image)]
        return rows[0] if np.ndim(index) == 0 and not isinstance(index, slice) else rows

    def of_images(self, images: Sequence[int] | np.ndarray) -> Tensor:
        """Rows of some images `[image row width]`, by their positions in the set.

        Raises:
            OutOfRange: there is no such image.
            StoreCorrupt: a file is missing or damaged; names it.
        """
        images = np.asarray(images, dtype=np.int64)
        outside = images[(images < 0) | (images >= self._manifest.n_images)]
        if len(outside):
            raise OutOfRange(f"image {int(outside[0])}: the store has 0 to {self._manifest.n_images - 1}.")
        found, place = np.unique(images, return_inverse=True)
        return self._images(found).unflatten(0, (-1, self.site.per_image))[torch.from_numpy(place)]

    def where(self, index: slice | Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which image and which token rows are about: two int64 arrays `[row]`; token -1 is the image as a whole."""
        chosen = np.arange(len(self))[index]
        image, place = np.divmod(chosen, self.site.per_image)
        return image, self.site.tokens.of(image)[np.arange(len(image)), place]

    def unflatten(self, rows: Tensor) -> Tensor:
        """Rows with the site's own axes: `[row head d_head]` for a site that has heads."""
        return self.site.unflatten(rows)

    def _images(self, images: np.ndarray) -> Tensor:
        """Rows of images that ascend, `[image*row width]`."""
        out = torch.empty(len(images) * self.site.per_image, self.site.width, dtype=self.dtype)
        self._disk.fill(images, {self.site.name: out})
        return out

    def __repr__(self) -> str:
        kept = " ".join(f"{axis}={size}" for axis, size in self.site.kept.items())
        return f"Activations({self.site.name!r}, {len(self)} rows of [{kept}], {self.site.dtype})"


class Store(Mapping[str, Activations]):
    """Activations on disk, by site; made by :func:`mechvis.harvest`, opened by :func:`mechvis.store.open`."""

    def __init__(self, folder: str | Path, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest
        self._disk = Disk(self.folder, manifest)

    def __getitem__(self, site: str) -> Activations:
        if site not in self.manifest.sites:
            have = ", ".join(nearest(site, self.manifest.sites))
            raise UnknownSite(f"{site!r} is not in this store. It has: {have}{' ...' if len(self) > 3 else ''}.")
        return Activations(self.manifest.sites[site], self._disk, self.manifest)

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.sites)

    def __len__(self) -> int:
        return len(self.manifest.sites)

    @property
    def n_images(self) -> int:
        """Images in the store."""
        return self.manifest.n_images

    @property
    def n_bytes(self) -> int:
        """Size of its files."""
        return sum(shard.n_bytes for shard in self._disk.shards())

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content: equal for stores with equal bytes."""
        return self.manifest.fingerprint

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from: hashes of model and images, versions, command."""
        return self.manifest.provenance

    @cached_property
    def images(self) -> Any:
        """A polars table, one row per image: `id`, and `label` and `group` where they are known.

        Raises:
            StoreCorrupt: its file is damaged.
        """
        import io

        import polars as pl

        known = files.read_manifest(self.folder, NAME)
        return pl.read_parquet(io.BytesIO(files.read_together(self.folder, known, IMAGES)))

    def types(self, tokens: np.ndarray) -> np.ndarray:
        """Type of token indices: a name of the prefix (`cls`, `register0`, ...), `patch`, or `image`.

        Example:
            >>> image, token = store["blocks.2.hook_resid_post"].where([0, 1])     # doctest: +SKIP
            >>> store.types(token)                                                 # doctest: +SKIP
            array(['cls', 'patch'], dtype='<U5')
        """
        return type_names(np.asarray(tokens), self.manifest.prefix)

    def batches(
        self,
        sites: str | Sequence[str],
        *,
        size: int = 4096,
        seed: int = 0,
        epoch: int = 0,
        epochs: int = 1,
        images: range | None = None,
        part: tuple[int, int] = (0, 1),
        buffer: str | int = BUFFER,
        drop_last: bool = False,
        prefetch: bool = True,
    ) -> Reader:
        """Shuffled batches of rows; every row once per epoch. An iterator whose position can be saved.

        Args:
            sites: one site, or several whose rows are about the same tokens (for crosscoders, transcoders, or many
                dictionaries at once).
            size: rows per batch; the last of an epoch may have fewer.
            seed: of the order.
            epoch: number of the first epoch; every epoch has an order of its own.
            epochs: how many epochs.
            images: only these images (say `range(0, 9000)` to train and the others to evaluate).
            part: `(rank, ranks)`: of each batch only this rank's share. Ranks together get exactly the batches of one
                process, so a position can be continued with another number of ranks; each reads all files.
            buffer: memory for two pools of rows: blocks are read in random order, and rows shuffled inside a pool.
            drop_last: leave out the rows at the end of an epoch that fill no batch.
            prefetch: read the next pool in a thread.

        Raises:
            UnknownSite, ShapeMismatch, OutOfRange, BadData; StoreCorrupt while reading.

        Example:
            >>> reader = store.batches("blocks.2.hook_resid_post", size=4096, seed=0)     # doctest: +SKIP
            >>> for batch in reader:                                                      # doctest: +SKIP
            ...     loss = train(batch.x)
            ...     checkpoint = {"reader": reader.state_dict()}
        """
        names = [sites] if isinstance(sites, str) else list(sites)
        return Reader(
            self._disk.of([self[name].site for name in names]),
            size=size,
            seed=seed,
            epoch=epoch,
            epochs=epochs,
            images=images,
            part=part,
            buffer=buffer,
            drop_last=drop_last,
            prefetch=prefetch,
        )

    def paths(self) -> list[Path]:
        """The files that hold rows."""
        return [shard.path for shard in self._disk.shards()]

    def absent(self) -> list[Path]:
        """Files that are missing or have another size; nothing is read."""
        shards = self._disk.shards()
        return [s.path for s in shards if not s.path.exists() or s.path.stat().st_size != s.n_bytes]

    def damaged(self, *, progress: bool = False) -> dict[Path, str]:
        """Read everything and compare with the checksums: the files that are missing or damaged, and what is wrong."""
        from mechvis.store.repair import damaged

        return damaged(self, progress=progress)

    def verify(self, *, progress: bool = False) -> None:
        """Read everything and compare with the checksums.

        Raises:
            StoreCorrupt: names every file that is missing or damaged.
        """
        found = self.damaged(progress=progress)
        if found:
            lines = "\n".join(f"  {path}: {what}" for path, what in found.items())
            raise StoreCorrupt(
                f"{len(found)} file(s) of {self.folder} are missing or damaged:\n{lines}\n"
                "store.repair(model, images) computes these alone again (`mechvis store repair`)."
            )

    def repair(self, model: Any, images: Any, *, exact: bool = True, progress: bool = False) -> list[Path]:
        """Compute the files that are missing or damaged again, and those alone.

        Args:
            model: the model that the store was made from.
            images: the images that it was made from.
            exact: refuse numbers that are not equal to the lost ones bit by bit (another machine, number of threads or
                version of torch rounds differently). False accepts them, and corrects the checksums.
            progress: show a progress bar.

        Returns:
            The files that were written.

        Raises:
            ResultMismatch: another model, preprocessing or set of images, or (with `exact`) other bits; says which.
        """
        from mechvis.store.repair import repair

        return repair(self, model, images, exact=exact, progress=progress)

    def forget(self) -> None:
        """Look at files that have changed on disk (repaired ones) as if they had never been read."""
        self._disk = Disk(self.folder, self.manifest)

    def __repr__(self) -> str:
        size, tokens = f"{self.n_bytes / 1e6:,.1f} MB", self.manifest.plan["tokens"]
        lines = [f"Store({str(self.folder)!r}: {self.n_images} images, tokens {tokens}, {size})"]
        return "\n".join([*lines, *(f"  {self[name]!r}" for name in self)])


def open(folder: str | Path) -> Store:
    """Open a store; its manifest is checked, its files when they are read.

    Raises:
        BadData: there is no store, an unfinished one, or one of a newer version.
        StoreCorrupt: the manifest is damaged.

    Example:
        >>> store = mechvis.store.open("runs/acts")        # doctest: +SKIP
    """
    return Store(folder, load(folder))
