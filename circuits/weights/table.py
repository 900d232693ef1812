"""A table of numbers that come from weights alone: no images, so no intervals over images.

Effects over images are a `mechvis.Result`. What is here has other company for its numbers: what the same number would
be by chance, for random directions with the same singular values, and a p-value against that.

On disk: `table.parquet` and `weights.json` (format `mechvis.weights`, with a version and checksums). Nothing in it can
run code.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mechvis import files
from mechvis.errors import OutOfRange, ShapeMismatch, StoreCorrupt, unknown

FORMAT = "mechvis.weights"
FORMAT_VERSION = 1
"""Raised when a reader of the old version could misread the new one."""

MANIFEST = "weights.json"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WeightTable:
    """Numbers of heads, pairs of heads or directions, read off the weights.

    Raises:
        ShapeMismatch: no rows, or columns that are missing or not described.
    """

    kind: str
    """What was computed, one word for programs: `composition`, `copying`, `words`, `patches`."""
    title: str
    """What was computed, in words for people."""
    table: pl.DataFrame = field()
    """One row per thing; the first column, `unit`, names it."""
    words: dict[str, str] = field(default_factory=dict)
    """What each column holds, and in which unit."""
    provenance: dict = field(default_factory=dict)
    """What must be known to repeat it."""

    def __post_init__(self):
        if self.table.height == 0:
            raise ShapeMismatch(f"{self.title}: the table has no rows.")
        if self.table.columns[0] != "unit":
            raise ShapeMismatch(f"{self.title}: the first column is 'unit', got {self.table.columns[0]!r}.")
        if silent := [name for name in self.table.columns if name not in self.words]:
            raise ShapeMismatch(f"{self.title}: nothing says what the columns {silent} hold.")
        object.__setattr__(self, "provenance", files.plain_json(self.provenance, "provenance"))

    def top(self, k: int = 10, by: str = "score", **where: object) -> pl.DataFrame:
        """The `k` rows with the largest `by` (smallest p), of those that have the given values in other columns.

        Args:
            k: how many; all if there are fewer.
            by: a column of numbers.
            where: e.g. `kind="v"`.

        Raises:
            OutOfRange: k below 1.
            UnknownName: no such column, or no such value in it.

        Example:
            >>> composition(model).top(5, by="z", kind="v")                                        # doctest: +SKIP
        """
        if k < 1:
            raise OutOfRange(f"top needs k of at least 1, got {k}.")
        numeric = [name for name, kind in self.table.schema.items() if kind.is_numeric()]
        if by not in numeric:
            raise unknown("column to sort by", by, numeric)
        rows = self.table
        for name, value in where.items():
            if name not in rows.columns:
                raise unknown("column", name, rows.columns)
            if not (rows[name] == value).any():
                raise unknown(f"value of {name!r}", value, rows[name].unique(maintain_order=True).to_list())
            rows = rows.filter(pl.col(name) == value)
        return rows.sort(by, descending=by != "p", nulls_last=True, maintain_order=True).head(k)

    def save(self, folder: str | Path) -> Path:
        """Write the table into `folder`; an older one there is replaced as a whole or not at all.

        Raises:
            OutputNotWritable: says what and why.
        """
        buffer = io.BytesIO()
        self.table.write_parquet(buffer)
        facts = {name: getattr(self, name) for name in ("kind", "title", "words", "provenance")}
        manifest = {"format": FORMAT, "version": FORMAT_VERSION, **facts}
        files.write_together(folder, {"table.parquet": buffer.getvalue()}, MANIFEST, manifest)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "WeightTable":
        """Read what :meth:`save` wrote, verified.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed.
            ResultMismatch: not such a table, or written by a later version.
        """
        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "a table of weights")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        data = files.read_together(folder, manifest, "table.parquet")
        try:
            table = pl.read_parquet(io.BytesIO(data))
            return cls(table=table, **{name: manifest[name] for name in ("kind", "title", "words", "provenance")})
        except (pl.exceptions.PolarsError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder} does not hold what a table of weights needs: {error}") from error

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file: the table, what its columns hold, provenance.

        Raises:
            OutputNotWritable: says what and why.
        """
        from mechvis.report.blocks import Facts, Section, Table, Text
        from mechvis.report.build import write_report

        model = self.provenance.get("model", {}).get("name", "a model")
        said = Text(
            "These numbers come from weights alone. They say what a head could pass on, not what it does on images: "
            "an effect needs an ablation or a patch."
        )
        sections = [
            Section("What was found", [Table(self.table, f"{self.table.height} rows. Click a heading to sort.")]),
            Section("How far to believe it", [said, Facts(self.words)]),
        ]
        return write_report(path, self.title, f"{self.kind} · {model}", sections, self.provenance)

    def __repr__(self) -> str:
        columns = [name for name in self.table.columns if name != "unit"]
        return f"WeightTable({self.kind!r}, {self.table.height} rows: {', '.join(columns)})\n  {self.title}"


def load_weights(folder: str | Path) -> WeightTable:
    """A saved :class:`WeightTable`; see :meth:`WeightTable.load`."""
    return WeightTable.load(folder)
