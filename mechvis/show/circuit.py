"""A circuit in a notebook: how large it is, how faithful where that is known, and a small drawing.

The drawing has a row per depth of the model, from the embedding below to the read-out above; it shows the largest edges
only. `circuits.drawing.draw` makes the picture for a page.
"""

import math
from collections.abc import Mapping
from typing import Any

from mechvis.show.html import Html, bold, code, facts, fold, line, page, table, text

_DRAWN, _LISTED = 60, 20
_STEP, _ROW, _BOX = 58, 40, 46
_SUPPORTS, _OPPOSES, _GROUND = "#c4484f", "#4687c2", "#5b6470"


def circuit(found: Any) -> str:
    """The display of a `circuits.Circuit`.

    Example:
        >>> circuit(circuits.Circuit.of(graph, ["embed->L0H1.v", "L0H1->out"]))                   # doctest: +SKIP
    """
    graph = found.graph
    edges = sorted(found.edges, key=lambda edge: -_size(found.score(edge)))
    scored = [(edge, found.score(edge)) for edge in edges]
    known = {
        "edges": f"{len(edges):,} of {graph.n_edges:,} ({found.share:.1%})",
        "components": f"{len(found.nodes)} of {len(graph.writers)}",
        "model": " ".join(str(found.model[key]) for key in ("name", "fingerprint") if key in found.model),
        **_faithful(found.provenance),
    }
    rows = [[code(edge), "" if math.isnan(score) else f"{score:+.4g}"] for edge, score in scored[:_LISTED]]
    more = f"the {_LISTED} largest of {len(edges)} edges" if len(edges) > _LISTED else "all edges"
    parts = [line(bold(found.title), "Circuit"), facts(known)]
    if edges:
        parts += [_drawing(found, scored[:_DRAWN]), fold(more, table(["edge", "score"], rows, ["score"]))]
    return page(*parts)


def _size(score: float) -> float:
    return 0.0 if math.isnan(score) else abs(score)


def _faithful(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What the provenance says of how well the circuit does; nothing is measured here."""
    found = {}
    for name in ("faithfulness", "completeness", "minimality"):
        known = provenance.get(name)
        if isinstance(known, int | float):
            found[name] = f"{known:.3f}"
        elif isinstance(known, Mapping) and isinstance(known.get("value"), int | float):
            ends = [known.get(end) for end in ("low", "high")]
            told = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if all(isinstance(end, int | float) for end in ends) else ""
            found[name] = f"{known['value']:.3f}{told}"
    if "faithfulness" not in found:
        found["faithfulness"] = "not measured here: circuits.evaluate(...)"
    return found


def _drawing(found: Any, scored: list[tuple[str, float]]) -> Html:
    """Boxes in rows by depth, edges as straight lines whose width is their score, as SVG."""
    graph = found.graph
    pairs = [(edge.split("->")[0], graph.node_of(edge.split("->")[1]), score) for edge, score in scored]
    used = {name for writer, reader, _ in pairs for name in (writer, reader)}
    depths = sorted({graph.depth(name) for name in used})
    rows = [[name for name in graph.nodes if name in used and graph.depth(name) == depth] for depth in depths]
    wide, high = max(len(row) for row in rows) * _STEP + 8, len(rows) * _ROW + 8
    places = {
        name: (wide / 2 + (place - (len(row) - 1) / 2) * _STEP, high - 4 - _ROW * (level + 0.5))
        for level, row in enumerate(rows)
        for place, name in enumerate(row)
    }
    largest = max((_size(score) for *_, score in pairs), default=0.0) or 1.0
    shapes = []
    for writer, reader, score in pairs:
        (x1, y1), (x2, y2) = places[writer], places[reader]
        colour = "currentColor" if math.isnan(score) else _SUPPORTS if score > 0 else _OPPOSES
        shapes.append(
            f'<line x1="{x1:.0f}" y1="{y1 - 9:.0f}" x2="{x2:.0f}" y2="{y2 + 9:.0f}" stroke="{colour}" '
            f'stroke-opacity="0.6" stroke-width="{0.7 + 2.6 * _size(score) / largest:.1f}"></line>'
        )
    for name, (x, y) in places.items():
        # Filled, so that edges pass behind; white on this grey reads on a light and on a dark page.
        shapes.append(
            f'<rect x="{x - _BOX / 2:.0f}" y="{y - 9:.0f}" width="{_BOX}" height="18" rx="4" fill="{_GROUND}"></rect>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" font-size="10" fill="#ffffff">'
            f"{text(name, 10)}</text>"
        )
    # A model with many heads: the drawing shrinks to the width of a page.
    scale = min(1.0, 760 / wide)
    drawn = f'<svg width="{wide * scale:.0f}" height="{high * scale:.0f}" viewBox="0 0 {wide} {high}">'
    note = f"the {len(pairs)} largest of {len(found)} edges; " if len(pairs) < len(found) else ""
    said = f"{note}red supports the behaviour, blue opposes it, width is the size of the score"
    return Html(f"<div>{drawn}{''.join(shapes)}</svg></div>{line(said)}")
