"""The result of a subspace study: the subspace, its accuracy beside every baseline, and the diagnosis."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.subspace.diagnosis import verdict_of
from circuits.subspace.interchange import checked_rows, interchange
from circuits.subspace.place import Place
from mechvis import edits, files
from mechvis.edits import Edit
from mechvis.errors import BadData, NotFinite, ShapeMismatch, StoreCorrupt, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "mechvis.subspace"
FORMAT_VERSION = 1
MANIFEST = "subspace.json"

_FRAMES = ("curve", "diagnosis")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SubspaceStudy:
    """A finished study of one variable at one hook.

    Raises:
        ShapeMismatch, NotFinite: subspaces that are not orthonormal rows of the hook's width.
    """

    variable: str
    """What the interchange swaps."""
    hook: str
    """Where."""
    place: Place | None
    """The same as a site of a wrapped model, for edits; None for anything else."""
    width: int
    """Width of the hook."""
    k: int
    """Smallest number of rows that saturates the accuracy on validation pairs."""
    seed: int
    """Seed of the chosen subspace: the best of its k on validation pairs."""
    subspaces: dict[str, Float[Tensor, "k width"]] = field(default_factory=dict)
    """All learnt subspaces, by `k=<k>/seed=<seed>`."""
    curve: pl.DataFrame
    """One row per (method, k, seed, split): interchange accuracies, see `circuits.subspace.Accuracy`."""
    diagnosis: pl.DataFrame
    """Illusion diagnostics of the chosen subspace: `number value alarm_when alarm note`."""
    images: dict[str, int] = field(default_factory=dict)
    """Images per split, and how many were dropped because the model's answer is not Y."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Parameters of the study."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, data, versions, seeds, command, time."""

    def __post_init__(self):
        for name, rows in self.subspaces.items():
            if rows.ndim == 2 and rows.shape[1] != self.width:
                raise ShapeMismatch(f"{name} is {list(rows.shape)}, the hook has the width {self.width}.")
            checked_rows(rows, self.width)
        if self.key not in self.subspaces:
            raise unknown("subspace", self.key, self.subspaces)

    @property
    def key(self) -> str:
        """Name of the chosen subspace in `subspaces`."""
        return f"k={self.k}/seed={self.seed}"

    @property
    def rows(self) -> Float[Tensor, "k width"]:
        """The chosen subspace: orthonormal rows."""
        return self.subspaces[self.key]

    def accuracy(self, method: str = "DAS", *, k: int | None = None, split: str = "test") -> pl.DataFrame:
        """Rows of the curve for one method: one per seed or draw.

        Args:
            method: as in the column `method`.
            k: number of rows; None: all.
            split: `test`, `validation`, `unseen` or `train`.

        Raises:
            UnknownName: no such method or split.
        """
        for column, asked in (("method", method), ("split", split)):
            if asked not in (known := self.curve[column].unique(maintain_order=True).to_list()):
                raise unknown(column, asked, known)
        found = self.curve.filter((pl.col("method") == method) & (pl.col("split") == split))
        return found if k is None else found.filter(pl.col("k") == k)

    @property
    def iia(self) -> float:
        """Test accuracy of the chosen subspace."""
        return float(self.accuracy("DAS", k=self.k).filter(pl.col("seed") == self.seed)["iia"].item())

    @property
    def alarms(self) -> tuple[str, ...]:
        """Diagnostics that alarm."""
        return tuple(self.diagnosis.filter(pl.col("alarm").fill_null(False))["number"])

    @property
    def verdict(self) -> str:
        """`illusion possible`, `not flagged` or `no effect to judge`: see :mod:`circuits.subspace.diagnosis`."""
        return verdict_of(self.alarms, self.iia - float(self.accuracy("no edit")["iia"].item()))

    # using it

    def take(self, model: Any, images: Any) -> Float[Tensor, "image width"]:
        """The hook's activations of other images, to be used as sources.

        Args:
            model: a wrapped model of the study's architecture.
            images: pixels or an `ImageSet`.

        Raises:
            BadData: the study is not of a wrapped model.
        """
        place = self._placed()
        return place.take(model.run(images, capture=[place.site]).cache[place.site])

    def edit(self, source: Float[Tensor, "row width"], *, rows: Any = None) -> Edit:
        """The interchange as an ordinary edit: each row of a batch takes its part in the subspace from a source.

        Args:
            source: activations at the hook, one per row that is edited, or one for all; see :meth:`take`.
            rows: rows of the batch; None for all.

        Raises:
            BadData: the study is not of a wrapped model.
            ShapeMismatch, NotFinite: a source that does not fit.

        Example:
            >>> source = study.take(model, other_pixels)                              # doctest: +SKIP
            >>> model.run(pixels, edits=[study.edit(source)]).logits                  # doctest: +SKIP
        """
        source = source[None] if source.ndim == 1 else source
        if source.ndim != 2 or source.shape[1] != self.width:
            raise ShapeMismatch(
                f"a source is [row {self.width}], one per edited row or one for all, got {list(source.shape)}."
            )
        if not torch.isfinite(source).all():
            raise NotFinite("the source holds NaN or Inf.")

        def changed(base: Tensor) -> Tensor:
            if len(source) not in (1, len(base)):
                raise ShapeMismatch(f"{len(base)} rows are edited, and there are {len(source)} sources.")
            there = source.to(base.device, base.dtype).expand_as(base)
            return interchange(base, there, self.rows.to(base.device, base.dtype))

        return self._placed().edit(changed, rows=rows)

    def project(self, *, rows: Any = None) -> Edit:
        """An edit that removes the subspace: `h - (h R^T) R`."""
        place = self._placed()
        if place.tokens is not None and len(place.tokens) == 1:
            heads = None if place.head is None else [place.head]
            return edits.project(place.site, self.rows, rows=rows, tokens=place.tokens, heads=heads)
        return place.edit(
            lambda h: h - (h @ self.rows.to(h.device, h.dtype).T) @ self.rows.to(h.device, h.dtype), rows=rows
        )

    def _placed(self) -> Place:
        if self.place is None:
            raise BadData(f"this study is of {self.hook!r}, which is no site of a wrapped model; edits need one.")
        return self.place

    # keeping it

    def save(self, folder: str | Path) -> Path:
        """Write the study into a folder (Parquet, safetensors, JSON with checksums).

        Raises:
            OutputNotWritable: says what and why.
        """
        from safetensors.torch import save

        folder = files.ensure_writable(folder)
        content = {f"{name}.parquet": files.parquet_bytes(getattr(self, name)) for name in _FRAMES}
        content["subspaces.safetensors"] = save(
            {name: rows.detach().cpu().contiguous() for name, rows in self.subspaces.items()}
        )
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "place": None if self.place is None else self.place.describe(),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        files.write_together(folder, content, MANIFEST, files.plain_json(manifest, "subspace study"))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "SubspaceStudy":
        """Read a study written by :meth:`save`; every file is verified before it is used.

        Raises:
            StoreCorrupt: a file is missing, damaged or not of this format; names it.
            ResultMismatch: written by a later version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "a subspace study")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        name = MANIFEST
        try:
            frames = {}
            for frame in _FRAMES:
                name = f"{frame}.parquet"
                frames[frame] = pl.read_parquet(io.BytesIO(files.read_together(folder, manifest, name)))
            name = "subspaces.safetensors"
            subspaces = load(files.read_together(folder, manifest, name))
            name = MANIFEST
            place = manifest["place"]
            if place is not None:
                tokens = place["tokens"]
                place = Place(**{**place, "tokens": None if tokens is None else tuple(tokens)})
            plain = {key: manifest[key] for key in _PLAIN}
            return cls(place=place, subspaces=dict(sorted(subspaces.items())), **frames, **plain)
        except (pl.exceptions.PolarsError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder / name} does not hold what a subspace study needs: {error}") from error

    def plot(self) -> "Figure":
        """Test accuracy against k: DAS (mean and range over seeds) and the baselines."""
        from circuits.subspace.words import figure

        return figure(self)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file.

        Raises:
            OutputNotWritable: before anything is drawn.
        """
        from circuits.subspace.words import report

        return report(self, path)

    def summary(self) -> str:
        """Accuracy, baselines and diagnosis side by side, as text."""
        from circuits.subspace.words import summary

        return summary(self)

    def __repr__(self) -> str:
        return self.summary()


_PLAIN = ("variable", "hook", "width", "k", "seed", "images", "settings", "provenance")
"""Fields that the manifest holds as they are."""


def load_subspace_study(folder: str | Path) -> SubspaceStudy:
    """Read a study folder; see :meth:`SubspaceStudy.load`."""
    return SubspaceStudy.load(folder)
