"""From what a study holds to panels, and from panels of many things to one of each kind that is one.

For each thing, in this order:

1. A panel of `panels.py` is taken as it is; an object with `explorer_panels()` says its own.
2. Records with maps over images become latents or maps; a table with writers and readers becomes a circuit; gates and
   measures become a card.
3. Whatever has `report(path)` (or `report_sections()`) gives its sections, figures and tables included.

All images come into one gallery, by their ids: what one thing does not know of an image, another may.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.errors import BadData
from mechvis.explorer.cards import card_in
from mechvis.explorer.graph import edges_in, graph_of_table
from mechvis.explorer.known_records import panels_of_record
from mechvis.explorer.panels import (
    Attention,
    Card,
    Explorable,
    Graph,
    Latents,
    Maps,
    Page,
    Panel,
    Pictures,
)
from mechvis.record import Record
from mechvis.report.blocks import Facts, Section, Text
from mechvis.report.build import provenance_section
from mechvis.report.collect import collected
from mechvis.results import Result


@dataclass(kw_only=True)
class Gathered:
    """Everything that one explorer shows, by kind."""

    pictures: Pictures | None = None
    attention: Attention | None = None
    maps: list[Maps] = field(default_factory=list)
    latents: list[Latents] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)


def panels_of(thing: Any, images: ImageSet | None = None) -> list[Panel]:
    """What an explorer shows of a thing.

    Args:
        thing: a result, a record, a circuit or its evaluation, a card, a panel, anything with `report(path)`.
        images: the images of the study, for records that only number theirs.

    Raises:
        BadData: nothing of the kind.

    Example:
        >>> import polars as pl
        >>> record = Record(kind="probe", title="Probes", tables={"layers": pl.DataFrame({"layer": [0]})})
        >>> [type(panel).__name__ for panel in panels_of(record)]
        ['Page']
    """
    if isinstance(thing, Panel):
        return [thing]
    if isinstance(thing, Explorable) and not isinstance(thing, type):
        found = list(thing.explorer_panels())
        if strange := [type(panel).__name__ for panel in found if not isinstance(panel, Panel)]:
            raise BadData(f"explorer_panels() of a {type(thing).__name__} gave a {strange[0]}, which is no panel.")
        return found
    found: list[Panel] = []
    if isinstance(thing, Record):
        found += panels_of_record(thing, images)
    if isinstance(thing, Result):
        found += _of_result(thing)
    table = edges_in(thing)
    if table is not None:
        found.append(graph_of_table(table, _title(thing), repr(thing).split("\n")[0] if len(repr(thing)) < 400 else ""))
    card = card_in(thing)
    if card is not None:
        found.append(card)
    page = _page(thing, with_figures=not any(isinstance(panel, Latents) for panel in found))
    if page is not None:
        _place(page, found)
    if not found:
        raise BadData(
            f"an explorer knows nothing to show of a {type(thing).__name__}. Give a Result, a Record, a circuit, an "
            "evaluation, a card, or anything with report(path) or explorer_panels()."
        )
    return found


def gather(things: Sequence[Any], images: ImageSet | None = None) -> Gathered:
    """All panels of some things, pictures merged by the ids of images.

    Args:
        things: what a study holds.
        images: the images of the study.

    Raises:
        BadData: nothing at all, or attention of two models.
    """
    gathered = Gathered()
    shown: list[Pictures] = []
    lists = {Maps: gathered.maps, Latents: gathered.latents, Graph: gathered.graphs, Card: gathered.cards,
             Page: gathered.pages}  # fmt: skip
    for thing in things:
        for panel in panels_of(thing, images):
            if isinstance(panel, Pictures):
                shown.append(panel)
            elif isinstance(panel, Attention):
                if gathered.attention is not None:
                    raise BadData("an explorer shows the attention of one model; write one file per model.")
                gathered.attention = panel
            else:
                lists[type(panel)].append(panel)
    named = [panel.ids for panel in (*gathered.maps, *gathered.latents)]
    if gathered.attention is not None:
        named.append(gathered.attention.read_ids)
    gathered.pictures = merged(shown, named)
    if not any((gathered.pictures, *lists.values())):
        raise BadData("there is nothing to explore: give results, records, circuits, cards, or a model with images.")
    return gathered


def merged(shown: Sequence[Pictures], named: Sequence[Sequence[str]] = ()) -> Pictures | None:
    """One gallery of several: an image is one by its id, and the first that knows something of it wins.

    Args:
        shown: galleries.
        named: ids that must be there also where no gallery has them.

    Returns:
        None where there is no image with a picture and none is named.
    """
    # A column of a result alone is no gallery: images of which nothing but an effect is known stay out.
    base = [own for own in shown if any(file is not None for file in own.files)]
    ids = list(dict.fromkeys(name for group in (*(own.ids for own in base), *named) for name in group))
    if not ids:
        return None
    place = {name: i for i, name in enumerate(ids)}
    texts: dict[str, list[Any]] = {
        name: [None] * len(ids) for name in ("files", "labels", "predictions", "groups", "captions")
    }
    numbers: dict[str, np.ndarray] = {}
    for own in shown:
        at = [place.get(name, -1) for name in own.ids]
        for name, column in texts.items():
            for i, value in zip(at, getattr(own, name), strict=False):
                if i >= 0 and column[i] is None:
                    column[i] = value
        for name, values in own.numbers.items():
            column = numbers.setdefault(name, np.full(len(ids), np.nan))
            for i, value in zip(at, values, strict=True):
                if i >= 0 and np.isnan(column[i]):
                    column[i] = value
    numbers = {name: column for name, column in numbers.items() if not np.isnan(column).all()}
    files = tuple(texts.pop("files"))
    known = {name: tuple(column) for name, column in texts.items() if any(value is not None for value in column)}
    return Pictures(ids=tuple(ids), files=files, numbers=numbers, **known)


def _place(page: Page, found: list[Panel]) -> None:
    """Put the report of a thing below what it has to look at, or after it as a part of its own."""
    for i, panel in enumerate(found):
        sections = page.sections
        if isinstance(panel, Card):
            # Gates and measures are shown already.
            sections = tuple(one for one in sections if one.title.lower() not in ("gates", "measures", "scope"))
            found[i] = replace(
                panel, name=page.name.removeprefix("Faithfulness card: "), sections=sections or panel.sections
            )
            return
        if isinstance(panel, Latents | Graph):
            again = (provenance_section(page.provenance),) if page.provenance else ()
            found[i] = replace(panel, sections=(*sections, *again))
            if isinstance(panel, Graph):
                found[i] = replace(found[i], about=page.subtitle or panel.about)
            return
    found.append(page)


def _of_result(result: Result) -> list[Panel]:
    """Per-image effects of the unit with the largest effect, for the gallery to sort by."""
    if result.images is None:
        return []
    metric = result.metrics[0]
    values = result.values.get(metric)
    if values is None:
        return []
    rows = result.rows(metric)
    strongest = int(rows["effect"].abs().arg_max())
    ids = tuple(map(str, result.images["id"]))
    name = f"effect of {rows['unit'][strongest]} on {metric}"
    return [Pictures(ids=ids, files=(None,) * len(ids), numbers={name: values[strongest].astype(np.float64)})]


def _page(thing: Any, *, with_figures: bool) -> Page | None:
    if hasattr(thing, "report_sections"):
        sections = tuple(thing.report_sections())
        return Page(name=_title(thing), sections=sections, provenance=getattr(thing, "provenance", None) or {})
    if isinstance(thing, Record) and not with_figures:
        facts = {name: value for name, value in thing.facts.items() if not isinstance(value, list | dict)}
        believe = Section(
            "How far to believe it", [Text("\n\n".join(thing.caveats)), *([Facts(facts)] if facts else [])]
        )
        words = [Section("What the words mean", [Facts(thing.words)])] if thing.words else []
        return Page(name=thing.title, subtitle=thing.kind, sections=(believe, *words), provenance=thing.provenance)
    if not callable(getattr(thing, "report", None)):
        return None
    with collected() as reports:
        thing.report("report.html")
    if not reports:
        raise BadData(
            f"report() of a {type(thing).__name__} wrote no report with mechvis.report.write_report, so its sections "
            "are not known here; give it report_sections()."
        )
    one = reports[0]
    return Page(name=one.title, subtitle=one.subtitle, sections=tuple(one.sections), provenance=dict(one.provenance))


def _title(thing: Any) -> str:
    for name in ("title", "name"):
        value = getattr(thing, name, None)
        if isinstance(value, str) and value:
            return value
    return type(thing).__name__
