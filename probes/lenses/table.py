"""What a lens found: one row per layer and kind of token, with every image's values behind it."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl

from mechvis.errors import BadData, unknown
from mechvis.record import Record
from mechvis.stats import Estimate, paired_difference
from probes.lenses.measures import MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block


class LensTable(Record):
    """Readings of a lens, from :func:`probes.lenses.logit_lens`.

    The table has the columns `lens` (logit or tuned), `site`, `layer`, `tokens`, `n`, each measure with `_low` and
    `_high`, and `outliers` (share of the patches with an unusually high norm). `arrays` hold each measure per image,
    `[row image]`, rows as in the table.
    """

    KIND: ClassVar[str] = "lens"

    def row_of(self, **where: Any) -> int:
        """Position of the one row in which these columns have these values.

        Raises:
            UnknownName: no such column.
            BadData: no row, or more than one.
        """
        mask = np.ones(self.table.height, bool)
        for column, value in where.items():
            if column not in self.table.columns:
                raise unknown("column", column, self.table.columns)
            mask &= (self.table[column] == value).fill_null(False).to_numpy()
        if mask.sum() != 1:
            raise BadData(f"{int(mask.sum())} rows have {where}; exactly one is wanted.")
        return int(mask.argmax())

    def per_image(self, measure: str, **where: Any) -> np.ndarray:
        """One measure of the one row with these values, per image; NaN where the kind has no token in the image."""
        known = [name for name in MEASURES if name in self.arrays]
        if measure not in known:
            raise unknown("measure", measure, known)
        return self.arrays[measure][self.row_of(**where)]

    def difference(self, measure: str, first: dict[str, Any], second: dict[str, Any], *, seed: int = 0) -> Estimate:
        """`first - second` of two rows image by image, with its interval, e.g. object against background patches.

        Example:
            >>> found.difference("accuracy", {"layer": 2, "tokens": "object"},                 # doctest: +SKIP
            ...                  {"layer": 2, "tokens": "background"}).low
        """
        return paired_difference(self.per_image(measure, **first), self.per_image(measure, **second), seed=seed)

    def readable_from(self, tokens: str, *, measure: str = "accuracy", lens: str = "logit") -> int | None:
        """The first layer from which on, in all that follow, the interval of a measure lies above what chance gives;
        None if there is none.

        Raises:
            BadData: no readings of the stream of these tokens, or a measure without a chance level.
        """
        chance = self.facts.get("chance", {}).get(measure)
        if chance is None:
            known = list(self.facts.get("chance", {}))
            raise BadData(f"{measure!r} has no chance level here; {known or 'nothing (no targets were given)'} has.")
        rows = self.table.filter(
            (pl.col("tokens") == tokens) & (pl.col("lens") == lens) & pl.col("site").str.ends_with("hook_resid_post")
        ).sort("layer")
        if rows.is_empty():
            raise BadData(f"there are no readings of {lens!r} on hook_resid_post for the tokens {tokens!r}.")
        above = (rows[f"{measure}_low"] > chance).fill_null(False).to_numpy()
        fails = np.flatnonzero(~above)
        start = 0 if not len(fails) else fails[-1] + 1
        return None if start == len(above) else int(rows["layer"][int(start)])

    def plot(self, measure: str | None = None) -> "Figure":
        """One measure over layers, a line per kind of token (and lens), with intervals.

        Raises:
            UnknownName: no such measure.
            BadData: nothing of the residual stream was read.
        """
        from mechvis.plots.curve import Line, curve

        known = [name for name in MEASURES if name in self.arrays]
        measure = measure or known[0]
        if measure not in known:
            raise unknown("measure", measure, known)
        stream = self.table.filter(pl.col("site").str.ends_with("hook_resid_post"))
        if stream.is_empty():
            raise BadData("a figure over layers needs readings of blocks.*.hook_resid_post.")
        lines = []
        for (lens, tokens), rows in stream.group_by(["lens", "tokens"], maintain_order=True):
            name = str(tokens) if stream["lens"].n_unique() == 1 else f"{tokens}, {lens} lens"
            columns = {end: rows[f"{measure}{end}"].to_numpy() for end in ("", "_low", "_high")}
            x = rows["layer"].to_numpy()
            lines.append(Line(name=name, x=x, y=columns[""], low=columns["_low"], high=columns["_high"]))
        if (chance := self.facts["chance"].get(measure)) is not None:
            layers = stream["layer"].unique().sort().to_numpy()
            lines.append(Line(name="chance", x=layers, y=np.full(len(layers), chance)))
        percent = measure in ("accuracy", "agreement")
        return curve(lines, title=self.title, x_label="after layer", y_label=measure, percent=percent)

    def figures(self) -> "list[Block]":
        """Accuracy (where targets are known) and KL over layers."""
        from mechvis.report.blocks import Figure

        if not self.table["site"].str.ends_with("hook_resid_post").any():
            return []
        names = [name for name in ("accuracy", "identifiability", "kl") if name in self.arrays]
        return [Figure(self.plot(name), caption=self.words.get(name, "")) for name in names]
