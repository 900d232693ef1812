"""The images of a task, run once and kept, for searches that come back to them thousands of times.

A search measures the same images again and again. Their clean runs and what cut edges carry do not change, so they are
kept, as long as they fit a share of the task's memory; where they do not, every pass over the images runs them anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from circuits.task import Batch, Task

SHARE = 0.5
"""Share of the task's memory that may be kept."""


class Held:
    """The batches of a task.

    Args:
        task: what is explained.
        size: images per batch; default: as many as the budget allows for one circuit.
        share: share of the task's memory to keep runs in; 0 keeps nothing.

    Example:
        >>> for batch in Held(task):                                                               # doctest: +SKIP
        ...     task.score(batch.logits, batch)
    """

    def __init__(self, task: Task, size: int | None = None, *, share: float = SHARE):
        self.task, self.share = task, share
        self.size = max(1, min(len(task), size or task.rows_at_once()))
        self._kept: list[Batch] | None = None
        self._fits: bool | None = None

    @property
    def kept(self) -> bool:
        """Whether the runs are kept in memory (known after the first pass)."""
        return self._kept is not None

    def __len__(self) -> int:
        return -(-len(self.task) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        seen = []
        for batch in self.task.batches(self.size):
            if self._fits is None:
                self._fits = size_of(batch) * len(self) <= self.share * self.task.budget
            if self._fits:
                seen.append(batch)
            yield batch
        if self._fits:
            self._kept = seen


def size_of(batch: Batch) -> int:
    """Bytes of what a batch holds: the clean run with its streams, and what cut edges carry."""
    held: list[Tensor] = [*batch.clean.tensors(), *batch.clean.streams, *batch.base.tensors()]
    held += list(getattr(batch.base, "streams", ()))
    return sum(value.numel() * value.element_size() for value in held)


def part(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some images of a batch that holds all images of its task.

    Args:
        batch: from `task.batch(range(len(task)))`; its field `rows` is left as it is.
        rows: positions in it.
    """
    classes = tuple(values[list(rows)] for values in batch.classes)
    at = list(rows)
    return replace(batch, clean=batch.clean[at], base=batch.base[at], classes=classes, logits=batch.logits[at])
