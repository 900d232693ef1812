"""Pages of latents as one HTML file: a list to sort and search, and a panel on the latent that is chosen.

How thousands of latents stay quick in a browser:

1. Each latent is one line of JSON in a block of text, parsed when it is looked at. The list has its own small block,
   and only rows in sight are elements.
2. Each image is in the file once, as a small picture, however many latents show it, and is decoded when it is shown.
3. Heat maps are bytes of those patches that are not silent, painted on a canvas of one pixel per patch.

The file needs nothing but itself. Its content security policy lets one script run, whose hash it names, and loads
nothing; data lies in blocks that are no scripts. Without scripts the latents are there as a table.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechvis import files
from mechvis.errors import BadData, ShapeMismatch
from mechvis.report.build import SIZE_LIMIT, ensure_report_path, printable
from sae.dashboards.packing import block, packed
from sae.dashboards.pages import LatentPages

_HERE = Path(__file__).parent
INDEX = (
    "latent", "fires", "frequency", "frequency_low", "frequency_high", "density", "prefix", "mean", "mean_low",
    "mean_high", "max", "top_class", "class_share", "class_share_low", "class_share_high", "class_base", "class_mass",
    "class_share_of_top", "top_group", "group_share", "group_share_low", "group_share_high", "group_base", "moran",
    "moran_low", "moran_high", "moran_n",
)  # fmt: skip
"""Columns that the list and the panel's heading read."""
PLAIN = ("latent", "frequency", "density", "mean", "max", "top_class", "class_share", "class_base", "moran")
"""Columns of the table that is there without scripts."""
PLAIN_ROWS = 5000
"""Rows of that table."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A dashboard that was written."""

    path: Path
    """The file."""
    latents: int
    """Latents with a page."""
    images: int
    """Pictures."""
    sizes: Mapping[str, int]
    """Bytes: of pictures, of pages, of the list with all names, of the rest."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(self.sizes.values())

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in self.sizes.items())
        return f"{self.path}: {self.latents:,} latents, {self.images:,} images, {self.size / 1e6:.1f} MB ({parts})"


def dashboard(
    pages: LatentPages, path: str | Path, *, title: str | None = None, limit: int | None = SIZE_LIMIT
) -> Dashboard:
    """Write pages of latents as one self-contained HTML file.

    Args:
        pages: from :func:`sae.dashboards.latent_pages`, or loaded.
        path: the file.
        title: its heading; default: what the pages say.
        limit: largest file, in bytes; None: any.

    Returns:
        Dashboard: the path, and what makes the file as large as it is.

    Raises:
        BadData: not pages of latents.
        ShapeMismatch: the file would be too large; says what is large, and what to do.
        OutputNotWritable: says what and why, before anything is drawn.

    Example:
        >>> dashboard(pages, "latents.html")                                                      # doctest: +SKIP
        latents.html: 2,000 latents, 1,000 images, 9.8 MB (pictures 3.9, pages 5.1, list 0.5, rest 0.3)
    """
    if not isinstance(pages, LatentPages):
        raise BadData(f"a dashboard shows LatentPages (sae.dashboards.latent_pages), got {type(pages).__name__}.")
    path = ensure_report_path(path)
    parts = content(pages)
    text = _html(pages, title or pages.title, parts)
    data = text.encode()
    sizes = {
        "pictures": len(parts["pictures"]), "pages": len(parts["pages"]),
        "list": len(parts["index"]) + len(parts["known"]),
    }  # fmt: skip
    sizes["rest"] = len(data) - sum(sizes.values())
    n_pictures = len(pages.arrays["picture_offsets"]) - 1
    if limit is not None and len(data) > limit:
        told = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
        raise ShapeMismatch(
            f"the dashboard of {pages.table.height:,} latents and {n_pictures:,} images would have "
            f"{len(data) / 1e6:.1f} MB ({told}); limit={limit:,} bytes. Take fewer latents, a smaller n_top, "
            "n_quantile or thumbnail in latent_pages, or raise limit=."
        )
    files.write_bytes(path, data)
    return Dashboard(path=path, latents=pages.table.height, images=n_pictures, sizes=sizes)


def content(pages: LatentPages) -> dict[str, str]:
    """The blocks of data: `known` (names, settings), `index` (the list, by column), `pages` (a line of JSON per
    latent), `pictures` (a line of base64 per image)."""
    tables, latents = pages.tables, pages.table
    shown = tables["images"]
    classes = _names(tables.get("classes"), "class", shown, latents, "top_class")
    groups = _names(tables.get("groups"), "group", shown, latents, "top_group")
    texts = (
        {t: i for i, t in enumerate(tables["texts"]["text"].unique(maintain_order=True))} if "texts" in tables else {}
    )
    types = {name: i for i, name in enumerate(tables["examples"]["type"].unique(maintain_order=True))}
    number = {latent: i for i, latent in enumerate(latents["latent"])}
    own = {name: _by_latent(table) for name, table in tables.items() if name not in ("latents", "images")}
    index: dict[str, list[Any]] = {name: latents[name].to_list() for name in INDEX if name in latents.columns}
    for name, known in (("top_class", classes), ("top_group", groups)):
        if name in index:
            index[name] = [None if value is None else known[value] for value in index[name]]
    index["texts"] = [
        sorted({texts[row["text"]] for row in own.get("texts", {}).get(latent, [])}) for latent in latents["latent"]
    ]
    picture = dict(zip(shown["image"], shown["picture"], strict=True))
    maps = iter(pages.arrays["maps"])
    # Examples lie in the order of the latents, as their maps do.
    heat = {latent: [packed(next(maps)) for _ in own["examples"].get(latent, [])] for latent in latents["latent"]}
    histogram = pages.arrays["histogram"]
    lines = []
    for place, latent in enumerate(latents["latent"]):
        line: dict[str, Any] = {
            "e": [
                [picture[row["image"]], row["value"], int(row["kind"] == "quantile"), row["token"], types[row["type"]],
                 row["peak"], row["quantile"], drawn]
                for row, drawn in zip(own["examples"].get(latent, []), heat[latent], strict=True)
            ],
            "h": _used(histogram[place]),
            "n": [
                [number[row["neighbour"]], row["cosine"], row["together"], row["together_low"], row["together_high"],
                 row["both"], row["either"], int(row["kind"] == "together")]
                for row in own["neighbours"].get(latent, [])
            ],
        }  # fmt: skip
        for key, table, column, known in (("c", "classes", "class", classes), ("g", "groups", "group", groups)):
            if table in own:
                line[key] = [
                    [known[row[column]], row["fires"], row["share"], row["rate"], row["rate_low"], row["rate_high"],
                     row["images"]]
                    for row in own[table].get(latent, [])
                ]  # fmt: skip
        if "texts" in own:
            line["t"] = [
                [texts[row["text"]], row["cosine"], int(row["above_chance"]), int(row["kind"] == "images")]
                for row in own["texts"].get(latent, [])
            ]
        lines.append(block(line))
    named = (("class", classes), ("group", groups))
    about = [
        shown["id"],
        *([k[v] for v in shown[n]] if n in shown.columns else [None] * shown.height for n, k in named),
    ]
    return {
        "known": block(
            {
                "n": pages.facts["n_images"],
                "grid": pages.grid,
                "prefix": pages.facts["prefix"],
                "edges": pages.arrays["histogram_edges"].tolist(),
                "classes": list(classes),
                "groups": list(groups),
                "texts": list(texts),
                "types": list(types),
                "images": list(zip(*about, strict=True)),
            }
        ),
        "index": block(index),
        "pages": "\n".join(lines),
        "pictures": "\n".join(base64.b64encode(pages.picture_file(i)).decode() for i in range(shown.height)),
    }


def _html(pages: LatentPages, title: str, parts: Mapping[str, str]) -> str:
    import jinja2
    from markupsafe import Markup

    script = (_HERE / "page.js").read_text(encoding="utf-8").strip()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=printable
    )
    template = environment.from_string((_HERE / "page.html.j2").read_text(encoding="utf-8"))
    columns = [name for name in PLAIN if name in pages.table.columns]
    n = pages.table.height
    model, data = (pages.provenance.get(name, {}).get("name", "") for name in ("model", "data"))
    # What the dictionary is names its sites.
    subtitle = [model, data, pages.provenance.get("dictionary", {}).get("is", ", ".join(pages.facts["sites"]))]
    facts = {name: value for name, value in pages.facts.items() if not isinstance(value, list)}
    again = {name: pages.provenance.get(name) for name in ("command", "time", "seeds", "versions")}
    return template.render(
        title=title,
        subtitle=" · ".join(part for part in subtitle if part),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8").strip()),
        caveats=pages.caveats,
        facts=[(name, _said(value)) for name, value in {**pages.words, **facts, **again}.items() if value],
        shortened=f" (the first {PLAIN_ROWS:,} of {n:,})" if n > PLAIN_ROWS else "",
        columns=[name.replace("_", " ") for name in columns],
        rows=[[_said(value) for value in row] for row in pages.table.select(columns).head(PLAIN_ROWS).iter_rows()],
        **{name: Markup(text) for name, text in parts.items()},
    )


def _names(
    table: pl.DataFrame | None, column: str, shown: pl.DataFrame, latents: pl.DataFrame, top: str
) -> dict[str, int]:
    """Every name that occurs, with its position."""
    parts = [frame[name] for frame, name in ((table, column), (shown, column), (latents, top))
             if frame is not None and name in frame.columns]  # fmt: skip
    return {name: i for i, name in enumerate(sorted({name for part in parts for name in part if name is not None}))}


def _by_latent(table: pl.DataFrame) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in table.iter_rows(named=True):
        found.setdefault(row["latent"], []).append(row)
    return found


def _used(counts: np.ndarray) -> list[Any]:
    """First bin that is not empty, and the counts from there to the last one."""
    used = np.flatnonzero(counts)
    if not len(used):
        return [0, []]
    return [int(used[0]), counts[used[0] : used[-1] + 1].tolist()]


def _said(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(entry)}" for name, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
