"""From sections to one HTML file.

1. The place is tried first, then every block is turned into plain values (formatted cells, data URIs).
2. A Jinja template with auto-escaping writes them; style sheet and script are our own files, put in as they are.
3. The page carries a content security policy: images from inside the file, and the one style sheet and script
   whose hashes are named. Whatever slipped through an escape could still not run or call out.
"""

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mechvis import files
from mechvis.errors import OutputNotWritable, ShapeMismatch
from mechvis.report import blocks
from mechvis.report.collect import Collected, collecting

if TYPE_CHECKING:
    import jinja2

_HERE = Path(__file__).parent

SIZE_LIMIT = 40 * 2**20
"""Largest report that is written, in bytes; beyond it browsers and mail programs fail."""

# Control characters cannot stand in HTML. Bidirectional overrides can make a text read as another one.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def write_report(
    path: str | Path,
    title: str,
    subtitle: str,
    sections: Sequence[blocks.Section],
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a report as one self-contained HTML file.

    Args:
        path: the file; its folder is made if it is not there.
        title: the heading.
        subtitle: below it.
        sections: from top to bottom; the first should say what was found, the second how far to believe it.
        provenance: what must be known to repeat it; becomes the last section, the command first.

    Returns:
        The path of the file.

    Raises:
        OutputNotWritable: before anything is drawn.
        ShapeMismatch: the report would be larger than :data:`SIZE_LIMIT`.

    Example:
        >>> import tempfile
        >>> page = write_report(Path(tempfile.mkdtemp()) / "r.html", "Heads", "", [
        ...     blocks.Section("What was found", [blocks.Text("Head 1 of layer 3 matters.")])])
        >>> "Head 1 of layer 3" in page.read_text()
        True
    """
    if (reports := collecting()) is not None:
        reports.append(Collected(title=title, subtitle=subtitle, sections=tuple(sections), provenance=provenance or {}))
        return Path(path)
    path = ensure_report_path(path)
    sections = list(sections)
    if provenance:
        sections.append(provenance_section(provenance))
    page = render(title, subtitle, sections)
    data = page.encode()
    if len(data) > SIZE_LIMIT:
        raise ShapeMismatch(
            f"the report would have {len(data) / 2**20:.0f} MB; at most {SIZE_LIMIT / 2**20:.0f} MB "
            "are written. Show fewer images or rows, or use Figure(..., raster=True)."
        )
    files.write_bytes(path, data)
    return path


def ensure_report_path(path: str | Path) -> Path:
    """Prove that a report can be written to `path`, before the work that it reports.

    Raises:
        OutputNotWritable: it is a folder, or its folder cannot be written.
    """
    path = Path(path)
    if collecting() is not None:
        return path
    if path.is_dir():
        raise OutputNotWritable(
            f"cannot write {path}: it is a folder. Give the name of a file, e.g. {path / 'report.html'}."
        )
    files.ensure_writable(path.parent)
    return path


def render(title: str, subtitle: str, sections: Sequence[blocks.Section]) -> str:
    """The HTML text of a report; see :func:`write_report`."""
    from markupsafe import Markup

    script = (_HERE / "table.js").read_text(encoding="utf-8").strip()
    style = (_HERE / "style.css").read_text(encoding="utf-8").strip()
    return (
        environment(_HERE)
        .get_template("template.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            script=Markup(script),
            script_hash=policy_hash(script),
            style=Markup(style),
            style_hash=policy_hash(style),
            sections=[
                {"title": section.title, "blocks": [view(block) for block in section.blocks]} for section in sections
            ],
        )
    )


def environment(*folders: Path) -> "jinja2.Environment":
    """Templates of some folders: every value is escaped, every name must be known, what cannot be printed is replaced.

    Args:
        folders: where templates lie, first to last.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )


