"""A circuit: some edges of a model, which are said to do something on their own.

It remembers which model and task it was found with, but is independent of both: it can be saved, loaded, drawn, pruned,
and judged on other data, or on another model of the same architecture.

On disk it is a folder: `circuit.json` (architecture, method, provenance, checksums) and `edges.parquet` (one row per
kept or scored edge: `edge`, `writer`, `reader`, `kept`, `score`). Nothing in it can run code.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from circuits.edges.graph import EdgeGraph
from mechvis import files
from mechvis.errors import BadData, NotFinite, ResultMismatch, ShapeMismatch, StoreCorrupt

if TYPE_CHECKING:
    from mechvis.cards.faithfulness_card import FaithfulnessCard

FORMAT = "mechvis.circuit"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Circuit:
    """A set of edges, perhaps with the scores that it was chosen by.

    Raises:
        ShapeMismatch: masks or scores that do not fit the graph.
        NotFinite: scores with Inf (NaN marks an edge without a score), or a kept edge whose score is NaN.

    Example:
        >>> graph = EdgeGraph((2,))
        >>> Circuit.of(graph, ["embed->L0H1.v", "L0H1->out"])
        Circuit(2 of 12 edges, 2 of 4 components: embed, L0H1)
    """

    graph: EdgeGraph
    """The architecture."""
    kept: Bool[np.ndarray, "writer reader"]
    """Which edges belong to it."""
    scores: Float[np.ndarray, "writer reader"] | None = None
    """What it was chosen by; NaN where an edge has no score."""
    title: str = "circuit"
    """How it was found, in words."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Name and fingerprint of the model that it was found in."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What must be known to find it again."""

    def __post_init__(self):
        kept = np.asarray(self.kept, dtype=bool)
        if kept.shape != self.graph.shape:
            raise ShapeMismatch(f"the mask is {list(kept.shape)}; {self.graph!r} needs {list(self.graph.shape)}.")
        outside = kept & ~self.graph.allowed
        if outside.any():
            writer, reader = np.argwhere(outside)[0]
            raise ShapeMismatch(
                f"the mask keeps {self.graph.writers[writer]}->{self.graph.readers[reader]}, which is no edge."
            )
        object.__setattr__(self, "kept", _frozen(kept))
        if self.scores is not None:
            scores = np.asarray(self.scores, dtype=np.float64)
            if scores.shape != self.graph.shape:
                raise ShapeMismatch(
                    f"the scores are {list(scores.shape)}; {self.graph!r} needs {list(self.graph.shape)}."
                )
            if np.isinf(scores).any():
                raise NotFinite("the scores of the circuit hold Inf; NaN marks an edge without a score.")
            object.__setattr__(self, "scores", _frozen(np.where(self.graph.allowed, scores, np.nan)))
        object.__setattr__(self, "provenance", files.plain_json(dict(self.provenance), "provenance"))

    @classmethod
    def of(cls, graph: EdgeGraph, edges: Iterable[str], **more: Any) -> "Circuit":
        """A circuit of named edges.

        Args:
            graph: the architecture.
            edges: names such as `L0H1->L1H2.q`.
            more: other fields.

        Raises:
            UnknownName, BadData: a name that is no edge.
        """
        return cls(graph=graph, kept=graph.mask(edges), **more)

    @classmethod
    def of_nodes(cls, graph: EdgeGraph, nodes: Iterable[str], **more: Any) -> "Circuit":
        """All edges between some components, the embedding and the read-out.

        Args:
            graph: the architecture.
            nodes: names such as `L0H1`, `L1MLP`.
            more: other fields.

        Raises:
            UnknownName: no such component.
        """
        return cls(graph=graph, kept=graph.inner_edges(nodes), **more)

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the kept edges, in the order of the forward pass."""
        return self.graph.names(self.kept)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Components with a kept edge, in the order of the forward pass, without `out`."""
        writes, reads = self.kept.any(1), self.kept.any(0)
        readers = {self.graph.node_of(name) for name, used in zip(self.graph.readers, reads, strict=True) if used}
        return tuple(name for name, used in zip(self.graph.writers, writes, strict=True) if used or name in readers)

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[str]:
        return iter(self.edges)

    def __contains__(self, edge: str) -> bool:
        return bool(self.kept[self.graph.edge(edge)])

    @property
    def share(self) -> float:
        """Kept edges as a share of all."""
        return len(self) / self.graph.n_edges

    def score(self, edge: str) -> float:
        """The score of an edge; NaN where there is none.

        Raises:
            UnknownName, BadData: no such edge.
        """
        place = self.graph.edge(edge)
        return float("nan") if self.scores is None else float(self.scores[place])

    def with_edges(self, kept: Bool[np.ndarray, "writer reader"], title: str | None = None) -> "Circuit":
        """The same with another set of edges."""
        return replace(self, kept=kept, title=self.title if title is None else title)

    def __or__(self, other: "Circuit") -> "Circuit":
        return self.with_edges(self.kept | self._same(other).kept, f"{self.title} or {other.title}")

    def __and__(self, other: "Circuit") -> "Circuit":
        return self.with_edges(self.kept & self._same(other).kept, f"{self.title} and {other.title}")

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self.with_edges(self.kept & ~self._same(other).kept, f"{self.title} without {other.title}")

    def overlap(self, other: "Circuit") -> float:
        """Jaccard index of the two sets of edges (1 for two empty ones)."""
        either = (self.kept | self._same(other).kept).sum()
        return float((self.kept & other.kept).sum() / either) if either else 1.0

    def _same(self, other: "Circuit") -> "Circuit":
        if other.graph != self.graph:
            raise ResultMismatch(f"the circuits are of two architectures: {self.graph!r} and {other.graph!r}.")
        return other

    def pruned(self) -> "Circuit":
        """Without dangling edges: those on no path from the embedding to the read-out (methods.md 5.7 **C**).

        An edge counts only if its writer reads something that counts (or is the embedding) and its reader's component
        writes something that counts (or is the read-out). A head that is fed through one of q, k, v only is fed.
        """
        graph, kept = self.graph, self.kept.copy()
        owner = np.array(
            [-1 if name == "out" else graph.writer(graph.node_of(name)) for name in graph.readers]
        )  # the writer that each reader belongs to
        n_writers, n_readers = graph.shape
        fed = np.zeros(n_writers, dtype=bool)
        fed[0] = True
        for reader in range(n_readers):  # in the order of the forward pass
            if owner[reader] >= 0 and (kept[:, reader] & fed).any():
                fed[owner[reader]] = True
        kept &= fed[:, None]
        heard = np.zeros(n_writers, dtype=bool)
        for reader in reversed(range(n_readers)):
            if owner[reader] == -1 or heard[owner[reader]]:
                heard |= kept[:, reader]
        kept &= np.where(owner == -1, True, heard[owner])[None]
        return self.with_edges(kept)

    def check_model(self, model: Any) -> None:
        """Refuse a model of another architecture.

        Raises:
            ResultMismatch: says what differs.
        """
        other = EdgeGraph.of(model)
        if other != self.graph:
            raise ResultMismatch(
                f"this circuit is of a model with {self.graph!r}, the model given has {other!r}: edges have no "
                "counterpart there."
            )

    def card(self, data: Any, level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe this circuit: see :func:`circuits.card.circuit_card`; `data` is a task on other images."""
        from circuits.card import circuit_card

        return circuit_card(self, data, level=level, seed=seed)

    # files

    def save(self, folder: str | Path) -> Path:
        """Write the circuit into `folder`; an older one there is replaced as a whole or not at all.

        Raises:
            OutputNotWritable: says what and why.
        """
        folder = files.ensure_writable(folder)
        buffer = io.BytesIO()
        self.table().write_parquet(buffer)
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "title": self.title,
            "n_heads": list(self.graph.n_heads),
            "model": dict(self.model),
            "provenance": dict(self.provenance),
        }
        files.write_together(folder, {"edges.parquet": buffer.getvalue()}, "circuit.json", manifest)
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: Any = None) -> "Circuit":
        """Read a circuit that :meth:`save` wrote; files are verified first.

        Args:
            folder: where it is.
            model: if given, refuse a circuit of another architecture.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed; names it.
            ResultMismatch: not a circuit, one of a later version, or of another architecture.
        """
        import polars as pl

        folder = Path(folder)
        check = files.only_format(folder / "circuit.json", FORMAT, FORMAT_VERSION, "a circuit")
        manifest = files.read_manifest(folder, "circuit.json", check=check)
        content = files.read_together(folder, manifest, "edges.parquet")
        try:
            table = pl.read_parquet(io.BytesIO(content))
            graph = EdgeGraph(tuple(int(n) for n in manifest["n_heads"]))
            kept, scores = np.zeros(graph.shape, dtype=bool), np.full(graph.shape, np.nan)
            for edge, keep, score in table.select("edge", "kept", "score").iter_rows():
                place = graph.edge(edge)
                kept[place] = keep
                scores[place] = np.nan if score is None else score
            circuit = cls(
                graph=graph,
                kept=kept,
                scores=None if np.isnan(scores).all() else scores,
                title=manifest["title"],
                model=manifest["model"],
                provenance=manifest["provenance"],
            )
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder / 'edges.parquet'} does not hold what a circuit needs: {error}") from error
        if model is not None:
            circuit.check_model(model)
        return circuit

    def table(self) -> Any:
        """One row per edge that is kept or has a score: `edge`, `writer`, `reader`, `kept`, `score`."""
        import polars as pl

        listed = self.kept if self.scores is None else self.kept | ~np.isnan(self.scores)
        places = self.graph.places
        places = places[listed[places[:, 0], places[:, 1]]]
        writers, readers = places[:, 0], places[:, 1]
        names = [[known[i] for i in at] for known, at in ((self.graph.writers, writers), (self.graph.readers, readers))]
        scores = np.full(len(places), np.nan) if self.scores is None else self.scores[writers, readers]
        return pl.DataFrame(
            {
                "edge": [f"{writer}->{reader}" for writer, reader in zip(*names, strict=True)],
                "writer": names[0],
                "reader": names[1],
                "kept": self.kept[writers, readers],
                "score": pl.Series(scores, dtype=pl.Float64).fill_nan(None),
            },
            schema_overrides={"edge": pl.String, "writer": pl.String, "reader": pl.String, "kept": pl.Boolean},
        )

    def __repr__(self) -> str:
        nodes = self.nodes
        listed = ", ".join(nodes[:8]) + (" ..." if len(nodes) > 8 else "")
        head = "Circuit" if self.title == "circuit" else f"Circuit[{self.title}]"
        found = f"{head}({len(self)} of {self.graph.n_edges} edges"
        return f"{found}, {len(nodes)} of {len(self.graph.writers)} components{': ' + listed if nodes else ''})"

    def __str__(self) -> str:
        lines = [repr(self)]
        order = sorted(self.edges, key=lambda edge: -abs(np.nan_to_num(self.score(edge))))
        width = max(map(len, order), default=0)
        for edge in order[:20]:
            score = self.score(edge)
            lines.append(f"  {edge:{width}}" + ("" if np.isnan(score) else f"  {score:+.4g}"))
        return "\n".join(lines + (["  ..."] if len(order) > 20 else []))

    def _repr_html_(self) -> str:
        from mechvis.show import circuit, safely

        return safely(circuit, self)


def scores_of(result: Any, graph: EdgeGraph, metric: str | None = None) -> Float[np.ndarray, "writer reader"]:
    """The effects of a result whose units are edges, as a matrix; NaN where it has none.

    Args:
        result: of edge attribution or edge patching.
        graph: the architecture.
        metric: default: the first.

    Raises:
        BadData: its units are no edges.
        ResultMismatch: of another architecture.
    """
    rows = result.rows(metric)
    if not {"writer", "reader"} <= set(rows.columns):
        raise BadData(f"a result of kind {result.kind!r} has no edges; use circuits.eap, circuits.patch_edges or acdc.")
    scores = np.full(graph.shape, np.nan)
    try:
        for edge, effect in rows.select("unit", "effect").iter_rows():
            scores[graph.edge(edge)] = effect
    except (KeyError, BadData) as error:
        raise ResultMismatch(f"the result's edge {edge!r} is none of {graph!r}.") from error
    return scores


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array
