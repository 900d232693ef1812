"""The one type that every study returns: a tidy table with intervals, the per-image values under it, and provenance.

One row per (unit, metric). `effect` is metric(clean) - metric(edited), averaged over images: positive means that
ablating the unit lowers the metric, so the unit supported the behaviour. Per-image values are kept, so everything in
the table can be recomputed and two results can be compared image by image.

On disk a result is a folder: `table.parquet`, `images.parquet` (where images are known), `values.safetensors` and
`result.json`, which holds the rest with a format version and the checksum of every file. Nothing in it can run code.

Importing this module costs polars and numpy; figures, reports and xarray are imported where they are used.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mechvis import files, stats
from mechvis.errors import (
    BadData,
    MissingPackage,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    StoreCorrupt,
    unknown,
)

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard

FORMAT = "mechvis.result"
FORMAT_VERSION = 1
"""Raised when a reader of the old version could misread the new one; readers accept every version up to this."""

FALSE_DISCOVERY_RATE = 0.05
"""Units marked `significant` survive a Benjamini-Hochberg correction at this rate, over all units of their metric."""

AXES = ("layer", "head", "neuron", "token")
"""Columns that say where a unit is, in the order of the table."""

_COLUMNS = {
    "unit": pl.String,
    "metric": pl.String,
    "effect": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "p": pl.Float64,
    "significant": pl.Boolean,
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """Effects of units on metrics, with intervals, per-image values and provenance.

    Raises:
        ShapeMismatch: columns missing or of the wrong kind, repeated rows, or values that do not fit the table.
        NotFinite: an effect that is NaN or infinite, or an infinite value.

    Example:
        >>> found = Result.from_values("head_ablation", "Heads", [{"layer": 0, "head": 0}, {"layer": 0, "head": 1}],
        ...                            {"logit_diff": np.array([[1.0, 2.0, 3.0], [0.0, 0.1, -0.1]])})
        >>> found.top(1)["unit"].to_list()
        ['L0H0']
    """

    kind: str
    """What was done, one word for programs: `head_ablation`, `cigma`, `activation_patching`."""
    title: str
    """What was done, in words for people."""
    table: pl.DataFrame = field()
    """One row per (unit, metric), the rows of a metric in the order of the rows of its values. Columns: `unit`, those
    of `layer head neuron token` that apply, `metric`, `effect`, `low`, `high` (95 % interval), `n` (images used), `p`,
    `significant` (survives the false-discovery-rate correction), and what a study adds."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """Per-image effects `[unit image]` by metric, float32 or float64; NaN where an image is undefined. A metric that
    is not a mean over images has none."""
    images: pl.DataFrame | None = None
    """One row per image: `id`, and `label` or `group` where known."""
    provenance: dict = field(default_factory=dict)
    """What must be known to repeat it, from :func:`mechvis.provenance.provenance`."""
    baseline: dict[str, float] = field(default_factory=dict)
    """The metric of the clean model, by metric: what the effects are subtracted from."""

    def __post_init__(self):
        object.__setattr__(self, "table", _checked_table(self.table))
        # In the order of the table: safetensors gives them back in any order.
        order = {metric: place for place, metric in enumerate(self.metrics)}
        names = sorted(self.values, key=lambda name: order.get(name, -1))
        values = {name: _checked_values(name, self.values[name], self.table, self.images) for name in names}
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "baseline", {name: float(value) for name, value in self.baseline.items()})
        for name, value in self.baseline.items():
            if not np.isfinite(value):
                raise NotFinite(f"the baseline of {name!r} is {value}.")
        if self.images is not None:
            if "id" not in self.images.columns:
                raise ShapeMismatch(f"images need the column 'id', got {self.images.columns}.")
            if self.images["id"].n_unique() != self.images.height:
                raise ShapeMismatch(
                    f"image ids repeat: {self.images.height} images, {self.images['id'].n_unique()} different ids."
                )
        object.__setattr__(self, "provenance", files.plain_json(self.provenance, "provenance"))

    @classmethod
    def from_values(
        cls,
        kind: str,
        title: str,
        units: Sequence[Mapping[str, Any]],
        values: Mapping[str, np.ndarray],
        *,
        images: pl.DataFrame | None = None,
        provenance: dict | None = None,
        baseline: dict[str, float] | None = None,
        seed: int = 0,
    ) -> "Result":
        """Make the table from per-image effects: mean, 95 % interval over images, p-value and correction per metric.

        Args:
            kind: see :attr:`kind`.
            title: see :attr:`title`.
            units: one dict per unit with those of `layer head neuron token` that apply; `unit` names it (by default
                the name is made by :func:`unit_name`), any other key becomes a column.
            values: per-image effects `[unit image]` by metric: metric(clean) - metric(edited). NaN = image left out.
            images: one row per image, column `id` first.
            provenance: see :attr:`provenance`.
            baseline: see :attr:`baseline`.
            seed: of the bootstrap.

        Raises:
            ShapeMismatch: values that do not have one row per unit and one column per image.
            NotFinite: Inf in the values, or a unit without any defined image.
        """
        if not len(units):
            raise ShapeMismatch("a result needs at least one unit, got none.")
        if not values:
            raise ShapeMismatch("a result needs the values of at least one metric, got none.")
        where = pl.DataFrame(
            [
                {
                    "unit": entry.get("unit") or unit_name(**{axis: entry.get(axis) for axis in AXES}),
                    **{key: entry[key] for key in entry if key != "unit"},
                }
                for entry in map(dict, units)
            ],
            infer_schema_length=None,
        )
        parts = []
        for metric, array in values.items():
            array = np.asarray(array)
            if array.ndim != 2 or len(array) != len(units):
                raise ShapeMismatch(
                    f"the values of {metric!r} have the shape {list(array.shape)}; "
                    f"{len(units)} units need [{len(units)}, images]."
                )
            found = stats.bootstrap(array, seed=seed)
            if (found.n == 0).any():
                unit = where["unit"][int(np.argmin(found.n))]
                raise NotFinite(
                    f"{metric!r} is NaN on all {array.shape[1]} images for the unit {unit!r}: "
                    "there is no effect to report. Drop the unit or choose another metric."
                )
            survives = stats.benjamini_hochberg(found.p) <= FALSE_DISCOVERY_RATE
            parts.append(
                where.with_columns(
                    pl.lit(metric).alias("metric"),
                    pl.Series("effect", found.effect),
                    pl.Series("low", found.low).fill_nan(None),
                    pl.Series("high", found.high).fill_nan(None),
                    pl.Series("n", found.n),
                    pl.Series("excluded", found.excluded),
                    pl.Series("p", found.p).fill_nan(None),
                    pl.Series("significant", survives),
                )
            )
        return cls(
            kind=kind,
            title=title,
            table=pl.concat(parts),
            values=dict(values),
            images=images,
            provenance=provenance or {},
            baseline=baseline or {},
        )

    @property
    def metrics(self) -> list[str]:
        """Metrics in the order of the table; the first is the one that is meant where none is named."""
        return self.table["metric"].unique(maintain_order=True).to_list()

    def rows(self, metric: str | None = None) -> pl.DataFrame:
        """The rows of one metric (default: the first), in the order of the rows of `values[metric]`.

        Raises:
            UnknownName: no such metric; names the nearest.
        """
        metric = self.metrics[0] if metric is None else metric
        if metric not in self.metrics:
            raise unknown("metric", metric, self.metrics)
        return self.table.filter(pl.col("metric") == metric)

    def top(self, k: int = 10, by: str = "effect", metric: str | None = None) -> pl.DataFrame:
        """The `k` rows of one metric that come first.

        Args:
            k: how many; all if there are fewer.
            by: a column of numbers, largest first (`p`: smallest first), or `size` for the effect's absolute value.
                Ties keep the order of the table.
            metric: default: the first.

        Raises:
            OutOfRange: k below 1.
            UnknownName: no such metric, or no such column of numbers.
        """
        if k < 1:
            raise OutOfRange(f"top needs k of at least 1, got {k}.")
        rows = self.rows(metric)
        numeric = [name for name, kind in rows.schema.items() if kind.is_numeric() or kind == pl.Boolean]
        if by != "size" and by not in numeric:
            raise unknown("column to sort by", by, [*numeric, "size"])
        key = pl.col("effect").abs() if by == "size" else pl.col(by)
        return rows.sort(key, descending=by != "p", nulls_last=True, maintain_order=True).head(k)

    def cube(self, *axes: str, value: str = "effect", metric: str | None = None) -> np.ndarray:
        """One column of the table as an array, e.g. `result.cube("layer", "head")`.

        Along a numbered axis (layer, head, neuron, token) the index is the number itself, so `cube[3, 1]` is head 1 of
        layer 3 also where the sweep covered some layers only; cells without a unit are NaN. Along an axis of text
        (`unit`, or what a study added) the order is that of the table.

        Returns:
            float64, one axis per name.

        Raises:
            UnknownName: no such axis, column or metric.
            ShapeMismatch: two rows in one cell; the message says which.
        """
        return self._cube(axes, value, metric)[0]

    def to_xarray(self, *axes: str, value: str = "effect", metric: str | None = None) -> "xarray.DataArray":
        """:meth:`cube` as an `xarray.DataArray` with named axes and coordinates; needs the extra `cube`.

        Raises:
            MissingPackage: xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise MissingPackage(
                'to_xarray needs xarray: pip install "mechvis[cube]". cube() gives the same numbers as a numpy array.'
            ) from error
        array, coordinates = self._cube(axes, value, metric)
        return xarray.DataArray(
            array,
            dims=axes,
            coords=dict(zip(axes, coordinates, strict=True)),
            name=value,
            attrs={"metric": metric or self.metrics[0], "title": self.title},
        )

    def _cube(self, axes: Sequence[str], value: str, metric: str | None) -> tuple[np.ndarray, list[list]]:
        rows = self.rows(metric)
        if not axes:
            raise ShapeMismatch('cube needs at least one axis, e.g. cube("layer", "head").')
        usable = [name for name, kind in rows.schema.items() if kind.is_integer() or kind == pl.String]
        for axis in axes:
            if axis not in usable:
                raise unknown("axis", axis, usable)
        numeric = [name for name, kind in rows.schema.items() if kind.is_numeric() or kind == pl.Boolean]
        if value not in numeric:
            raise unknown("column", value, numeric)
        rows = rows.drop_nulls(list(axes))
        coordinates, places = [], []
        for axis in axes:
            column = rows[axis]
            if axis in AXES:
                coordinates.append(list(range(int(column.max() or 0) + 1)))
                places.append(column.to_numpy())
            else:
                known = column.unique(maintain_order=True).to_list()
                coordinates.append(known)
                places.append(np.array([known.index(entry) for entry in column.to_list()], dtype=np.int64))
        if (twice := rows.select(axes).is_duplicated()).any():
            unit = rows.filter(twice)["unit"].head(2).to_list()
            raise ShapeMismatch(f"the axes {list(axes)} do not tell {unit[0]!r} and {unit[1]!r} apart. Add an axis.")
        array = np.full([len(entries) for entries in coordinates], np.nan)
        array[tuple(places)] = rows[value].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return array, coordinates

    def plot(self, metric: str | None = None) -> "Figure":
        """The standard figure: a layer x head (or layer x token) map; a grid of layers by groups of patches with their
        intervals; else bars with intervals.

        Units that survive the correction are marked.
        """
        from mechvis import plots

        rows = self.rows(metric)
        label = f"effect on {rows['metric'][0]} (clean - edited)"
        known = {"title": self.title, "label": label, "n": _count(rows["n"])}
        for axis in ("head", "token"):
            if _fills_a_map(rows, axis):
                return plots.head_map(
                    self.cube("layer", axis, metric=metric),
                    significant=self.cube("layer", axis, value="significant", metric=metric) == 1,
                    column=axis,
                    **known,
                )
        if _fills_a_map(rows, "group"):
            effect, low, high, significant = (
                self._cube(("layer", "group"), value, metric) for value in ("effect", "low", "high", "significant")
            )
            return plots.patching_grid(
                effect[0],
                effect[1][1],
                low=low[0],
                high=high[0],
                significant=significant[0] == 1,
                column_label="group of patches",
                **known,
            )
        shown = rows
        if rows.height > 40:
            shown = self.top(20, by="size", metric=metric)
        more = f", the {shown.height} largest of {rows.height}" if shown.height < rows.height else ""
        return plots.bars(
            shown["unit"].to_list(),
            shown["effect"].to_numpy(),
            low=shown["low"].fill_null(float("nan")).to_numpy(),
            high=shown["high"].fill_null(float("nan")).to_numpy(),
            significant=shown["significant"].to_numpy(),
            title=self.title + more,
            label=label,
            n=_count(shown["n"]),
        )

    def save(self, folder: str | Path) -> Path:
        """Write the result into `folder`; an older result there is replaced as a whole or not at all.

        Returns:
            The folder.

        Raises:
            OutputNotWritable: says what and why.
        """
        from safetensors.numpy import save as tensors

        folder = files.ensure_writable(folder)
        content = {
            "table.parquet": files.parquet_bytes(self.table),
            "values.safetensors": tensors({name: np.ascontiguousarray(v) for name, v in self.values.items()}),
        }
        if self.images is not None:
            content["images.parquet"] = files.parquet_bytes(self.images)
        files.write_together(
            folder,
            content,
            "result.json",
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "kind": self.kind,
                "title": self.title,
                "baseline": self.baseline,
                "provenance": self.provenance,
            },
        )
        if self.images is None:
            (folder / "images.parquet").unlink(missing_ok=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read a result that :meth:`save` wrote; every file is verified before it is used.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed; names it.
            ResultMismatch: written by a later version of mechvis, or not a result.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load as tensors

        folder = Path(folder)
        check = files.only_format(folder / "result.json", FORMAT, FORMAT_VERSION, "a result")
        manifest = files.read_manifest(folder, "result.json", check=check)
        content = {
            name: files.read_together(folder, manifest, name)
            for name in ("table.parquet", "values.safetensors", "images.parquet")
            if name != "images.parquet" or name in manifest["files"]
        }
        # The checksums hold, so what fails from here on was never a result of ours.
        name = "table.parquet"
        try:
            table = pl.read_parquet(io.BytesIO(content[name]))
            name = "images.parquet"
            images = pl.read_parquet(io.BytesIO(content[name])) if name in content else None
            name = "values.safetensors"
            values = tensors(content[name])
            name = "result.json"
            return cls(
                kind=manifest["kind"],
                title=manifest["title"],
                table=table,
                values=values,
                images=images,
                provenance=manifest["provenance"],
                baseline=manifest["baseline"],
            )
        except (
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
            SafetensorError,
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise StoreCorrupt(f"{folder / name} does not hold what a result needs: {error}") from error

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe this ranking: see :func:`mechvis.cards.ranking_card`."""
        from mechvis.cards.of_ranking import ranking_card

        return ranking_card(self, data, level=level, seed=seed)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file: what was found, how far to believe it, figure, tables, provenance.

        Raises:
            OutputNotWritable: says what and why, before anything is drawn.
        """
        from mechvis.report.result import report_result

        return report_result(self, path)

    def __repr__(self) -> str:
        metrics = self.metrics
        rows = self.rows()
        lines = [
            f"Result({self.kind!r}, {rows.height} units x {', '.join(metrics)}, {_count(rows['n'])} images, "
            f"{int(rows['significant'].sum())} survive FDR {FALSE_DISCOVERY_RATE})"
        ]
        if "screen" in self.provenance:
            lines.append(f"  {self.provenance['screen']['statement']}")
        width = max(len(unit) for unit in self.top(5)["unit"])
        for row in self.top(5).iter_rows(named=True):
            mark = " *" if row["significant"] else ""
            lines.append(
                f"  {row['unit']:{width}}  {metrics[0]} {row['effect']:+.4g} {_interval(row)} n={row['n']}{mark}"
            )
        return "\n".join(lines + (["  ..."] if rows.height > 5 else []))

    def _repr_html_(self) -> str:
        from mechvis.show import result, safely

        return safely(result, self)


def _fills_a_map(rows: pl.DataFrame, axis: str) -> bool:
    """Has a map one cell per (layer, axis)? Anything else in the table would fall out of the picture."""
    return (
        {"layer", axis} <= set(rows.columns)
        and not rows.select(pl.any_horizontal(pl.col("layer", axis).is_null())).to_series().any()
        and not rows.select("layer", axis).is_duplicated().any()
    )


def unit_name(
    *,
    layer: int | None = None,
    head: int | None = None,
    neuron: int | None = None,
    token: int | None = None,
    part: str = "",
) -> str:
    """The name of a unit in tables: `L3H1`, `L1 neuron 17`, `L2 token 5`, `L2 mlp`.

    Args:
        layer: block, from 0.
        head: attention head.
        neuron: unit of the MLP's hidden layer.
        token: position in the residual stream.
        part: a word for a part of the layer, e.g. `mlp` or `attn`.

    Raises:
        ShapeMismatch: nothing that could name a unit.

    Example:
        >>> unit_name(layer=3, head=1), unit_name(layer=2, part="mlp"), unit_name(layer=2, token=5)
        ('L3H1', 'L2 mlp', 'L2 token 5')
    """
    name = "" if layer is None else f"L{layer}"
    name += "" if head is None else f"H{head}"
    words = [name, part, "" if neuron is None else f"neuron {neuron}", "" if token is None else f"token {token}"]
    if not any(words):
        raise ShapeMismatch("a unit needs a name ('unit'), or a layer, head, neuron or token to be named by.")
    return " ".join(word for word in words if word)


def _checked_table(table: pl.DataFrame) -> pl.DataFrame:
    """The table with its columns in order and of their types."""
    if missing := [name for name in _COLUMNS if name not in table.columns]:
        raise ShapeMismatch(f"the table lacks the columns {missing}; it has {table.columns}.")
    if table.height == 0:
        raise ShapeMismatch("the table has no rows.")
    kinds = {**_COLUMNS, **{axis: pl.Int32 for axis in AXES if axis in table.columns}}
    for name, kind in kinds.items():
        try:
            table = table.with_columns(pl.col(name).cast(kind))
        except pl.exceptions.PolarsError as error:
            raise ShapeMismatch(f"the column {name!r} holds {table.schema[name]}, it should hold {kind}.") from error
    for name in ("unit", "metric", "effect", "n", "significant"):
        if (nulls := table[name].null_count()) and name != "effect":
            raise ShapeMismatch(f"the column {name!r} is empty in {nulls} rows.")
    bad = table.filter(~pl.col("effect").is_finite().fill_null(False))
    if bad.height:
        raise NotFinite(
            f"{bad.height} effects are NaN, infinite or missing; the first is {bad['metric'][0]!r} of "
            f"{bad['unit'][0]!r}. A unit without a defined effect does not belong in a result."
        )
    if (twice := table.select("unit", "metric").is_duplicated()).any():
        row = table.filter(twice).row(0, named=True)
        raise ShapeMismatch(f"the table has more than one row for {row['metric']!r} of {row['unit']!r}.")
    order = ["unit", *(axis for axis in AXES if axis in table.columns)]
    return table.select(*order, *(name for name in table.columns if name not in order))


def _checked_values(name: str, values: np.ndarray, table: pl.DataFrame, images: pl.DataFrame | None) -> np.ndarray:
    """The per-image values as a read-only array that fits table and images."""
    values = np.asarray(values)
    if name == "__metadata__":
        raise BadData("a metric cannot be called '__metadata__': safetensors keeps that name for itself.")
    units = int((table["metric"] == name).sum())
    if not units:
        raise ShapeMismatch(f"there are values for {name!r}, but the table has no row of that metric.")
    if values.dtype not in (np.float32, np.float64):
        if values.dtype.kind not in "iubf":
            raise ShapeMismatch(f"the values of {name!r} have the type {values.dtype}; they should be float.")
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    if values.ndim != 2 or len(values) != units:
        raise ShapeMismatch(f"the values of {name!r} have the shape {list(values.shape)}; the table has {units} units.")
    if images is not None and values.shape[1] != images.height:
        raise ShapeMismatch(f"the values of {name!r} are for {values.shape[1]} images; {images.height} are listed.")
    if np.isinf(values).any():
        raise NotFinite(
            f"the values of {name!r} hold {int(np.isinf(values).sum())} infinite entries. "
            "NaN marks an image that is left out."
        )
    values = values.view()
    values.flags.writeable = False
    return values


def _interval(row: Mapping[str, Any]) -> str:
    return "[no interval]" if row["low"] is None or row["high"] is None else f"[{row['low']:+.4g}, {row['high']:+.4g}]"


def _count(n: pl.Series) -> str:
    low, high = n.min(), n.max()
    return f"{low}" if low == high else f"{low} to {high}"
