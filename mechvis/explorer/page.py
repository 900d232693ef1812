"""From panels to one HTML file that stays quick with a thousand images and ten thousand latents.

1. `content.py` packs numbers and words into blocks of data; images and maps are decoded when they are shown.
2. A template with auto-escaping writes what can be read without a script: tables, figures, gates and measures of cards,
   circuits as drawings, lists of images and latents.
3. The script takes over the parts that move. The content security policy names it and the style sheet by their hashes
   and allows images from inside the file; nothing else can run, load or call out, whatever strings the study holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mechvis import files
from mechvis.errors import ShapeMismatch
from mechvis.explorer.content import Content, content
from mechvis.explorer.drawing import circuit_drawing, interval_drawing, strongest
from mechvis.explorer.gather import Gathered
from mechvis.explorer.panels import Card, Graph, Latents, Page, Pictures
from mechvis.report import blocks
from mechvis.report.build import ensure_report_path, environment, policy_hash, provenance_section, view

_HERE = Path(__file__).parent
_REPORT = Path(__file__).parent.parent / "report"
SIZE_LIMIT = 20_000_000
"""Largest file that is written by default, in bytes."""
PLAIN_ROWS = 2000
"""Rows of the lists that are there without a script."""
_SIGNS = {True: ("passed", "\N{CHECK MARK}", "passed"), False: ("failed", "\N{BALLOT X}", "failed"),
          None: ("idle", "\N{EN DASH}", "no answer")}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """An explorer that was written."""

    path: Path
    """The file."""
    counts: Mapping[str, int]
    """Images, images with full attention, maps, latents, circuits, cards, reports."""
    sizes: Mapping[str, int]
    """Bytes: of pictures, of packed numbers, of lists and names, of the rest."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(self.sizes.values())

    def __repr__(self) -> str:
        has = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in self.sizes.items())
        return f"{self.path}: {has}; {self.size / 1e6:.1f} MB ({parts})"


def write_page(
    path: str | Path, found: Gathered, *, title: str, subtitle: str = "", limit: int | None = SIZE_LIMIT
) -> Explorer:
    """Write what was gathered as one self-contained HTML file.

    Args:
        path: the file.
        found: from :func:`mechvis.explorer.gather.gather`.
        title: heading.
        subtitle: below it.
        limit: largest file, in bytes; None: any.

    Raises:
        ShapeMismatch: the file would be too large; says what is large, and what to do.
        OutputNotWritable: says what and why, before anything is drawn.
    """
    path = ensure_report_path(path)
    made = content(_drawn(found))
    data = html(found, made, title, subtitle).encode()
    sizes = {
        "pictures": sum(map(len, made.pictures)) + len(made.pictures),
        "numbers": made.chunks.size,
        "lists": sum(map(len, made.blocks.values())),
    }
    sizes["rest"] = len(data) - sum(sizes.values())
    if limit is not None and len(data) > limit:
        told = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
        raise ShapeMismatch(
            f"the explorer would have {len(data) / 1e6:.1f} MB ({told}); limit={limit:,} bytes. Take fewer images "
            "(n=), smaller pictures (thumbnail=), less attention (full_bytes=, layers=), fewer things, or raise limit=."
        )
    files.write_bytes(path, data)
    return Explorer(path=path, counts=_counts(found), sizes=sizes)


def html(found: Gathered, made: Content, title: str, subtitle: str) -> str:
    """The text of the page."""
    from markupsafe import Markup

    script = "\n".join(file.read_text(encoding="utf-8").strip() for file in sorted((_HERE / "js").glob("*.js")))
    style = "\n".join((place / name).read_text(encoding="utf-8").strip() for place, name in
                      ((_REPORT, "style.css"), (_HERE, "page.css")))  # fmt: skip
    pages = [_page(page) for page in found.pages]
    template = environment(_HERE, _REPORT).get_template("page.html.j2")
    return template.render(
        title=title,
        subtitle=subtitle,
        script=Markup(script),
        script_hash=policy_hash(script),
        style=Markup(style),
        style_hash=policy_hash(style),
        contents=_contents(found),
        cards=[_card(card) for card in found.cards],
        images=None if found.pictures is None else _images(found.pictures),
        latents=[_latents(latents) for latents in found.latents],
        graphs=[_graph(graph) for graph in found.graphs],
        pages=pages,
        blocks={id: Markup(text) for id, text in made.blocks.items()},
        chunks=Markup("\n".join(made.chunks.lines)),
        pictures=Markup("\n".join(made.pictures)),
    )


