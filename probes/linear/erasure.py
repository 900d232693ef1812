"""What erasing a probe's directions did to a model, as a record."""

from typing import Any, ClassVar

import polars as pl

from mechvis.errors import unknown
from mechvis.record import Record

WORDS = {
    "eraser": "what is removed at the site; the rest of the column group is measured on held-out images",
    "control_for": "the eraser whose rank a control has",
    "rank": "directions removed",
    "removed_variance": "share of the features' variance that is removed, on training rows",
    "probe": "held-out accuracy of a new probe fitted to erased features; _low, _high: 95 % interval over images",
    "accuracy": "of the model's own output with the erasure, against the images' labels",
    "drop": "accuracy without erasure - with it, paired over images; positive: what was removed supported the answer",
    "kl": "KL(clean || erased) of the model's output, nats",
    "changed": "share of images whose predicted class changes",
    "p": "(1 + draws of the random control with at least this KL) / (1 + draws)",
    "n": "held-out images",
}
CAVEATS = (
    "An erasure acts at one site and some tokens; what was removed may come back from other tokens at later layers.",
    "Removing directions moves the stream off the data it was trained on: compare with the random and the "
    "largest-component control of equal rank, not with zero.",
)


class Erasure(Record):
    """What removing a probe's directions does to the model; `table` has one row per eraser and control.

    Tables besides: `groups` (the same per group of images). Arrays: `kl` and `correct` `[eraser image]`, `test`.
    """

    KIND: ClassVar[str] = "erasure"

    def against_random(self, eraser: str) -> dict[str, float]:
        """KL of an eraser and of the random subspaces of its rank, their ratio, and p.

        Raises:
            UnknownName: no such eraser.
        """
        names = self.table.filter(pl.col("control_for").is_null())["eraser"].to_list()
        if eraser not in names:
            raise unknown("eraser", eraser, names)
        mine = self._row(eraser, None)
        other = self._row("random subspace", eraser)
        return {"kl": mine["kl"], "random": other["kl"], "ratio": mine["kl"] / max(other["kl"], 1e-12), "p": mine["p"]}

    def _row(self, eraser: str, control_for: str | None) -> dict[str, Any]:
        mine = pl.col("control_for").is_null() if control_for is None else pl.col("control_for") == control_for
        return self.table.filter((pl.col("eraser") == eraser) & mine).row(0, named=True)
