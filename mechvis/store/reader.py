"""Shuffled batches, from files or straight from a model, at a position that can be saved and continued exactly.

1. An epoch takes the blocks of the source (neighbouring images) in random order.
2. As many blocks as fit half of the memory make a *pool*. The pool is read in the order of the files, and its rows are
   handed out in random order; the next pool is read meanwhile into the other half.
3. Both orders are hashes of seed, epoch and number (`mechvis.store.order`), so the position is all there is to save: a
   state is a few numbers, and continuing reads one pool again. No buffer has to be kept.

So a disk sees reads of a megabyte, and a batch sees rows from as many places of the data set as a pool has blocks.
The plain twin, which the tests compare with: read everything, and put it in the same order.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mechvis.engine import budget_bytes
from mechvis.errors import BadData, OutOfRange, ResultMismatch
from mechvis.files import plain_json
from mechvis.store.order import BLOCKS, ROWS, permutation
from mechvis.store.rows import SiteRows

BUFFER = "512MB"
"""Memory for two pools. With blocks of a megabyte a batch then draws from 256 places of the data set."""


class Source(Protocol):
    """Where rows come from."""

    @property
    def sites(self) -> Mapping[str, SiteRows]:
        """The sites, whose rows are about the same tokens."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What fixes the rows; a position only makes sense for the same."""
        ...

    @property
    def blocks(self) -> np.ndarray:
        """First image and the one after the last, of each block, int64 `[block 2]`."""
        ...

    def fill(self, images: np.ndarray, into: Mapping[str, Tensor]) -> None:
        """Put the rows of images into `[image*row width]` tensors by site."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, and what they are about."""

    activations: dict[str, Tensor]
    """`[row width]` by site."""
    image: Tensor
    """Position of each row's image in the set, int64 `[row]`."""
    token: Tensor
    """Token index of each row (-1: the image as a whole), int64 `[row]`."""

    @property
    def x(self) -> Tensor:
        """The activations `[row width]`, where there is one site.

        Raises:
            BadData: there are several.
        """
        if len(self.activations) != 1:
            raise BadData(f"this batch has {len(self.activations)} sites; say which: batch['<site>'].")
        return next(iter(self.activations.values()))

    def __getitem__(self, site: str) -> Tensor:
        return self.activations[site]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows in memory, and the order in which they are handed out."""

    images: np.ndarray
    """Images, ascending."""
    tokens: np.ndarray
    """Token index of each of their rows, `[image row]`."""
    order: np.ndarray
    """Numbers of the rows, shuffled."""
    rows: dict[str, Tensor]
    """`[row width]` by site, images in order."""

    def take(self, start: int, stop: int) -> Batch:
        """The rows that are handed out as number `start` to `stop`."""
        chosen = self.order[start:stop]
        image, place = np.divmod(chosen, self.tokens.shape[1])
        index = torch.from_numpy(chosen)
        return Batch(
            {name: torch.index_select(rows, 0, index) for name, rows in self.rows.items()},
            torch.from_numpy(self.images[image]),
            torch.from_numpy(self.tokens[image, place]),
        )


class Epoch:
    """The order of one epoch: which images each pool holds, and which rows come when."""

    def __init__(self, blocks: np.ndarray, per_image: int, pool_images: int, seed: int, epoch: int):
        self.per_image, self.seed, self.epoch = per_image, seed, epoch
        order = permutation(len(blocks), seed, BLOCKS, epoch)
        ends = np.cumsum((blocks[:, 1] - blocks[:, 0])[order])
        first, self.pools = 0, []
        while first < len(order):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + pool_images, side="right")))
            self.pools.append(blocks[np.sort(order[first:last])])
            first = last
        self.ends = per_image * np.cumsum([(pool[:, 1] - pool[:, 0]).sum() for pool in self.pools])

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return int(self.ends[-1])

    def images(self, pool: int) -> np.ndarray:
        """Images of a pool, ascending."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.pools[pool]])

    def rows(self, pool: int) -> np.ndarray:
        """The order of a pool's rows."""
        start = self.ends[pool - 1] if pool else 0
        return permutation(int(self.ends[pool] - start), self.seed, ROWS, self.epoch, pool)