def _drawn(found: Gathered) -> Gathered:
    return Gathered(**{**vars(found), "graphs": [strongest(graph) for graph in found.graphs]})


def _counts(found: Gathered) -> dict[str, int]:
    return {
        "images": 0 if found.pictures is None else len(found.pictures.ids),
        "with full attention": 0 if found.attention is None else len(found.attention.ids),
        "methods of maps": sum(len(group.methods) for group in found.maps),
        "latents": sum(len(latents.columns["latent"]) for latents in found.latents),
        "circuits": len(found.graphs),
        "cards": len(found.cards),
        "reports": len(found.pages),
    }


def _contents(found: Gathered) -> list[dict[str, Any]]:
    """The parts by group, in the order of the page."""
    cards = []
    for i, card in enumerate(found.cards):
        states = [gate.passed for gate in card.gates]
        about = (
            f"{states.count(True)} gates passed, {states.count(False)} failed, {states.count(None)} without an answer"
        )
        cards.append(_entry(f"card-{i}", card.name, about))
    images = [_entry("images", "Images", _about_images(found))] if found.pictures is not None else []
    latents = [
        _entry(f"latents-{i}", own.name, f"{len(own.columns['latent']):,} latents, {len(own.latent):,} examples")
        for i, own in enumerate(found.latents)
    ]
    graphs = []
    for i, graph in enumerate(found.graphs):
        kept = sum(edge.kept for edge in graph.edges)
        about = f"{kept:,} of {len(graph.edges):,} known edges" if kept < len(graph.edges) else f"{kept:,} edges"
        graphs.append(_entry(f"graph-{i}", graph.name, about, graph.sections))
    pages = [_entry(f"page-{i}", page.name, page.subtitle, page.sections) for i, page in enumerate(found.pages)]
    groups = (
        ("Study", [_entry("overview", "Overview")]), ("Faithfulness cards", cards), ("Look", [*images, *latents]),
        ("Circuits", graphs), ("Reports", pages),
    )  # fmt: skip
    return [{"name": name, "entries": entries} for name, entries in groups if entries]


def _entry(id: str, name: str, about: str = "", sections: Sequence[blocks.Section] = ()) -> dict[str, Any]:
    """A part in the table of contents, with the key numbers of its first section."""
    tiles = [
        tile for section in sections[:1] for block in section.blocks if isinstance(block, blocks.Tiles)
        for tile in block.tiles
    ]  # fmt: skip
    return {"id": id, "name": name, "about": about, "tiles": tiles[:4]}


def _about_images(found: Gathered) -> str:
    said = [f"{len(found.pictures.ids):,} images"]
    if found.attention is not None:
        n, heads = len(found.attention.ids), sum(found.attention.heads)
        said.append(
            f"attention of {heads} heads ({n:,} images with every query, the others with {found.attention.read_name})"
        )
    methods = sum(len(group.methods) for group in found.maps)
    if methods:
        said.append(f"attribution maps by {methods} method{'s' * (methods > 1)}")
    if found.latents:
        said.append("latents on patches")
    return "; ".join(said)


def _page(page: Page) -> dict[str, Any]:
    sections = [*page.sections, *([provenance_section(page.provenance)] if page.provenance else [])]
    return {"name": page.name, "subtitle": page.subtitle, "sections": [_section(section) for section in sections]}


def _section(section: blocks.Section) -> dict[str, Any]:
    return {"title": section.title, "blocks": [view(block) for block in section.blocks]}


