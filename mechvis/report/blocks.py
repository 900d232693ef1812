"""What a report is made of: values that say what to show, not how. `build.py` turns them into HTML.

All text in them is plain text. It is never read as HTML or Markdown, so a class name, a prompt or a file name can be
anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mechvis.errors import ShapeMismatch, UnknownName, unknown

if TYPE_CHECKING:
    import matplotlib.figure


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    text: str
    """Plain text; an empty line ends a paragraph."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table that the reader can sort by any column."""

    df: pl.DataFrame
    """What to show, in this order."""
    caption: str = ""
    """Above the table."""
    formats: Mapping[str, str | Callable[[Any], str]] = field(default_factory=dict)
    """Per column a format specification (`+.3f`, `.1%`) or a function of the cell; default: `.4g` for floats."""
    bars: Sequence[str] = ()
    """Columns of numbers that get a small bar from zero, red for positive and blue for negative values."""
    limit: int = 500
    """Rows that are shown; the caption says how many there are in all."""

    def __post_init__(self):
        for column in (*self.formats, *self.bars):
            if column not in self.df.columns:
                raise unknown("column", column, self.df.columns)
        for column in self.bars:
            if not self.df.schema[column].is_numeric():
                raise ShapeMismatch(f"bars need numbers; the column {column!r} holds {self.df.schema[column]}.")


@dataclass(frozen=True, eq=False)
class Figure:
    """A matplotlib figure."""

    fig: "matplotlib.figure.Figure"
    """The figure."""
    caption: str = ""
    """Below it."""
    raster: bool = False
    """True: as pixels (many photographs); False: as vectors, sharp at any size."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images side by side."""

    images: Sequence[np.ndarray]
    """uint8 `[height width channel]` (1 or 3 channels) or `[height width]` each."""
    captions: Sequence[str] = ()
    """One line for each, or none."""
    caption: str = ""
    """For all of them."""

    def __post_init__(self):
        if len(self.captions) and len(self.captions) != len(self.images):
            raise ShapeMismatch(
                f"captions need one entry per image: {len(self.images)} images, {len(self.captions)} captions."
            )


@dataclass(frozen=True)
class Facts:
    """Names with their values; nested dicts are written as `outer / inner`."""

    facts: Mapping[str, Any]
    """What to list, in this order."""


@dataclass(frozen=True)
class Code:
    """Text as it is typed: a command, a configuration."""

    text: str
    """The text."""


@dataclass(frozen=True)
class Note:
    """A paragraph that stands out."""

    kind: str
    """`warning`, `info` or `good`."""
    text: str
    """Plain text; an empty line ends a paragraph."""

    def __post_init__(self):
        if self.kind not in ("warning", "info", "good"):
            raise unknown("note kind", self.kind, ("warning", "info", "good"))


@dataclass(frozen=True)
class Tile:
    """One key number."""

    value: str
    """The number with its unit, ready to print."""
    label: str
    """What it is, in a few words."""
    note: str = ""
    """Small print: interval, n, what it was before."""


@dataclass(frozen=True)
class Tiles:
    """Key numbers side by side."""

    tiles: Sequence[Tile]
    """From the most important on."""


Block = Text | Table | Figure | Images | Facts | Code | Note | Tiles


@dataclass(frozen=True, eq=False)
class Section:
    """A headed part of a report."""

    title: str
    """Its heading, also in the table of contents."""
    blocks: Sequence[Block]
    """Its content, from top to bottom."""

    def __post_init__(self):
        for block in self.blocks:
            if not isinstance(block, Block):
                raise UnknownName(
                    f"the section {self.title!r} holds a {type(block).__name__}. "
                    f"Blocks are {', '.join(kind.__name__ for kind in Block.__args__)}."
                )