class Reader(Iterator[Batch]):
    """Batches of rows, shuffled: an iterator that remembers where it is."""

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        seed: int = 0,
        epoch: int = 0,
        epochs: int = 1,
        images: range | None = None,
        part: tuple[int, int] = (0, 1),
        buffer: str | int = BUFFER,
        drop_last: bool = False,
        prefetch: bool = True,
    ):
        """See `Store.batches` and `mechvis.store.stream`."""
        blocks, sites = source.blocks, list(source.sites.values())
        images = range(int(blocks[-1, 1])) if images is None else images
        if images.step != 1 or not 0 <= images.start < images.stop <= blocks[-1, 1]:
            raise OutOfRange(f"images={images!r}: the store has images 0 to {blocks[-1, 1] - 1}; give a range of them.")
        rank, ranks = part
        if size < 1 or epochs < 1 or epoch < 0 or not 0 <= rank < ranks:
            raise BadData(f"size={size}, epoch={epoch}, epochs={epochs}, part={part} cannot be.")
        blocks = np.clip(blocks, images.start, images.stop)
        self._blocks = blocks[blocks[:, 0] < blocks[:, 1]]
        self._source, self._first = source, sites[0]
        self._size, self._part, self._drop_last, self._prefetch = size, part, drop_last, prefetch
        self._seed, self._last = seed, epoch + epochs
        each = sum(site.bytes_per_image for site in sites)
        self._pool_images = max(1, budget_bytes(buffer, torch.device("cpu")) // 2 // each)
        self._images = images
        self.epoch, self.row = epoch, 0
        self._epochs: dict[int, Epoch] = {}
        if drop_last and self._rows_used(epoch) == 0:
            raise BadData(f"drop_last=True, and the {self._order(epoch).n_rows} rows fill no batch of {size}.")
        self._buffers: list[dict[str, Tensor]] = [{}, {}]
        self._held: tuple[tuple[int, int], Pool, int] | None = None
        self._coming: tuple[tuple[int, int], Future] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mechvis pools")

    @property
    def n_rows(self) -> int:
        """Rows of an epoch."""
        return self._order(self.epoch).n_rows

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return -(-self._rows_used(self.epoch) // self._size)

    def __next__(self) -> Batch:
        if self.epoch >= self._last:
            raise StopIteration
        order, used = self._order(self.epoch), self._rows_used(self.epoch)
        stop = min(self.row + self._size, used)
        n, (rank, ranks) = stop - self.row, self._part
        batch = self._gather(order, self.row + n * rank // ranks, self.row + n * (rank + 1) // ranks)
        self.row = stop
        if stop == used:
            self.epoch, self.row = self.epoch + 1, 0
            self._epochs.pop(self.epoch - 2, None)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out: plain numbers, for JSON or a checkpoint."""
        return {**self._settings(), "epoch": self.epoch, "row": self.row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position: what follows are the batches that would have followed there.

        Raises:
            ResultMismatch: it is a position in something else; says what differs.
        """
        known = plain_json(self._settings())
        differ = [key for key in known if state.get(key) != known[key]]
        if differ:
            told = "; ".join(f"{key}: there {state.get(key)!r}, now {known[key]!r}" for key in differ[:3])
            raise ResultMismatch(
                f"this position belongs to another reader; it differs in: {', '.join(differ)}. {told}."
            )
        self._drop()
        self.epoch, self.row = int(state["epoch"]), int(state["row"])

    def _settings(self) -> dict[str, Any]:
        """What fixes the order."""
        return {
            "version": 1,
            **self._source.settings,
            "sites": list(self._source.sites),
            "images": [self._images.start, self._images.stop],
            "size": self._size,
            "seed": self._seed,
            "pool_images": self._pool_images,
            "drop_last": self._drop_last,
        }

    def _order(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            order = Epoch(self._blocks, self._first.per_image, self._pool_images, self._seed, epoch)
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def _rows_used(self, epoch: int) -> int:
        n = self._order(epoch).n_rows
        return n - n % self._size if self._drop_last else n

    def _gather(self, order: Epoch, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of an epoch, from as many pools as they lie in."""
        parts = []
        while start < stop or not parts:
            number = min(int(np.searchsorted(order.ends, start, side="right")), len(order.ends) - 1)
            before = int(order.ends[number - 1]) if number else 0
            until = min(stop, int(order.ends[number]))
            parts.append(self._pool(order.epoch, number).take(start - before, until - before))
            start = until
        if len(parts) == 1:
            return parts[0]
        return Batch(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0].activations},
            torch.cat([part.image for part in parts]),
            torch.cat([part.token for part in parts]),
        )

    def _pool(self, epoch: int, number: int) -> Pool:
        if self._held is None or self._held[0] != (epoch, number):
            # The buffer that is not in use: of the two, one is held, the other being filled.
            free = 0 if self._held is None else 1 - self._held[2]
            coming, self._coming = self._coming, None
            if coming is not None:
                wait([coming[1]])
            if coming is not None and coming[0] == (epoch, number):
                pool = coming[1].result()
            else:
                pool = self._load(epoch, number, free)
            self._held = (epoch, number), pool, free
            following = self._following(epoch, number)
            if self._prefetch and following is not None:
                self._coming = following, self._thread.submit(self._load, *following, 1 - free)
        return self._held[1]

    def _following(self, epoch: int, number: int) -> tuple[int, int] | None:
        if number + 1 < len(self._order(epoch).pools):
            return epoch, number + 1
        if epoch + 1 >= self._last:
            return None
        self._order(epoch + 1)  # here, not in the thread
        return epoch + 1, 0

    def _load(self, epoch: int, number: int, which: int) -> Pool:
        order = self._epochs[epoch]
        images, buffers = order.images(number), self._buffers[which]
        n = len(images) * self._first.per_image
        for name, site in self._source.sites.items():
            if name not in buffers or len(buffers[name]) < n:
                # Kept for later pools: taking fresh memory from the system costs more than reading into it.
                buffers[name] = torch.empty(n, site.width, dtype=site.torch_dtype)
        rows = {name: buffers[name][:n] for name in self._source.sites}
        self._source.fill(images, rows)
        return Pool(images, self._first.tokens.of(images), order.rows(number), rows)

    def _drop(self) -> None:
        """Forget what was read."""
        if self._coming is not None:
            wait([self._coming[1]])
        self._held = self._coming = None
