"""Null spaces of several models side by side, with what makes them comparable.

IS grows with the number of null dimensions and with the share of the feature that lies in them, and both are facts of
architecture (8 classes on 128 dimensions leave 120). So the table ranks by a normalised IS (**X**) and shows the raw
one beside it.
"""

from collections.abc import Mapping
from typing import Literal

import polars as pl

from mechvis.errors import BadData, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.null_space.record import WORDS, NullReading

By = Literal["IS_per_share", "IS_per_dim", "IS"]
BY = ("IS_per_share", "IS_per_dim", "IS")


class NullComparison(Record):
    """Readings of several models in one table."""

    KIND = "null_space_comparison"

    def figures(self) -> list:
        """IS against |AS|, one point per model."""
        from mechvis.plots.null_space import null_space_plane
        from mechvis.report.blocks import Figure

        return [Figure(null_space_plane(self.table["model"].to_list(), self.table), "One point per model.")]


def compare_null_spaces(readings: Mapping[str, NullReading], *, by: By = "IS_per_share") -> NullComparison:
    """One row per model, the least affected by its null space first.

    Args:
        readings: by name; the names replace those of the models.
        by: what to rank by.

    Raises:
        BadData: fewer than two readings, or readings whose settings differ so that they cannot be compared.
        UnknownName: no such measure.

    Example:
        >>> compare_null_spaces({"a": sing(a, ...), "b": sing(b, ...)}).table                      # doctest: +SKIP
    """
    if by not in BY:
        raise unknown("measure to rank by", by, BY)
    if len(readings) < 2:
        raise BadData(f"{len(readings)} reading: a comparison needs at least two models.")
    for setting in ("centered", "fill"):
        seen = {name: one.facts[setting] for name, one in readings.items()}
        if len(set(seen.values())) > 1:
            raise BadData(f"the readings differ in {setting!r} ({seen}): their angles are not about the same thing.")
    texts = {tuple(sorted(one.table["text"].to_list())) for one in readings.values()}
    if len(texts) > 1:
        raise BadData("the readings were made with different texts: AS_size would be a mean over different things.")
    rows = pl.concat(
        [one.tables["model"].with_columns(model=pl.lit(name)) for name, one in readings.items()],
        how="vertical_relaxed",
    )
    dims = {row["null_dim"] for row in rows.iter_rows(named=True)}
    caveats = ["Translators are fitted to each model, so their quality is part of what differs between models."]
    if len(dims) > 1:
        caveats.insert(
            0, f"Null dimensions differ ({min(dims)} to {max(dims)}): raw IS and AS are confounded with them."
        )
    if "soft" in rows["null"].to_list():
        caveats.append("Some null spaces are soft: they move the logits a little.")
    return NullComparison(
        title=f"Null spaces of {rows.height} models",
        tables={"models": rows.sort(by)},
        facts={"by": by},
        words=WORDS,
        caveats=tuple(caveats),
        provenance=provenance(models={name: one.provenance.get("model", {}) for name, one in readings.items()}),
    )
