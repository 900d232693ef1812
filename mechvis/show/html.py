"""Pieces of HTML that all displays are made of. Everything that is text goes through :func:`text`; nothing else may put
words of others into a page.

A table is built from cells that are either plain text (escaped here) or :class:`Html` made by this package. That type
is the only way around the escape, and a cell of any other type is text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

# Control characters cannot stand in HTML; marks that turn the writing direction can make a text read as another one.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_STYLE = (
    "<style>"
    ".mechvis-show{font-size:13px;line-height:1.45;color:inherit;max-width:60em}"
    ".mechvis-show table{border-collapse:collapse;margin:4px 0;color:inherit;background:transparent}"
    ".mechvis-show th,.mechvis-show td{padding:1px 10px 1px 0;text-align:left;vertical-align:top;border:0;"
    "color:inherit;background:transparent}"
    ".mechvis-show th{font-weight:600;border-bottom:1px solid rgba(127,127,127,.5)}"
    ".mechvis-show td.number,.mechvis-show th.number{text-align:right;font-variant-numeric:tabular-nums}"
    ".mechvis-show code{font-size:12px;color:inherit;background:transparent;padding:0}"
    ".mechvis-show summary{cursor:pointer}"
    ".mechvis-show figure{display:inline-block;margin:3px 6px 3px 0;vertical-align:top;text-align:center;"
    "font-size:11px}"
    ".mechvis-show img{display:block;image-rendering:pixelated;margin:0 auto}"
    "</style>"
)
CELL = 160
"""Characters of a text that are shown."""


class Html(str):
    """Text that is HTML already: made by this package from escaped parts."""

    __slots__ = ()


def text(value: object, most: int = CELL) -> Html:
    """Any value as escaped text of at most `most` characters.

    Example:
        >>> text("<script>")
        '&lt;script&gt;'
    """
    said = str(value)
    if len(said) > most:
        said = said[: most - most // 3] + "…" + said[len(said) - most // 3 :]
    return Html(escape(_UNPRINTABLE.sub("\ufffd", said), quote=True))


def cell(value: object) -> Html:
    """A value as it is put into a page: HTML of ours as it is, everything else as text."""
    return value if isinstance(value, Html) else text(value)


def join(parts: Sequence[object], between: str = "") -> Html:
    """Cells one after the other."""
    return Html(between.join(cell(part) for part in parts))


def code(value: object) -> Html:
    """A name as it is typed."""
    return Html(f"<code>{text(value)}</code>")


def bold(value: object) -> Html:
    """What a display is of."""
    return Html(f"<b>{text(value)}</b>")


def line(*parts: object) -> Html:
    """One line of facts, with dots between; empty ones are left out."""
    return Html(f"<div>{' · '.join(cell(part) for part in parts if part not in ('', None))}</div>")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> Html:
    """A table; the columns in `numbers` stand at the right.

    Example:
        >>> table(["name"], [["a<b"]])
        '<table><thead><tr><th>name</th></tr></thead><tbody><tr><td>a&lt;b</td></tr></tbody></table>'
    """
    kinds = [' class="number"' if name in numbers else "" for name in columns]
    head = "".join(f"<th{kind}>{text(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell(value)}</td>' for kind, value in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return Html(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def facts(known: Mapping[str, object]) -> Html:
    """Names with their values, one a row; None and empty texts are left out."""
    rows = "".join(
        f"<tr><td>{text(name)}</td><td>{cell(value)}</td></tr>"
        for name, value in known.items()
        if value is not None and value != ""
    )
    return Html(f"<table><tbody>{rows}</tbody></table>")


def fold(summary: object, body: object, *, open: bool = False) -> Html:
    """Something to unfold."""
    state = " open" if open else ""
    return Html(f"<details{state}><summary>{cell(summary)}</summary>{cell(body)}</details>")


def page(*parts: object) -> str:
    """A whole display."""
    return f'<div class="mechvis-show">{_STYLE}{join(parts)}</div>'


def n_bytes(count: float) -> str:
    """A size for people.

    Example:
        >>> n_bytes(1536), n_bytes(3 * 2**30)
        ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def shape(sizes: Sequence[int | None], axes: Sequence[str] | None = None) -> str:
    """Sizes with the words of their axes.

    Example:
        >>> shape([2, None], ["row", "token"])
        '[row=2 token]'
    """
    if axes is None or len(axes) != len(sizes):
        return f"[{' '.join('?' if size is None else str(size) for size in sizes)}]"
    return f"[{' '.join(axis if size is None else f'{axis}={size}' for axis, size in zip(axes, sizes, strict=True))}]"


def safely(make: Callable[[Any], str], thing: Any) -> str:
    """The display of a thing, or its text where the display fails: a notebook cell must not end in an error because of
    what it shows.

    Example:
        >>> safely(lambda thing: 1 / 0, "a<b")
        '<pre>&#x27;a&lt;b&#x27;</pre>'
    """
    # Any error: half-built or broken objects are shown too, and that is when they are looked at.
    try:
        return make(thing)
    except Exception:
        pass
    try:
        return f"<pre>{text(repr(thing), 4000)}</pre>"
    except Exception:
        return f"<pre>{text(object.__repr__(thing))}</pre>"
