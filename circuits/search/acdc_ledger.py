"""The ledger of an ACDC search: what was decided so far, so that the same call continues after any interruption.

One file, `acdc.json`, written whole or not at all. It holds what the search is about (hashes of model and images,
threshold, metric, order), the increment that each edge was judged by (null: not yet), and the drop of the edges that
are left; which edges are cut follows from the increments. The engine is not part of it: all engines decide alike.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechvis import files
from mechvis.errors import ResultMismatch, StoreCorrupt

FORMAT = "mechvis.acdc"
VERSION = 1
EVERY = 5.0
"""Seconds between two writes."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a ledger holds."""

    increments: Float[np.ndarray, " edge"]
    """In the order in which edges are tried; NaN: not decided."""
    current: float
    """Drop of the edges that are left."""
    cost: dict[str, float]
    """What it has cost."""


class AcdcLedger:
    """The decisions of one search in one folder.

    Args:
        folder: made if it is not there.
        plan: what the search is about.

    Raises:
        OutputNotWritable: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, plan: dict[str, Any]):
        self.path = files.ensure_writable(folder) / "acdc.json"
        self.plan = files.plain_json(plan)
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= EVERY

    def write(self, increments: Float[np.ndarray, " edge"], current: float, cost: dict[str, float]) -> None:
        """Keep the decisions.

        Raises:
            OutputNotWritable: the disk is full, or the folder is gone.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "plan": self.plan,
            "increments": [None if math.isnan(value) else value for value in increments.tolist()],
            "current": current,
            "cost": cost,
        }
        content["checksum"] = files.checksum(files.canonical_json(content).encode())
        files.write_text(self.path, files.canonical_json(content) + "\n")
        self._written = time.monotonic()

    def read(self, n_edges: int) -> Saved | None:
        """The decisions of an earlier run, None if there was none.

        Args:
            n_edges: edges of the graph.

        Raises:
            ResultMismatch: the folder holds another search; says in what it differs.
            StoreCorrupt: the file was changed or damaged.
        """
        if not self.path.exists():
            return None
        content = files.read_json(self.path)
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
            raise ResultMismatch(f"{self.path} is not the ledger of an ACDC search of this version of mechvis.")
        checksum = content.pop("checksum", None)
        if checksum != files.checksum(files.canonical_json(content).encode()):
            raise StoreCorrupt(f"{self.path} was changed after it was written. Delete it to begin again.")
        if content["plan"] != self.plan:
            differ = [key for key in self.plan if content["plan"].get(key) != self.plan[key]]
            told = "; ".join(f"{key}: there {content['plan'].get(key)!r}, now {self.plan[key]!r}" for key in differ)
            raise ResultMismatch(f"{self.path} is about another search ({told}). Use another folder, or delete it.")
        increments = np.array([np.nan if value is None else value for value in content["increments"]], dtype=np.float64)
        if len(increments) != n_edges:
            raise StoreCorrupt(f"{self.path} has {len(increments)} edges, the model {n_edges}. Delete it.")
        return Saved(increments=increments, current=float(content["current"]), cost=content["cost"])
