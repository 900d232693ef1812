"""What a read-out returns: tables, arrays and words about them, in one type that saves, reloads, prints and reports.

A :class:`mechvis.results.Result` holds effects of units. Everything else that is found out (the accuracy of probes per
layer, texts that span a head, concepts with their maps) is a :class:`Record`: some tables, the first being the answer,
some arrays, single facts, what each column means, and how far to believe it. A method gives its record a name and the
questions that people ask of it by a small sub-class:

    class Timeline(Record):
        KIND = "timeline"

        def early_share(self) -> float: ...

On disk a record is a folder: `record.json` (kind, facts, words, provenance, checksums), one Parquet file per table and
`arrays.safetensors`. Nothing in it can run code.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import polars as pl

from mechvis import files
from mechvis.errors import BadData, MechvisError, NotFinite, ResultMismatch, ShapeMismatch, StoreCorrupt, unknown

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

FORMAT = "mechvis.record"
FORMAT_VERSION = 1
MANIFEST = "record.json"
_ARRAYS = "arrays.safetensors"
_ROWS, _WIDTH, _CELL = 16, 150, 34
"""Rows of the first table that are printed, characters of a line, characters of a cell."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Record:
    """What a method found: tables, arrays, facts, what they mean and how far to believe them.

    Raises:
        BadData: no table, or names that cannot be file names.
        NotFinite: NaN or Inf in the facts.

    Example:
        >>> layers = pl.DataFrame({"layer": [0], "accuracy": [0.5]})
        >>> found = Record(kind="probe", title="Probes", tables={"layers": layers})
        >>> found.table["accuracy"][0]
        0.5
    """

    KIND: ClassVar[str] = ""
    """Set by a sub-class: the kind of its records, which `load` insists on."""

    kind: str = ""
    """What was done, one word for programs."""
    title: str
    """What was done, in words for people."""
    tables: dict[str, pl.DataFrame]
    """What was found; the first table is the answer."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Numbers that are no table: weights, maps, directions."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Single numbers and settings, JSON."""
    words: dict[str, str] = field(default_factory=dict)
    """What the columns and facts hold, in words: by name."""
    caveats: tuple[str, ...] = ()
    """How far to believe it: one sentence each."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What must be known to repeat it, from :func:`mechvis.provenance.provenance`."""

    def __post_init__(self):
        if not self.kind:
            object.__setattr__(self, "kind", self.KIND)
        if not self.kind or (self.KIND and self.kind != self.KIND):
            raise BadData(f"a {type(self).__name__} is of kind {self.KIND or 'its own'!r}, got {self.kind!r}.")
        if not self.tables:
            raise BadData(f"the record {self.title!r} has no table.")
        for name, table in self.tables.items():
            if files.safe_name(name) != name:
                raise BadData(f"the table {name!r} becomes a file: use lower-case letters, digits, - and _.")
            if strange := [column for column, kind in table.schema.items() if kind == pl.Object]:
                raise BadData(
                    f"the column {strange[0]!r} of the table {name!r} holds Python objects; use numbers or text."
                )
        for name, array in self.arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise ShapeMismatch(f"the array {name!r} is {kind}, not real numbers in a numpy array.")
            # Names that the file format keeps for itself, or cannot write.
            if name == "__metadata__" or not name.isprintable():
                raise BadData(f"{name!r} is no name for an array; use printable text.")
        if not isinstance(self.facts, Mapping) or not isinstance(self.words, Mapping):
            raise BadData("facts and words are mappings by name.")
        if not isinstance(self.provenance, Mapping) or not all(isinstance(line, str) for line in self.caveats):
            raise BadData("the provenance is a mapping, caveats are sentences.")
        object.__setattr__(self, "facts", files.plain_json(self.facts, "facts"))
        object.__setattr__(self, "provenance", files.plain_json(self.provenance, "provenance"))
        object.__setattr__(self, "caveats", tuple(self.caveats))

    @property
    def table(self) -> pl.DataFrame:
        """The first table: the answer."""
        return next(iter(self.tables.values()))

    def save(self, folder: str | Path) -> Path:
        """Write the record into a folder (Parquet, safetensors, JSON with checksums); a crash leaves old or new.

        Raises:
            OutputNotWritable: says what and why.
        """
        from safetensors.numpy import save

        content = {f"{name}.parquet": files.parquet_bytes(table) for name, table in self.tables.items()}
        content[_ARRAYS] = save({name: np.asarray(array, order="C") for name, array in self.arrays.items()})
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "kind": self.kind,
            "title": self.title,
            "tables": list(self.tables),
            "facts": self.facts,
            "words": self.words,
            "caveats": self.caveats,
            "provenance": self.provenance,
        }
        files.write_together(Path(folder), content, MANIFEST, manifest)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote, verified.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed.
            ResultMismatch: a record of another kind, another format, or a later version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "a record")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        if cls.KIND and manifest.get("kind") != cls.KIND:
            raise ResultMismatch(f"{folder} holds a record of kind {manifest.get('kind')!r}, not {cls.KIND!r}.")
        content = {name: files.read_together(folder, manifest, name) for name in manifest["files"]}
        errors = (pl.exceptions.PolarsError, pl.exceptions.PanicException, SafetensorError)
        try:
            return cls(
                tables={name: pl.read_parquet(io.BytesIO(content[f"{name}.parquet"])) for name in manifest["tables"]},
                arrays=load(content[_ARRAYS]),
                caveats=tuple(manifest["caveats"]),
                **{name: manifest[name] for name in ("kind", "title", "facts", "words", "provenance")},
            )
        except (*errors, MechvisError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(f"{folder} does not hold what its manifest says: {error}") from error

    def figures(self) -> "list[Block]":
        """Figures for the report, first to last; none here: a sub-class that draws overrides this."""
        return []

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file: the tables, figures, how far to believe it, what the words mean.

        Raises:
            OutputNotWritable: says what and why.
        """
        from mechvis.report.blocks import Facts, Section, Table, Text
        from mechvis.report.build import write_report

        first, *others = self.tables.items()
        believe = [Text("\n\n".join(self.caveats))] if self.caveats else []
        more = [Section(name.replace("_", " "), [Table(_flat(df), f"{df.height} rows.")]) for name, df in others]
        facts = {name: value for name, value in self.facts.items() if not isinstance(value, list | dict)}
        sections = [
            Section("What was found", [*self.figures(), Table(_flat(first[1]), f"{first[1].height} rows.")]),
            Section("How far to believe it", [*believe, *([Facts(facts)] if facts else [])]),
            *more,
            *([Section("What the words mean", [Facts(self.words)])] if self.words else []),
        ]
        model = self.provenance.get("model", {}).get("name", "a model")
        return write_report(path, self.title, f"{self.kind} · {model}", sections, self.provenance)

    def pick(self, **where: Any) -> dict[str, Any]:
        """The one row of the first table in which these columns have these values.

        Raises:
            UnknownName: no such column.
            BadData: no row, or more than one.
        """
        found = self.table
        for column, value in where.items():
            if column not in found.columns:
                raise unknown("column", column, found.columns)
            found = found.filter(pl.col(column) == value)
        if found.height != 1:
            raise BadData(f"{found.height} rows of {self.title!r} have {where}; exactly one is wanted.")
        return found.row(0, named=True)

    def __repr__(self) -> str:
        more = {name: table.height for name, table in list(self.tables.items())[1:]}
        also = f"\nalso: {', '.join(f'{name} ({n} rows)' for name, n in more.items())}" if more else ""
        said = "".join(f"\n- {line}" for line in self.caveats)
        return f"{self.title}\n{_text(_flat(self.table))}{also}{said}"

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{escape(line)}</li>" for line in self.caveats)
        return f"<b>{escape(self.title)}</b>{_flat(self.table)._repr_html_()}<ul>{said}</ul>"


def load_record(folder: str | Path) -> Record:
    """A saved record of any kind, as the class of its kind where one is registered (entry points `mechvis.records`).

    Raises:
        StoreCorrupt, ResultMismatch: see :meth:`Record.load`.
    """
    found = Record.load(folder)
    known = {point.name: point for point in entry_points(group="mechvis.records")}
    return known[found.kind].load().load(folder) if found.kind in known else found


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array, if it holds no NaN or Inf.

    Raises:
        NotFinite: says where the first one is.
    """
    bad = ~np.isfinite(array)
    if bad.any():
        place = [int(i) for i in np.argwhere(bad)[0]]
        raise NotFinite(f"{name} holds {int(bad.sum())} NaN or Inf values, the first at {place}.")
    return array


def _flat(table: pl.DataFrame) -> pl.DataFrame:
    """Columns of lists as text, so that a table can be shown anywhere."""
    lists = [name for name, kind in table.schema.items() if isinstance(kind, pl.List)]
    return table.with_columns(
        pl.col(name).map_elements(lambda cell: ", ".join(map(str, cell)), return_dtype=pl.String) for name in lists
    )


def _text(table: pl.DataFrame) -> str:
    """A table as aligned text: an estimate with its interval in one cell, as many columns as fit into a line."""
    cells = {name: _cells(table, name, *ends) for name, ends in _with_ends(table.columns).items()}
    shown, width = [], 0
    for name, column in cells.items():
        wide = max(len(cell) for cell in (name, *column)) + 2
        if shown and width + wide > _WIDTH:
            break
        shown.append((name, column, wide))
        width += wide
    left = len(cells) - len(shown)
    lines = ["".join(name.ljust(wide) for name, _, wide in shown).rstrip()]
    lines += [
        "".join(column[row].ljust(wide) for _, column, wide in shown).rstrip()
        for row in range(min(table.height, _ROWS))
    ]
    rest = [f"{table.height - _ROWS} more rows"] if table.height > _ROWS else []
    rest += [f"{left} more column{'s' * (left > 1)}: {', '.join(list(cells)[-left:])}"] if left else []
    return "\n".join([*lines, *(f"... {line}" for line in rest)])


def _with_ends(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Columns to show, each with the two columns that hold the ends of its interval, if there are any."""
    found: dict[str, tuple[str, ...]] = {}
    for place, name in enumerate(names):
        if name.removesuffix("_low") in names and name.endswith("_low"):
            continue
        if name.removesuffix("_high") in names and name.endswith("_high"):
            continue
        if name in ("low", "high") and {"low", "high"} <= set(names):
            continue
        ends = (f"{name}_low", f"{name}_high")
        if names[place + 1 : place + 3] == ["low", "high"]:
            ends = ("low", "high")
        found[name] = ends if set(ends) <= set(names) else ()
    return found


def _cells(table: pl.DataFrame, name: str, *ends: str) -> list[str]:
    columns = [table[column].head(_ROWS).to_list() for column in (name, *ends)]

    def number(value: Any) -> str:
        if value is None:
            return ""
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text if len(text) <= _CELL else text[: _CELL - 3] + "..."

    if not ends:
        return [number(value) for value in columns[0]]
    return [f"{number(value)} [{number(low)}, {number(high)}]" for value, low, high in zip(*columns, strict=True)]
