"""One file of a store: the rows of one site for some images in a row, readable by anything that reads safetensors.

    activations   [row width]   the rows, images in order, inside an image tokens ascending
    token         [row]         token index of each row (-1: the image as a whole), int16
    crc32         [block 4]     CRC-32 of the activations of each block, little-endian, uint8

The header also says (as text) format, version, site, the store's job, `images` ("first-stop"), rows per image and
images per block. Blocks are what is read and checked at once; the CRC finds damage at three times the speed of a
SHA-256, which the manifest has for the whole file.

A file is written once, from front to back, while the images go through the model: nothing waits in memory for it to be
full.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import ShapeMismatch, StoreCorrupt
from mechvis.store.rows import DTYPES, SiteRows

FORMAT, VERSION = "mechvis.store.shard", 1
_ALIGN = 64
"""Data begins at a multiple of this, so that a mapped file can be used in place."""


@dataclass(frozen=True)
class Shard:
    """Where things lie in one file; everything follows from what the store is."""

    path: Path
    """The file."""
    site: SiteRows
    """What its rows are."""
    images: range
    """Which images."""
    job: str
    """Fingerprint of the job that made the store: a file of another store is not taken for one of this."""

    @property
    def n_rows(self) -> int:
        """Rows in the file."""
        return len(self.images) * self.site.per_image

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row."""
        return self.site.width * self.site.torch_dtype.itemsize

    @property
    def n_blocks(self) -> int:
        """Blocks in the file."""
        return -(-len(self.images) // self.site.images_per_block)

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.start + self.n_rows * (self.bytes_per_row + 2) + 4 * self.n_blocks

    @property
    def start(self) -> int:
        """Where the activations begin."""
        return len(self.header)

    @cached_property
    def header(self) -> bytes:
        """The first bytes of the file, as the safetensors format has them."""
        site, n = self.site, self.n_rows
        about = {
            "format": FORMAT,
            "version": str(VERSION),
            "site": site.name,
            "job": self.job,
            "images": f"{self.images.start}-{self.images.stop}",
            "rows_per_image": str(site.per_image),
            "images_per_block": str(site.images_per_block),
        }
        kinds = (
            ("activations", DTYPES[site.dtype][1], [n, site.width], n * self.bytes_per_row),
            ("token", "I16", [n], 2 * n),
            ("crc32", "U8", [self.n_blocks, 4], 4 * self.n_blocks),
        )
        entries: dict[str, object] = {"__metadata__": about}
        end = 0
        for name, kind, shape, size in kinds:
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGN)
        return len(text).to_bytes(8, "little") + text


class Writer:
    """Takes the rows of a shard, images in order, and knows the checksum at the end."""

    def __init__(self, shard: Shard, file: IO[bytes]):
        self.shard, self.file = shard, file
        self.digest = hashlib.sha256()
        self.crcs: list[int] = []
        self.crc, self.in_block, self.written = 0, 0, 0
        self._put(shard.header)

    def write(self, rows: Tensor) -> None:
        """Rows `[row width]` of the next images, whole images, on the CPU and in the store's type."""
        data = memoryview(rows.contiguous().view(torch.uint8).numpy()).cast("B")
        self._put(data)
        per_image = self.shard.bytes_per_row * self.shard.site.per_image
        block = self.shard.site.images_per_block * per_image
        while data:
            taken = data[: block - self.in_block]
            self.crc, self.in_block = zlib.crc32(taken, self.crc), self.in_block + len(taken)
            if self.in_block == block:
                self._end_block()
            data = data[len(taken) :]
        self.written += len(rows)

    def close(self) -> str:
        """Write what comes after the rows; returns the file's SHA-256 in hex.

        Raises:
            ShapeMismatch: not as many rows as the header promises.
        """
        shard = self.shard
        if self.written != shard.n_rows:
            raise ShapeMismatch(f"{shard.path.name}: {self.written} rows for a shard of {shard.n_rows}.")
        if self.in_block:
            self._end_block()
        self._put(tokens_of(shard).tobytes())
        self._put(np.array(self.crcs, dtype="<u4").tobytes())
        return self.digest.hexdigest()

    def _end_block(self) -> None:
        self.crcs.append(self.crc)
        self.crc, self.in_block = 0, 0

    def _put(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.file.write(data)


@contextmanager
def writing(shard: Shard) -> Iterator[Writer]:
    """A writer of a file that gets its name when the block ends, and leaves no trace if it raises.

    Raises:
        OutputNotWritable: names the file and what the system said.
    """
    with files.replacing(shard.path) as file:
        yield Writer(shard, file)


def tokens_of(shard: Shard) -> np.ndarray:
    """Token index of every row of a shard, int16 `[row]`."""
    images = np.arange(shard.images.start, shard.images.stop)
    return np.ascontiguousarray(shard.site.tokens.of(images).reshape(-1).astype("<i2"))


def checksums(shard: Shard) -> np.ndarray:
    """CRC-32 of every block as the file has them, uint32 `[block]`; size and header of the file are checked.

    Raises:
        StoreCorrupt: the file is missing, cut short, of another store, or its header was changed.
    """
    try:
        with shard.path.open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            if size != shard.n_bytes:
                raise _corrupt(shard, f"has {size:,} bytes where {shard.n_bytes:,} were written")
            file.seek(0)
            if file.read(shard.start) != shard.header:
                raise _corrupt(shard, "has another header: it was changed, or is a file of another store")
            file.seek(size - 4 * shard.n_blocks)
            return np.frombuffer(file.read(4 * shard.n_blocks), dtype="<u4")
    except FileNotFoundError as error:
        raise _corrupt(shard, "is missing") from error
    except OSError as error:
        raise _corrupt(shard, f"cannot be read: {error.strerror or error}") from error


def read_blocks(shard: Shard, first: int, stop: int, crcs: np.ndarray, into: Tensor) -> None:
    """Read blocks `first` to `stop` into `[row width]`, and check each.

    Args:
        shard: the file.
        first: number of the first block.
        stop: number of the block after the last.
        crcs: from :func:`checksums`.
        into: a contiguous tensor of the right type with exactly their rows.

    Raises:
        StoreCorrupt: names the file, the block and its images.
    """
    per_image = shard.bytes_per_row * shard.site.per_image
    block = shard.site.images_per_block * per_image
    data = memoryview(into.view(torch.uint8).numpy()).cast("B")
    try:
        with shard.path.open("rb", buffering=0) as file:
            file.seek(shard.start + first * block)
            done = 0
            while done < len(data) and (got := file.readinto(data[done:])):
                done += got
    except OSError as error:
        raise _corrupt(shard, f"cannot be read: {error.strerror or error}") from error
    if done < len(data):
        raise _corrupt(shard, f"ends in block {first + done // block}")
    for number in range(first, stop):
        at = (number - first) * block
        if zlib.crc32(data[at : at + block]) != crcs[number]:
            start = shard.images.start + number * shard.site.images_per_block
            last = min(start + shard.site.images_per_block, shard.images.stop)
            raise _corrupt(
                shard, f"is damaged in block {number} (images {start} to {last - 1}): its checksum does not fit"
            )


def _corrupt(shard: Shard, what: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"{shard.path} {what}. store.repair(model, images) computes this file again (`mechvis store repair`)."
    )
