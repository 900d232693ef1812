"""Docstrings are written to be read in an editor; here they become reStructuredText that says the same.

Single backquotes are code (and a link, where they hold a public name), a block that is indented by four after a blank
line is code, a list may follow a line directly, and `*`, `_` and `|` outside of code are what they look like. What is
reStructuredText already (roles, literal blocks, simple tables, sessions with `>>>`) stays as it is.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ITEM = re.compile(r"(?:[*+-]|\d+[.)])\s+\S")
_SECTION = re.compile(
    r"(Args|Arguments|Returns|Yields|Raises|Example|Examples|Note|Notes|Warning|Attributes|See Also|References?):\s*$"
)
_NAMES = re.compile(r"[\w.]+(, [\w.]+)*( and [\w.]+)?\.?$")
_RAISED = re.compile(r"[\w.]+(, [\w.]+)*( and [\w.]+)?(:\s|\.?$)")
_EMPHASIS = r"\*\*[^*\s](?:[^*]*[^*\s])?\*\*|(?<!\S)\*[^*\s](?:[^*]*[^*\s])?\*(?![\w*])"
_MARKED = re.compile(rf"(``.+?``|(?::[a-z:]+:)?`[^`]+`|{_EMPHASIS})")
_DIRECTIVE = re.compile(r"\.\. [a-z:]+::")
_RULE = re.compile(r"[=+-]{2,}[=+ -]*$")


def markup(doc: str, near: str = "", homes: Mapping[str, str] | None = None) -> str:
    """Make a docstring that is written for an editor into reStructuredText that says the same.

    Code (between single backquotes), roles, literal blocks, directives, examples and simple tables stay as they are. A
    block that is indented by four after a line that ends with a colon and a blank line becomes a literal block; a list
    gets the blank line that it needs before it; a Markdown table becomes a literal block; stray marks are escaped.

    Args:
        doc: docstring, cleaned of its indentation.
        near: address of what it documents: names beside it are found without their package.
        homes: public address -> address of its full entry; code that is one of them becomes a link.

    Returns:
        The same text with the markup made explicit.
    """
    homes = homes or {}
    lines = _whole_code(doc.expandtabs(4).split("\n"))
    out: list[str] = []
    position = 0
    sectioned = any(_SECTION.match(line.strip()) for line in lines)
    in_section = raises = False
    while position < len(lines):
        line = lines[position]
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        before = next((text for text in reversed(out) if text.strip()), "")
        if indent == 0 and sectioned and stripped:
            in_section, raises = bool(_SECTION.match(stripped)), stripped == "Raises:"
        elif raises and indent == 4 and _NAMES.match(stripped):
            out += [f"    {name}" for name in re.findall(r"[\w.]*\w", stripped) if name != "and"]
            position += 1
            continue
        elif raises and indent == 4 and stripped and not _RAISED.match(stripped):
            line = f"        {stripped}" if out[-1].strip() != "Raises:" else f"    MechvisError: {stripped}"
        if stripped.startswith((">>>", "|")) or _RULE.match(stripped) or _DIRECTIVE.match(stripped):
            stop = _end_of_block(lines, position)
            block = lines[position:stop]
            if stripped.startswith("|"):
                out += [*([""] if out and out[-1].strip() else []), f"{' ' * indent}::", ""]
                out += [f"    {text}" for text in block] + [""]
            else:
                out += block
            position = stop
            continue
        item = re.match(r"\s*(?:[*+-]|\d+[.)])\s+", before)
        base = item.end() if item else len(before) - len(before.lstrip())
        after_blank = bool(out) and not out[-1].strip()
        code = after_blank and indent >= base + 4 and stripped and not in_section
        if code or (after_blank and before.rstrip().endswith("::") and indent > base):
            stop = _end_of_indent(lines, position, base)
            if not before.rstrip().endswith("::"):
                out += [f"{' ' * base}::", ""]
            out += [*lines[position:stop], ""]
            position = stop
            continue
        if _ITEM.match(stripped) and out and out[-1].strip() and not _same_list(out, indent):
            out.append("")
        out.append(_inline(line, near, homes))
        position += 1
    return "\n".join(out).rstrip()


def _whole_code(lines: list[str]) -> list[str]:
    """Join lines between which a piece of code is broken."""
    out: list[str] = []
    for line in lines:
        if out and line.strip() and out[-1].strip() and out[-1].replace("``", "").count("`") % 2:
            out[-1] = f"{out[-1]} {line.strip()}"
        else:
            out.append(line)
    return out


def _same_list(out: list[str], indent: int) -> bool:
    """Whether the line before belongs to a list item on the same level."""
    for text in reversed(out):
        if not text.strip():
            return False
        depth = len(text) - len(text.lstrip())
        if depth == indent:
            return bool(_ITEM.match(text.strip()))
        if depth < indent:
            return False
    return False


def _end_of_block(lines: list[str], start: int) -> int:
    """The first blank line after `start`, or for a table or directive the end of what belongs to it."""
    stop = start
    while stop < len(lines) and lines[stop].strip():
        stop += 1
    return stop


def _end_of_indent(lines: list[str], start: int, base: int) -> int:
    """The first line after `start` that is neither blank nor indented deeper than `base`."""
    stop = start
    while stop < len(lines) and (not lines[stop].strip() or len(lines[stop]) - len(lines[stop].lstrip()) > base):
        stop += 1
    while stop > start and not lines[stop - 1].strip():
        stop -= 1
    return stop


def _inline(line: str, near: str, homes: Mapping[str, str]) -> str:
    """One line: code as literal or link, stray `*`, `_`, `|` and backslashes escaped outside of code and emphasis."""
    pieces = _MARKED.split(line)
    for position, piece in enumerate(pieces):
        if position % 2:
            pieces[position] = _code(piece, near, homes) if piece[0] == "`" and piece[1] != "`" else piece
            continue
        bullet = re.match(r"\s*[*+-]\s+", piece) if position == 0 else None
        start = bullet.end() if bullet else 0
        text = piece[start:].replace("\\", "\\\\").replace("*", "\\*")
        text = re.sub(r"(?<=\w)_(?=\W|$)|(?<!\w)_(?=\w)", r"\\_", text)
        pieces[position] = piece[:start] + re.sub(r"\|(?=\S)|(?<=\S)\|", r"\\|", text)
    for position in range(1, len(pieces), 2):  # inline markup must not touch a word: `z`s, x`y`
        if pieces[position + 1][:1].isalnum():
            pieces[position + 1] = "\\ " + pieces[position + 1]
        if re.search(r"[\w=]$", pieces[position - 1]):
            pieces[position - 1] += "\\ "
    return "".join(pieces)


def _code(piece: str, near: str, homes: Mapping[str, str]) -> str:
    text = piece.strip("`").strip()
    name = text.removesuffix("()")
    package = near
    while name.replace(".", "").replace("_", "").isalnum():
        home = homes.get(f"{package}.{name}" if package else name)
        if home is not None:
            return f":py:obj:`{text} <{home}>`"
        if not package:
            break
        package = package.rpartition(".")[0]
    return f"``{text}``"


def settle(references: Iterable[Any], homes: Mapping[str, str]) -> None:
    """Point references in signatures and lists of errors at full entries; those that mean nothing here become text.

    Sphinx would look for anything that ends with the name. That takes long, and finds the wrong one where two packages
    have a class of the same name.

    Args:
        references: Sphinx's nodes for references that are to be found by their last name.
        homes: what :func:`links` gives.
    """
    by_name: dict[str, set[str]] = {}
    for home in homes.values():
        by_name.setdefault(home.rpartition(".")[2], set()).add(home)
    for node in references:
        target, module = node["reftarget"].lstrip("."), node.get("py:module") or ""
        same = by_name.get(target, set())
        home = homes.get(target) or homes.get(f"{module}.{target}") or (min(same) if len(same) == 1 else None)
        if home is None:
            node.replace_self(node.children)
        else:
            node["reftarget"] = home
            del node["refspecific"]
