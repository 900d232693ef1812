"""The sections of a report instead of a file: for pages that are composed of several reports.

Everything in this library that reports ends in `write_report`. Inside :func:`collected` it hands over what it was given
and writes nothing, so whatever has a `report(path)` can be part of a larger page without knowing of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mechvis.report.blocks import Section


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """What one call of `write_report` was given."""

    title: str
    """The heading."""
    subtitle: str
    """Below it."""
    sections: Sequence[Section]
    """From top to bottom."""
    provenance: Mapping[str, Any]
    """What must be known to repeat it."""


_reports: ContextVar[list[Collected] | None] = ContextVar("mechvis_collected_reports", default=None)


@contextmanager
def collected() -> Iterator[list[Collected]]:
    """Reports that are written inside this block come into the list, and no file is touched.

    Example:
        >>> from mechvis.report import Section, Text, write_report
        >>> with collected() as reports:
        ...     _ = write_report("nowhere.html", "Heads", "", [Section("Found", [Text("One.")])])
        >>> reports[0].title, reports[0].sections[0].title
        ('Heads', 'Found')
    """
    found: list[Collected] = []
    token = _reports.set(found)
    try:
        yield found
    finally:
        _reports.reset(token)


def collecting() -> list[Collected] | None:
    """The list that reports go to; None outside of :func:`collected`."""
    return _reports.get()
