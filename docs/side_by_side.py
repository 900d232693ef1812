"""Sphinx extension: their code on the left and ours on the right, on the migration pages.

The pages are Markdown with a comment before each block (`<!-- theirs: task -->`, `<!-- ours: task -->`), so that a
code host shows the blocks one below the other. On the site a block with `theirs` and the next one with `ours` of the
same task become two columns with titles; `site_style/site.css` places them. A block without a partner keeps the width.
"""

import re
from typing import Any

from docutils import nodes

MARK = re.compile(r"<!-- (theirs|ours)(?:, not run)?: (\w+)")
TITLES = {
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "vit_prisma": "ViT-Prisma",
    "clip_text_span": "clip_text_span",
    "saelens": "SAELens",
}


def pairs(document: nodes.document) -> list[tuple[nodes.Element, nodes.Element, nodes.Element, nodes.Element]]:
    """Comments (raw HTML to docutils) and blocks of code that stand for the same task, in the order of the page."""
    found = []
    for first in list(document.findall(nodes.raw)):
        around = first.parent.children
        four = around[around.index(first) : around.index(first) + 4]
        if len(four) < 4 or not (isinstance(four[1], nodes.literal_block) and isinstance(four[3], nodes.literal_block)):
            continue
        one, two = MARK.search(four[0].astext()), MARK.search(four[2].astext())
        if one and two and one[2] == two[2] and one[1] != two[1]:
            found.append(tuple(four))
    return found


def arrange(app: Any, document: nodes.document) -> None:
    """Put the pairs of a migration page into columns, theirs left."""
    page = app.env.docname.rpartition("migrating/")
    if not page[1]:
        return
    for first, code, second, other in pairs(document):
        theirs, ours = (code, other) if "theirs" in first.astext() else (other, code)
        row = nodes.container(classes=["side-by-side"])
        section = first.parent
        section.insert(section.index(first), row)
        for node in (first, code, second, other):
            section.remove(node)
        for title, block in ((TITLES.get(page[2], page[2]), theirs), ("mechvis", ours)):
            row += nodes.container("", nodes.paragraph("", title, classes=["side-title"]), block, classes=["side"])


def setup(app: Any) -> dict[str, Any]:
    """Entrance for Sphinx."""
    app.connect("doctree-read", arrange)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