def _card(card: Card) -> dict[str, Any]:
    gates = []
    for gate in card.gates:
        state, sign, said = _SIGNS[gate.passed]
        numbers = " ".join(
            part for part in (gate.statistic, f"(needed: {gate.threshold})" if gate.threshold else "") if part
        )
        words = {"said": gate.said or said, "numbers": numbers, "why": gate.why}
        gates.append({"name": gate.name, "state": state, "sign": sign, **words})
    measures = None
    if card.measures:
        names = list(dict.fromkeys(name for row in card.measures for name in row))
        table = _frame({name: [row.get(name) for row in card.measures] for name in names})
        measures = view(blocks.Table(table))
    return {
        "name": card.name, "gates": gates, "measures": measures, "drawing": interval_drawing(card.measures),
        "scope": card.scope, "sections": [_section(section) for section in card.sections],
        "sums": [
            {"state": state, "sign": sign, "n": sum(gate.passed is passed for gate in card.gates), "said": said}
            for passed, (state, sign, said) in _SIGNS.items() if passed is not False
        ],
    }  # fmt: skip


def _images(pictures: Pictures) -> dict[str, Any]:
    words = {
        "class": pictures.labels,
        "model says": pictures.predictions,
        "group": pictures.groups,
        "caption": pictures.captions,
    }
    columns: dict[str, Any] = {"image": pictures.ids, **{name: column for name, column in words.items() if column}}
    for name, column in pictures.numbers.items():
        if name not in columns:
            columns[str(name)] = pl.Series(column).fill_nan(None)
    table = pl.DataFrame(
        {name: list(column) if isinstance(column, tuple) else column for name, column in columns.items()}
    )
    return {"table": view(blocks.Table(table, limit=PLAIN_ROWS)), "shortened": _cut(table.height)}


def _latents(latents: Latents) -> dict[str, Any]:
    table = _frame({name: list(column) for name, column in latents.columns.items()})
    titles = [name for name in ("latent", "frequency", "max") if name in latents.columns]
    return {
        "name": latents.name, "titles": titles, "table": view(blocks.Table(table, limit=PLAIN_ROWS)),
        "shortened": _cut(table.height), "sections": [_section(section) for section in latents.sections],
    }  # fmt: skip


def _graph(graph: Graph) -> dict[str, Any]:
    drawn = strongest(graph)
    order = sorted(graph.edges, key=lambda edge: -abs(edge.score or 0.0))
    table = pl.DataFrame(
        {
            "from": [edge.source for edge in order],
            "to": [edge.target for edge in order],
            "input": [edge.entry for edge in order],
            "score": pl.Series([edge.score for edge in order], dtype=pl.Float64),
            "kept": [edge.kept for edge in order],
            "more": [edge.note for edge in order],
        }
    )
    table = table.drop([name for name in ("input", "more") if (table[name] == "").all()])
    less = len(graph.edges) - len(drawn.edges)
    return {
        "name": graph.name,
        "about": graph.about,
        "sections": [_section(section) for section in graph.sections],
        "drawing": circuit_drawing(drawn),
        "dashed": "" if all(edge.kept for edge in drawn.edges) else "; dashed lines are not in the circuit",
        "shortened": f" The strongest {len(drawn.edges):,} of {len(graph.edges):,} edges are drawn." if less else "",
        "table": view(
            blocks.Table(table, "Edges, strongest first.", bars=("score",) if table["score"].count() else ())
        ),
    }


def _frame(columns: Mapping[str, list[Any]]) -> pl.DataFrame:
    """A table whose columns are numbers or, where anything else is among them, text."""

    def column(values: list[Any]) -> list[Any]:
        if all(value is None or isinstance(value, int | float) for value in values):
            return values
        return [None if value is None else str(value) for value in values]

    return pl.DataFrame({name: column(values) for name, values in columns.items()}, strict=False)


def _cut(n: int) -> str:
    return f" (the first {PLAIN_ROWS:,} of {n:,})" if n > PLAIN_ROWS else ""
