"""What an attribution method found, in a notebook: the maps of the first images, what was asked, how they add up."""

from typing import Any

from mechvis.show.html import Html, fold, join, line, table
from mechvis.show.maps import maps

_ROWS = 12


def attribution(found: Any) -> str:
    """The display of a `mechvis.attribution.Attribution`.

    Example:
        >>> attribution(mechvis.attribute(model, images, "rise"))                                 # doctest: +SKIP
    """
    rows = found.table
    claims = found.facts.get("claims") or {}
    titles = [str(name) for name in rows["target"].to_list()] if "target" in rows.columns else []
    shown = rows.head(_ROWS)
    body = [[f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in shown.iter_rows()]
    numbers = [name for name, kind in rows.schema.items() if kind.is_numeric()]
    more = f", first {_ROWS} of {rows.height}" if rows.height > _ROWS else ""
    below = [
        fold(f"what was explained{more}", table(rows.columns, body, numbers)),
        join([line(caveat) for caveat in found.caveats]),
    ]
    page = maps(found.maps, titles=titles, title=found.title, signed=claims.get("signed"))
    # Inside the one root of the display of maps.
    return f"{page.removesuffix('</div>')}{join([Html(part) for part in below])}</div>"
