"""Effects of units in a notebook: the largest of them as bars with their intervals, n, and what survives.

Bars share one scale with zero in it, red for units that support the metric, blue for those that oppose it; the
interval is a thin line. Effects that do not survive the correction for many comparisons are pale and say so.
"""

from collections.abc import Mapping
from typing import Any

from mechvis.show.html import Html, bold, code, facts, fold, join, line, page, table

_TOP = 10
_WIDE, _HIGH = 150, 14
_SUPPORTS, _OPPOSES = "#c4484f", "#4687c2"
"""Between dark and light, so that they read on either ground."""


def result(found: Any) -> str:
    """The display of a `Result`: the units with the largest effects of its first metric.

    Example:
        >>> result(mechvis.sweep(model, images, units="heads"))                                   # doctest: +SKIP
    """
    from mechvis.results import FALSE_DISCOVERY_RATE

    metric = found.metrics[0]
    every = found.rows(metric)
    rows = found.top(_TOP, by="size", metric=metric).to_dicts()
    ends = [row[name] for row in rows for name in ("effect", "low", "high") if row[name] is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    low, high = (low, high) if high > low else (0.0, 1.0)
    body = [
        [
            row["unit"],
            f"{row['effect']:+.4g}",
            _interval(row),
            _bar(row, low, high),
            row["n"],
            "yes" if row["significant"] else "no",
        ]
        for row in rows
    ]
    columns = ["unit", "effect", "95 % interval", "", "n", "survives"]
    survive = int(every["significant"].sum())
    counts = (int(every["n"].min()), int(every["n"].max()))
    n = f"n = {counts[0]} images" if counts[0] == counts[1] else f"n = {counts[0]} to {counts[1]} images"
    head = line(bold(found.title), code(found.kind))
    what = line(
        f"effect on {metric} (clean - edited)",
        n,
        f"{survive} of {every.height} units survive a false-discovery rate of {FALSE_DISCOVERY_RATE:g}",
    )
    shown = f"the largest effects: {len(rows)} of {every.height} units" if every.height > len(rows) else "all units"
    parts = [head, what, table(columns, body, ["effect", "n"]), line(shown)]
    if len(found.metrics) > 1:
        parts.append(line(f"other metrics: {', '.join(found.metrics[1:])}"))
    return page(*parts, _origin(found))


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None or row["high"] is None else f"[{row['low']:+.3g}, {row['high']:+.3g}]"


def _bar(row: Mapping[str, Any], low: float, high: float) -> Html:
    """A bar from zero to the effect with its interval, as SVG of numbers only."""

    def x(value: float) -> float:
        return 2 + (_WIDE - 4) * (value - low) / (high - low)

    zero, end = x(0.0), x(row["effect"])
    colour = _SUPPORTS if row["effect"] >= 0 else _OPPOSES
    opacity = 0.95 if row["significant"] else 0.4
    shapes = (
        f'<rect x="{min(zero, end):.1f}" y="3" width="{max(abs(end - zero), 0.5):.1f}" height="{_HIGH - 6}" '
        f'fill="{colour}" fill-opacity="{opacity}"></rect>'
        f'<line x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="{_HIGH}" stroke="currentColor" stroke-opacity="0.5"></line>'
    )
    if row["low"] is not None and row["high"] is not None:
        shapes += (
            f'<line x1="{x(row["low"]):.1f}" y1="{_HIGH / 2}" x2="{x(row["high"]):.1f}" y2="{_HIGH / 2}" '
            'stroke="currentColor"></line>'
        )
    said = f"{row['effect']:+.3g}"
    return Html(f'<svg width="{_WIDE}" height="{_HIGH}" role="img" aria-label="{said}">{shapes}</svg>')


def _origin(found: Any) -> Html:
    """What must be known of where it comes from, to unfold."""
    known = found.provenance
    model, data = known.get("model") or {}, known.get("data") or {}
    told = {
        "model": " ".join(str(model[key]) for key in ("name", "fingerprint") if key in model),
        "images": " ".join(str(data[key]) for key in ("name", "fingerprint") if key in data),
        "clean metric": ", ".join(f"{name} {value:.4g}" for name, value in found.baseline.items()),
        "seeds": ", ".join(f"{name} {value}" for name, value in (known.get("seeds") or {}).items()),
        "screen": (known.get("screen") or {}).get("statement", ""),
    }
    body = facts(told)
    return fold("where it comes from", join([body])) if any(told.values()) else Html("")
