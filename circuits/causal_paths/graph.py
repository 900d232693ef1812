"""The causal graph of a class: which units speak to which, what each is worth, and how far to believe it.

On disk it is a folder: `paths.json`, the tables as Parquet, and the per-image effects of units and edges as
safetensors. Nothing in it can run code. `to_json` gives the graph alone, for drawing.
"""

import io
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mechvis import files
from mechvis.errors import StoreCorrupt, UnknownName, nearest

FORMAT = "mechvis.causal_paths"
FORMAT_VERSION = 1
MANIFEST = "paths.json"
_FRAMES = ("nodes", "edges", "synergy", "images")
_PLAIN = ("title", "target", "tested", "faithfulness", "controls", "stability", "flags", "settings", "provenance")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PathGraph:
    """Units and edges that a class's answers run through; made by :func:`circuits.causal_paths.causal_paths`."""

    title: str
    """What was looked for."""
    target: str
    """The class, or "each image's own"."""
    nodes: Any
    """polars, one row per unit, strongest first: `unit`, `level` (0: the first), `kind`, `layer`, `index`,
    `activation`, `kl`, `low`, `high` (mean KL with its 95 % interval, nats), `logit` (mean change of the class's logit;
    positive supports it), `necessity` (share of images whose answer changes), `n`, `p` (adjusted; of units of the first
    level)."""
    edges: Any
    """polars, one row per edge, strongest first: `edge`, `writer`, `reader`, the same numbers, `p` (adjusted; none for
    edges to `out`, whose units were tested), `kept` (after pruning)."""
    synergy: Any
    """polars: pairs of the strongest units; see :func:`circuits.causal_paths.synergy.synergies`."""
    images: Any
    """polars, one row per image: `id`, `answer` of the model."""
    tested: tuple[dict, ...]
    """Per level: `candidates`, `measured` (tested), `kept`."""
    faithfulness: dict[str, Any]
    """`found` (before pruning), `kept` (after), `top` (units of the first level with their clean values), `full` and
    `empty` (mean metric)."""
    controls: dict[str, Any]
    """`random graphs`, `shuffled classes`, `loud units`; with a reason where one could not be run."""
    stability: dict[str, Any]
    """Overlap over half-samples; empty where it was not asked for."""
    flags: tuple[str, ...] = ()
    """What speaks against the graph; read these first."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Parameters of the search."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, images, versions, command, time."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """Per image: `nodes/kl`, `nodes/logit` `[unit image]` and `edges/kl`, `edges/logit` `[edge image]`, in the order of
    the tables."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Edges that are left after pruning."""
        import polars as pl

        return tuple(self.edges.filter(pl.col("kept"))["edge"])

    def node(self, name: str) -> dict[str, Any]:
        """One row of the units.

        Raises:
            UnknownName: not in the graph.
        """
        return _row(self.nodes, "unit", name)

    def edge(self, name: str) -> dict[str, Any]:
        """One row of the edges.

        Raises:
            UnknownName: not in the graph.
        """
        return _row(self.edges, "edge", name)

    def to_json(self) -> str:
        """The graph alone: `nodes`, `edges`, `target`, with their numbers.

        Example:
            >>> json.loads(graph.to_json())["edges"][0]["edge"]                                    # doctest: +SKIP
            'L1N4->out'
        """
        content = {
            "target": self.target,
            "nodes": self.nodes.rows(named=True),
            "edges": self.edges.rows(named=True),
            "faithfulness": self.faithfulness,
        }
        return json.dumps(files.plain_json(content, "graph"), indent=1)

    def save(self, folder: str | Path) -> Path:
        """Write the graph into a folder; an older one there is replaced as a whole or not at all.

        Raises:
            OutputNotWritable: says what and why.
        """
        from safetensors.numpy import save as tensors

        folder = files.ensure_writable(folder)
        content = {f"{name}.parquet": files.parquet_bytes(getattr(self, name)) for name in _FRAMES}
        content["values.safetensors"] = tensors({name: np.ascontiguousarray(v) for name, v in self.values.items()})
        manifest = {"format": FORMAT, "version": FORMAT_VERSION, **{name: getattr(self, name) for name in _PLAIN}}
        files.write_together(folder, content, MANIFEST, files.plain_json(manifest, "causal paths"))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "PathGraph":
        """Read a graph that :meth:`save` wrote; every file is verified first.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed; names it.
            ResultMismatch: not a graph, or one of a later version.
        """
        import polars as pl
        from safetensors import SafetensorError
        from safetensors.numpy import load as tensors

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "causal paths")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        content = {name: files.read_together(folder, manifest, name) for name in manifest["files"]}
        try:
            frames = {name: pl.read_parquet(io.BytesIO(content[f"{name}.parquet"])) for name in _FRAMES}
            plain = {name: manifest[name] for name in _PLAIN}
            plain |= {name: tuple(plain[name]) for name in ("tested", "flags")}
            return cls(**frames, **plain, values=tensors(content["values.safetensors"]))
        except (pl.exceptions.PolarsError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder / MANIFEST} does not hold what causal paths need: {error}") from error

    def __repr__(self) -> str:
        share = self.faithfulness
        lines = [
            f"PathGraph({self.title}: {self.nodes.height} units, {len(self.kept)} of {self.edges.height} edges after "
            f"pruning; faithfulness {share['kept']:.3f}, n={self.images.height} images)"
        ]
        lines += [f"  ! {flag}" for flag in self.flags]
        width = max([len(edge) for edge in self.edges["edge"]], default=0)
        for row in self.edges.rows(named=True)[:20]:
            mark = " " if row["kept"] else "-"
            lines.append(
                f"  {mark} {row['edge']:{width}}  KL {row['kl']:.4g} [{row['low']:.4g}, {row['high']:.4g}]  logit "
                f"{row['logit']:+.4g}  flips {row['necessity']:.3f}"
                + ("" if row["p"] is None else f"  q={row['p']:.2g}")
            )
        return "\n".join(lines + (["  ..."] if self.edges.height > 20 else []))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def _row(table: Any, column: str, name: str) -> dict[str, Any]:
    import polars as pl

    found = table.filter(pl.col(column) == name)
    if not found.height:
        known = table[column].to_list()
        raise UnknownName(f"{name!r} is not in the graph. Nearest: {', '.join(nearest(name, known)) or 'none'}.")
    return found.row(0, named=True)
