"""How several processes share the pieces of one job, through nothing but its ledger folder.

1. The images are dealt out in turn: rank r of n owns every n-th range of images, and begins with those, in order.
2. Whoever is done with its own takes pieces of the others that nobody has begun (:mod:`mechvis.parallel.claims`).
3. Pieces that others have finished are read from the folder. A process is done when it has all pieces, so every one
   ends with the whole table, and the death of any costs the pieces it was at.

Nobody waits for a process that does not come: ranks that start late, never, or only once give the same table.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mechvis.parallel.claims import Claims
from mechvis.parallel.ledger import Ledger, Piece
from mechvis.parallel.world import World, world

logger = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between looks at what others have finished."""
PATIENCE = 600.0
"""Seconds after which a piece is taken from an owner that lives but does not finish; ten times the longest piece here,
if that is more."""

Arrays = dict[str, np.ndarray]


def turns(pieces: Sequence[Piece], here: World) -> list[Piece]:
    """All pieces in the order in which a rank looks at them: its own first, then the others', theirs from the end.

    Example:
        >>> pieces = [Piece(range(i, i + 1), range(2)) for i in range(5)]
        >>> [piece.images.start for piece in turns(pieces, World(rank=1, size=2))]
        [1, 3, 4, 2, 0]
    """
    starts = {start: i for i, start in enumerate(sorted({piece.images.start for piece in pieces}))}
    owned: list[list[Piece]] = [[] for _ in range(here.size)]
    for piece in pieces:
        owned[starts[piece.images.start] % here.size].append(piece)
    others = [owned[(here.rank + i) % here.size] for i in range(1, here.size)]
    return owned[here.rank] + [piece for theirs in others for piece in reversed(theirs)]


class Share:
    """The pieces of one job that are left for this process."""

    def __init__(
        self, ledger: Ledger, pieces: Sequence[Piece], claims: Claims, finished: Callable[[Piece, Arrays], None]
    ):
        """Share `pieces`; those that are found on disk, now or later, go to `finished`."""
        self.ledger, self.claims, self.finished = ledger, claims, finished
        self.left = {piece.name: piece for piece in turns(pieces, world())}
        self.slowest = 0.0
        self._looked = (-math.inf, 0.0)

    def take(self, *, wait: bool = True) -> Piece | None:
        """A piece to compute here; None if nothing is left (without `wait`: or others are at what is left)."""
        began, told, poll = time.monotonic(), False, POLL
        while True:
            waited = time.monotonic() - began
            self._collect(now=waited > poll)
            piece = self._claim(force=waited > max(PATIENCE, 10 * self.slowest))
            if piece is not None or not self.left or not wait:
                return piece
            if waited > 10 and not told:
                first, told = next(iter(self.left)), True
                who = self.claims.owner(first)
                logger.info("%d pieces are being computed elsewhere (%s: %s); waiting.", len(self.left), first, who)
            time.sleep(poll)
            poll = min(2.0, 1.2 * poll)

    def done(self, piece: Piece, arrays: Arrays, seconds: float) -> None:
        """Record a piece that was computed here."""
        self.ledger.write(piece, arrays)
        self.claims.release(piece.name)
        self.slowest = max(self.slowest, seconds)

    def _claim(self, force: bool) -> Piece | None:
        while True:
            name = next((name for name in self.left if self.claims.take(name, force=force)), None)
            if name is None:
                return None
            if not self._read(self.left[name]):
                return self.left.pop(name)
            self.claims.release(name)  # finished between the look and the claim

    def _collect(self, *, now: bool) -> None:
        """Read what others have finished; unless it matters now, so seldom that looking costs next to nothing."""
        last, took = self._looked
        began = time.monotonic()
        if not now and began - last < max(2.0, 20 * took):
            return
        there = {entry.name for entry in self.ledger.folder.iterdir()}
        for name in [name for name in self.left if f"{name}.json" in there]:
            if self._read(self.left[name]) and f"{name}.claim" in there:
                self.claims.remove(name)  # its owner died between the last byte and giving it back
        self._looked = began, time.monotonic() - began

    def _read(self, piece: Piece) -> bool:
        arrays = self.ledger.read(piece)
        if arrays is not None:
            del self.left[piece.name]
            self.finished(piece, arrays)
        return arrays is not None


def shared(
    ledger: Ledger,
    pieces: Sequence[Piece],
    compute: Callable[[Piece], Arrays],
    keep: Callable[[Piece, Arrays], None],
) -> None:
    """Compute pieces together with whoever shares the folder.

    Args:
        ledger: where finished pieces are kept.
        pieces: all pieces of the job.
        compute: makes the arrays of one.
        keep: is given the arrays of every piece, whoever made them.
    """
    with Claims(ledger.folder) as claims:
        work = Share(ledger, pieces, claims, keep)
        while (piece := work.take()) is not None:
            started = time.monotonic()
            arrays = compute(piece)
            work.done(piece, arrays, time.monotonic() - started)
            keep(piece, arrays)


def one_saves(folder: Path, save: Callable[[], object], manifest: str = "result.json") -> None:
    """Save the result of a job whose pieces lie below `folder`; of several processes that share it, one does.

    All come back when the manifest is there. That is newer than every piece if it holds this job's result.

    Args:
        folder: where pieces and result lie.
        save: writes the result, its manifest last.
        manifest: name of the file that says that the result is whole.
    """
    with Claims(folder) as claims:
        while not claims.take("result"):
            time.sleep(POLL)
        if world().size > 1:
            last = max((entry.stat().st_mtime_ns for entry in folder.rglob("images-*.json")), default=0)
            result = folder / manifest
            if result.exists() and result.stat().st_mtime_ns >= last:
                return
        save()
