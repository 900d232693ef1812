"""The ledger of a long job: finished pieces on disk, so that the same command continues after any interruption.

A folder holds `plan.json` (what the job is, with hashes of model, data and settings, and how it is cut) and one
safetensors file per finished piece. A piece is written atomically and counts only when its file is complete; a file
that fails its checksum is set aside and computed again. The cut is part of the plan: a resumed job computes exactly the
pieces that an uninterrupted one would have, so the table is identical bit by bit.
"""

import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechvis import files
from mechvis.errors import ResultMismatch, StoreCorrupt

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Piece:
    """A rectangle of work: these images under these units."""

    images: range
    """Positions in the image set."""
    units: range
    """Positions in the unit list."""

    @property
    def name(self) -> str:
        """File stem."""
        return (
            f"images-{self.images.start:08d}-{self.images.stop:08d}-units-{self.units.start:06d}-{self.units.stop:06d}"
        )


def cut(n_images: int, n_units: int, images_each: int, units_each: int) -> list[Piece]:
    """All pieces, images outermost."""
    return [
        Piece(range(i, min(i + images_each, n_images)), range(u, min(u + units_each, n_units)))
        for i in range(0, n_images, images_each)
        for u in range(0, n_units, units_each)
    ]


class Ledger:
    """Finished pieces of one job in one folder."""

    def __init__(self, folder: str | Path, plan: dict[str, Any]):
        """Open or start the job described by `plan`.

        Raises:
            ResultMismatch: the folder holds another job; the message says in what they differ.
            StoreCorrupt: the plan in the folder is damaged.
            OutputNotWritable: the folder cannot be written.
        """
        self.folder = files.ensure_writable(folder)
        self.plan = files.plain_json(plan)
        self.cut = self._kept_cut() if (self.folder / "plan.json").exists() else None

    def _kept_cut(self) -> list[int]:
        """The cut in the folder, once its plan is known to be ours."""
        path = self.folder / "plan.json"
        kept = files.read_json(path)
        cut = kept.pop("cut", None) if isinstance(kept, dict) else None
        if not (isinstance(cut, list) and [type(n) for n in cut] == [int, int] and min(cut) > 0):
            raise StoreCorrupt(f"{path} is not the plan of a job. Use another output folder, or delete this one.")
        if kept != {"format": FORMAT, **self.plan}:
            both = {**kept, **self.plan}
            differ = [key for key in both if kept.get(key) != {"format": FORMAT, **self.plan}.get(key)]
            raise ResultMismatch(
                f"{self.folder} holds another job; it differs in: {', '.join(differ)}. "
                + "; ".join(f"{k}: there {_short(kept.get(k))}, now {_short(self.plan.get(k))}" for k in differ[:3])
                + ". Use another output folder, or delete this one."
            )
        return cut

    def agree(self, images_each: int, units_each: int) -> tuple[int, int]:
        """The cut of this job: the one on disk if there is one, else the proposed one (which is then kept).

        Of several processes that propose at the same time one wins, and all get its cut.

        Raises:
            ResultMismatch: another job has taken the folder since it was opened.
        """
        if self.cut is None:
            plan = {"format": FORMAT, **self.plan, "cut": [int(images_each), int(units_each)]}
            _write_once(self.folder / "plan.json", plan)
            self.cut = self._kept_cut()
        return int(self.cut[0]), int(self.cut[1])

    def read(self, piece: Piece) -> dict[str, np.ndarray] | None:
        """Arrays of a finished piece, or None if it is still to do."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path, check = self.folder / f"{piece.name}.safetensors", self.folder / f"{piece.name}.json"
        if not (path.exists() and check.exists()):
            return None
        try:
            data = path.read_bytes()
            if files.checksum(data) != files.read_json(check)["sha256"]:
                raise StoreCorrupt("checksum differs")
            return load(data)
        except (StoreCorrupt, SafetensorError, KeyError, TypeError, OSError) as error:
            logger.warning("%s is damaged (%s): computing this piece again.", path.name, error)
            return None

    def write(self, piece: Piece, arrays: dict[str, np.ndarray]) -> None:
        """Record a finished piece."""
        from safetensors.numpy import save

        digest = files.write_bytes(
            self.folder / f"{piece.name}.safetensors", save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        )
        files.write_json(self.folder / f"{piece.name}.json", {"sha256": digest})

    def finished(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Pieces that need no work."""
        return (piece for piece in pieces if self.read(piece) is not None)


def _write_once(path: Path, value: Any) -> None:
    """Write JSON to `path`, whole, unless there is such a file by then."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    files.write_json(fresh, value)
    try:
        os.link(fresh, path)  # unlike a rename it never replaces
    except FileExistsError:
        return
    except OSError:  # no hard links here: two first writers in the same instant cut differently, and work twice
        if not path.exists():
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
