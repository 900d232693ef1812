"""The files of one piece: rows of the same images at several sites, a batch at a time.

A batch is written while the next one is computed, and never more than one waits. The files get their names together
when all are complete; if anything goes wrong, none has changed.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

import numpy as np
from torch import Tensor

from mechvis.errors import OutputNotWritable, ResultMismatch
from mechvis.store.shard import Shard, Writer, writing


def batches_of(images: range, batch: int) -> list[np.ndarray]:
    """Positions of the images that share a forward pass: from the first image of a file on, `batch` each.

    Example:
        >>> [part.tolist() for part in batches_of(range(4, 9), 2)]
        [[4, 5], [6, 7], [8]]
    """
    starts = range(images.start, images.stop, batch)
    return [np.arange(start, min(start + batch, images.stop)) for start in starts]


def write_rows(
    shards: Sequence[Shard], batches: Iterable[dict[str, Tensor]], expected: Sequence[str] | None = None
) -> np.ndarray:
    """Write the files of some sites for the same images.

    Args:
        shards: one per site.
        batches: rows by site (others are left out), images in order.
        expected: SHA-256 that each file must have.

    Returns:
        SHA-256 of each file, uint8 `[file 32]`.

    Raises:
        OutputNotWritable: names the file.
        ResultMismatch: a file would not have the expected checksum.
    """
    with ExitStack() as held:
        pool = held.enter_context(ThreadPoolExecutor(1, thread_name_prefix="mechvis writer"))
        writers = [held.enter_context(writing(shard)) for shard in shards]
        pending: Future | None = None
        try:
            for rows in batches:
                if pending is not None:
                    pending.result()
                pending = pool.submit(_write, writers, rows)
        finally:  # the files may not be closed under the thread that writes
            if pending is not None:
                wait([pending])
        if pending is not None:
            pending.result()
        digests = [writer.close() for writer in writers]
        for shard, digest, wanted in zip(shards, digests, expected or digests, strict=True):
            if digest != wanted:
                raise ResultMismatch(
                    f"{shard.path} would not have the bytes that it had: this machine, its number of threads or its "
                    "version of torch rounds differently. The old file was left. Repair where the store was made, or "
                    "accept numbers that differ by rounding: store.repair(model, images, exact=False)."
                )
    return np.stack([np.frombuffer(bytes.fromhex(digest), dtype=np.uint8) for digest in digests])


def _write(writers: Sequence[Writer], rows: dict[str, Tensor]) -> None:
    for writer in writers:
        try:
            writer.write(rows[writer.shard.site.name])
        except OSError as error:  # a full disk does not say which file it was about
            raise OutputNotWritable(f"cannot write {writer.shard.path}: {error.strerror or error}.") from error