def policy_hash(text: str) -> str:
    """The hash by which a content security policy names a script or a style sheet: SHA-256, in base64.

    Example:
        >>> policy_hash("")
        '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def image_uri(image: np.ndarray) -> str:
    """A uint8 image `[height width channel]` or `[height width]` as a PNG data URI.

    Raises:
        BadImages: not uint8 or wrong axes.
    """
    from PIL import Image

    from mechvis.plots.image_panel import checked_images

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(checked_images([image])[0])).save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer.getvalue())


def figure_uri(figure: Any, *, raster: bool = False) -> str:
    """A matplotlib figure as an SVG (or PNG, 160 dots per inch) data URI.

    An SVG inside an image tag cannot run scripts or load anything, whatever its text says.
    """
    buffer = io.BytesIO()
    if raster:
        figure.savefig(buffer, format="png", dpi=160)
        return _uri("image/png", buffer.getvalue())
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue())


def view(block: blocks.Block) -> dict:
    """The block as plain values for the template."""
    match block:
        case blocks.Text(text):
            return {"kind": "text", "paragraphs": _paragraphs(text)}
        case blocks.Note(kind, text):
            return {"kind": "note", "tone": kind, "paragraphs": _paragraphs(text)}
        case blocks.Code(text):
            return {"kind": "code", "text": text}
        case blocks.Tiles(tiles):
            return {"kind": "tiles", "tiles": list(tiles)}
        case blocks.Facts(facts):
            return {"kind": "facts", "facts": _flat(facts)}
        case blocks.Figure():
            return {
                "kind": "figure",
                "uri": figure_uri(block.fig, raster=block.raster),
                "caption": block.caption,
                "width": round(block.fig.get_figwidth() * 96),
            }
        case blocks.Images():
            captions = block.captions or [""] * len(block.images)
            return {
                "kind": "images",
                "caption": block.caption,
                "images": [
                    {"uri": image_uri(image), "caption": caption}
                    for image, caption in zip(block.images, captions, strict=True)
                ],
            }
        case blocks.Table():
            return _table_view(block)


def _table_view(block: blocks.Table) -> dict:
    shown = block.df.head(block.limit)
    caption = block.caption
    if shown.height < block.df.height:
        caption = f"{caption} (the first {shown.height:,} of {block.df.height:,} rows)".strip()
    columns, cells = [], []
    for name, kind in shown.schema.items():
        numeric = kind.is_numeric()
        columns.append({"name": name, "numeric": numeric})
        scale = 0.0
        if name in block.bars:
            scale = max((abs(value) for value in shown[name] if value is not None and math.isfinite(value)), default=0)
        column = []
        for value in shown[name].to_list():
            cell = {"text": _cell(value, block.formats.get(name)), "sort": "", "bar": None}
            if (numeric or kind == pl.Boolean) and value is not None and math.isfinite(value):
                cell["sort"] = repr(float(value))
                if scale:
                    # Less than half of the cell, so that the longest bar stays clear of the number at the right.
                    cell["bar"] = {"size": f"{42 * abs(value) / scale:.1f}", "negative": value < 0}
            column.append(cell)
        cells.append(column)
    return {"kind": "table", "caption": caption, "columns": columns, "rows": list(zip(*cells, strict=True))}


def _cell(value: Any, form: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if callable(form):
        return str(form(value))
    if form is not None:
        text = format(value, form)
    elif isinstance(value, bool):
        return "yes" if value else ""
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        return str(value)
    return text.replace("-", "\N{MINUS SIGN}") if isinstance(value, int | float) else text


def _flat(facts: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{name} / ")
        else:
            listed = isinstance(value, list | tuple)
            text = ", ".join(map(_fact, value)) if listed else _fact(value)
            rows.append((f"{before}{name}", text or "\N{EN DASH}"))
    return rows


def _fact(value: Any) -> str:
    if value is None:
        return ""
    return (
        ("yes" if value else "no")
        if isinstance(value, bool)
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )


def provenance_section(provenance: Mapping[str, Any]) -> blocks.Section:
    """The last section of a report: the command, then what else must be known to repeat it."""
    content: list[blocks.Block] = []
    if command := provenance.get("command"):
        content.append(blocks.Code(str(command)))
    # An empty group ("seeds": {}) says nothing.
    if facts := {name: value for name, value in provenance.items() if name != "command" and value not in ({}, [], "")}:
        content.append(blocks.Facts(facts))
    return blocks.Section("How to repeat it", content)


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", str(text)) if part.strip()]


def printable(value: Any) -> Any:
    """Applied to every value that the template prints, before it is escaped."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return value


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
