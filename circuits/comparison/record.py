"""What a comparison of models or of data sets found: tables, draws and facts; saved, loaded, shown, reported.

On disk it is a folder: `comparison.json` (kind, title, provenance, checksums), `table.parquet`, `correlations.parquet`
where accuracies are known, and `arrays.safetensors` (draws of the noise floor, weights of edges, sums by layer), from
which other distances and other bands can be computed later. Nothing in it can run code.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from circuits.edges.graph import EdgeGraph
from mechvis import files
from mechvis.errors import BadData, ResultMismatch, StoreCorrupt, unknown

FORMAT = "mechvis.comparison"
FORMAT_VERSION = 1
MANIFEST = "comparison.json"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison:
    """A finished comparison of circuits, from `circuits.compare_models` or `circuits.compare_data`."""

    kind: Literal["models", "data"]
    """What was compared."""
    title: str
    """In words."""
    table: pl.DataFrame
    """One row per model, or per data set (the reference first)."""
    correlations: pl.DataFrame | None = None
    """`score statistic value low high n` over models or data sets; None where accuracies are not known."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """`layers/<model>` `[image source target]`; or `weights/<set>` `[edge]`, `floor/<n>` and `shift/<set>` `[draw]`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What must be known to repeat it."""

    def __post_init__(self):
        if self.kind not in ("models", "data"):
            raise unknown("kind of comparison", self.kind, ("models", "data"))
        if self.table.is_empty():
            raise BadData("a comparison without rows compares nothing.")
        object.__setattr__(self, "provenance", files.plain_json(dict(self.provenance), "provenance"))

    def row(self, name: str) -> dict[str, Any]:
        """One row of the table by its first column.

        Raises:
            UnknownName: no such model or data set.
        """
        key = self.table.columns[0]
        found = self.table.filter(pl.col(key) == name)
        if found.is_empty():
            raise unknown("model" if self.kind == "models" else "data set", name, self.table[key].to_list())
        return found.row(0, named=True)

    def layers(self, name: str) -> Any:
        """How the layers of one of the models draw on each other, for :func:`circuits.comparison.ddb` with other bands.

        Raises:
            UnknownName: no such model.
            ResultMismatch: a comparison of data sets.
        """
        from circuits.comparison.depth import LayerDependency

        if self.kind != "models":
            raise ResultMismatch("a comparison of data sets keeps the weights of edges, not of layers.")
        self.row(name)
        graph = EdgeGraph(tuple(self.provenance["n_heads"][name]))
        return LayerDependency(graph=graph, per_image=self.arrays[f"layers/{name}"])

    def correlation(self, score: str, statistic: str = "spearman") -> dict[str, Any]:
        """One correlation with accuracy: `value`, `low`, `high`, `n`.

        Raises:
            UnknownName: no such score or statistic.
            ResultMismatch: no accuracies are known.
        """
        if self.correlations is None:
            raise ResultMismatch("this comparison knows no accuracies, so there is nothing to correlate with.")
        for column, value in (("score", score), ("statistic", statistic)):
            if value not in (valid := self.correlations[column].unique(maintain_order=True).to_list()):
                raise unknown(column, value, valid)
        return self.correlations.filter(score=score, statistic=statistic).row(0, named=True)

    def summary(self) -> str:
        """What was found, as text."""
        from circuits.comparison.words import summary

        return summary(self)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file; returns its path."""
        from circuits.comparison.words import report

        return report(self, path)

    def save(self, folder: str | Path) -> Path:
        """Write the comparison into a folder; an older one there is replaced as a whole or not at all.

        Raises:
            OutputNotWritable: says what and why.
        """
        from safetensors.numpy import save

        folder = files.ensure_writable(folder)
        content = {
            "table.parquet": files.parquet_bytes(self.table),
            "arrays.safetensors": save({name: np.ascontiguousarray(value) for name, value in self.arrays.items()}),
        }
        if self.correlations is not None:
            content["correlations.parquet"] = files.parquet_bytes(self.correlations)
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "kind": self.kind,
            "title": self.title,
            "provenance": dict(self.provenance),
        }
        files.write_together(folder, content, MANIFEST, manifest)
        if self.correlations is None:
            (folder / "correlations.parquet").unlink(missing_ok=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Comparison":
        """Read a comparison that :meth:`save` wrote; files are verified first.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed; names it.
            ResultMismatch: not a comparison, or one of a later version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "a comparison")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        names = [name for name in ("table.parquet", "correlations.parquet") if name in manifest["files"]]
        tables = {}
        try:
            for name in names:
                tables[name.removesuffix(".parquet")] = pl.read_parquet(
                    io.BytesIO(files.read_together(folder, manifest, name))
                )
            arrays = load(files.read_together(folder, manifest, "arrays.safetensors"))
            return cls(
                kind=manifest["kind"],
                title=manifest["title"],
                provenance=manifest["provenance"],
                arrays=arrays,
                **tables,
            )
        except (pl.exceptions.PolarsError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder} does not hold what a comparison needs: {error}") from error

    def __repr__(self) -> str:
        what = "models" if self.kind == "models" else "data sets"
        return f"Comparison({self.title!r}: {self.table.height} {what})"

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"


def load_comparison(folder: str | Path) -> Comparison:
    """Read the folder of a comparison; see :meth:`Comparison.load`."""
    return Comparison.load(folder)
