"""The result of a study of unit labels: one row per unit, with a score on held-out images and its controls."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mechvis.errors import BadData
from mechvis.record import Record

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

WORDS = {
    "unit": "layer and number: N neuron, H head",
    "label": "the concept that the method chose on one half of the images",
    "source": "where the concept comes from: a column of the images, or a text",
    "score": "the method's own score of that concept",
    "held_out": "the measure of unit and concept on the other half",
    "low": "lower end of its 95 % bootstrap interval over images",
    "high": "upper end",
    "p": "two-sided p-value of no correlation on the held-out images",
    "q": "the same, adjusted for the number of units (Benjamini and Hochberg)",
    "random_unit": "the same measure of the label with another unit, drawn at random",
    "detector": "the interval lies above what the whole procedure finds on shuffled concepts (95 % quantile)",
    "n": "held-out images",
}


class UnitLabels(Record):
    """Labels of units. `arrays`: `top` (places of images), and for the shown units their images, values and maps."""

    KIND = "unit_labels"

    def detectors(self, source: str | None = None) -> pl.DataFrame:
        """Units whose label holds on held-out images beyond the shuffled control, best first.

        Args:
            source: only labels from this column, e.g. `colour`.
        """
        found = self.table.filter(pl.col("detector"))
        found = found if source is None else found.filter(pl.col("source") == source)
        return found.sort("held_out", descending=True)

    def of(self, unit: str) -> dict:
        """The row of a unit by name.

        Raises:
            BadData: no such unit.
        """
        return self.pick(unit=unit)

    def summary(self) -> str:
        """What was found, in a few lines: detectors by source, and the control."""
        found = self.detectors()
        control = self.facts["shuffled_95"]
        lines = [
            f"{found.height} of {self.table.height} units have a label that holds on held-out images "
            f"({self.facts['measure']} above {control:.3f}, the 95 % quantile on shuffled concepts)."
        ]
        for (source,), part in sorted(found.group_by("source"), key=lambda one: -one[1].height):
            best = part.sort("held_out", descending=True).row(0, named=True)
            interval = f"[{best['low']:.2f}, {best['high']:.2f}]"
            lines.append(
                f"  {source}: {part.height} units; best {best['unit']} for {best['label']!r}, "
                f"{self.facts['measure']} {best['held_out']:.2f} {interval}, n = {best['n']}."
            )
        return "\n".join(lines)

    def panel(self, place: int = 0):
        """Figure of one of the shown units, best first: its top images, some from its whole range, and where.

        Raises:
            BadData: no images were kept (`shown=0`), or fewer.
        """
        from mechvis.plots.unit_panel import unit_panel

        shown = list(self.facts.get("shown", []))
        if not 0 <= place < len(shown):
            raise BadData(f"panel {place}: images of {len(shown)} units were kept; ask for more with shown=.")
        row = self.of(shown[place])
        parts: dict[str, np.ndarray] = {}
        for name in ("top", "ranged"):
            for what in ("images", "values", "maps"):
                array = self.arrays.get(f"panel{place}/{name}/{what}")
                if array is not None:
                    parts[f"{name}_{what}"] = array
        title = f"{row['unit']}: {row['label']} ({self.facts['measure']} {row['held_out']:.2f}, held out)"
        return unit_panel(
            list(parts.pop("top_images")), list(parts.pop("ranged_images")), title=title, **parts
        )  # fmt: skip

    def figures(self) -> "list[Block]":
        """A panel for every shown unit."""
        from mechvis.report.blocks import Figure

        caption = "Top images, and images drawn evenly over the range of activations. {}"
        where = "Below them the unit's value on every patch." if any("maps" in name for name in self.arrays) else ""
        return [
            Figure(self.panel(place), caption.format(where), raster=True)
            for place in range(len(self.facts.get("shown", [])))
        ]
