"""What a comparison of two models found: classes of latents with what they rest on."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mechvis.errors import unknown
from mechvis.record import Record

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

RARE = "rare"
SHARED = "shared"


class ModelDiff(Record):
    """Latents of a crosscoder, by the model that has them: the tables `latents`, `models` and `classes`."""

    KIND = "model_diff"

    def latents(self, kind: str, *, by: str = "class") -> np.ndarray:
        """Latents of a class, the most active first.

        Args:
            kind: `shared`, `rare`, or `only <model>`.
            by: `class` (latent scaling) or `class_by_norm`.

        Raises:
            UnknownName: no such class or column.
        """
        if by not in ("class", "class_by_norm"):
            raise unknown("column", by, ("class", "class_by_norm"))
        names = (SHARED, RARE, *(f"only {name}" for name in self.facts["models"]))
        if kind not in names:
            raise unknown("class", kind, names)
        return self.table.filter(pl.col(by) == kind).sort("rows", descending=True)["latent"].to_numpy()

    def false_exclusives(self) -> np.ndarray:
        """Latents that are exclusive by their norms and shared by latent scaling: shrunk, or decoupled."""
        by_norm, found = pl.col("class_by_norm"), pl.col("class")
        return self.table.filter(by_norm.str.starts_with("only ") & (found == SHARED))["latent"].to_numpy()

    def figures(self) -> "list[Block]":
        """Δ of all latents that are not rare, by class."""
        from mechvis.plots.model_diff import model_diff_histogram
        from mechvis.report.blocks import Figure

        shown = self.table.filter(pl.col("class") != RARE)
        if not shown.height:
            return []
        first, second = self.facts["models"]
        figure = model_diff_histogram(
            shown["relative_norm"].to_numpy(), shown["class"].to_list(), first=first, second=second
        )
        caption = "Relative decoder norm of each latent; colours are classes by latent scaling."
        return [Figure(figure, caption)]
