"""What an explorer shows, as plain values: tables of words and arrays of numbers, no objects of a method.

Everything that a study holds is turned into these first (`gather.py`), and `page.py` knows only these. An object of
your own appears in an explorer if it is a :class:`mechvis.record.Record`, has `report(path)`, or offers
`explorer_panels()`, which returns panels of this module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.report.blocks import Section


@runtime_checkable
class Explorable(Protocol):
    """An object that says itself what an explorer shows of it."""

    def explorer_panels(self) -> "Sequence[Panel]":
        """Its panels, the most important first."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Images with what is known of them: the gallery."""

    ids: tuple[str, ...]
    """One name per image; other panels refer to images by it."""
    files: tuple[bytes | None, ...]
    """A small PNG or JPEG of each, or None."""
    labels: tuple[str | None, ...] = ()
    """Name of the class of each, or none at all."""
    predictions: tuple[str | None, ...] = ()
    """Name of the class that the model says, or none at all."""
    groups: tuple[str | None, ...] = ()
    """Name of the group of each, or none at all."""
    captions: tuple[str | None, ...] = ()
    """A sentence on each, or none at all."""
    numbers: Mapping[str, Float[np.ndarray, " image"]] = field(default_factory=dict)
    """What else is known, by name: probability of the label, effect of a head, ..."""

    def __post_init__(self):
        n = len(self.ids)
        columns = {"files": self.files, "labels": self.labels, "predictions": self.predictions,
                   "groups": self.groups, "captions": self.captions, **self.numbers}  # fmt: skip
        for name, column in columns.items():
            if len(column) not in ((n,) if name == "files" or name in self.numbers else (0, n)):
                raise ShapeMismatch(f"{n} images, and {len(column)} entries in {name!r}.")
        if len(set(self.ids)) != n:
            raise BadData(f"the ids of the images repeat: {n} images, {len(set(self.ids))} ids.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Attention patterns of some images, and of more images what the tokens that are read attend to."""

    layers: tuple[int, ...]
    """Numbers of the layers."""
    heads: tuple[int, ...]
    """Heads of each layer."""
    prefix: tuple[str, ...]
    """Names of the tokens before the patches: cls, register, ..."""
    grid: tuple[int, int]
    """Patches down and across."""
    ids: tuple[str, ...]
    """Images with full patterns."""
    patterns: Mapping[int, UInt8[np.ndarray, "image head query key"]]
    """By layer: shares of each row's largest weight (`packing.shares`)."""
    largest: Mapping[int, np.ndarray]
    """By layer: these largest weights, of 65535; uint16 `[image head query]`."""
    read_ids: tuple[str, ...]
    """Images with the rows that are read."""
    read: UInt8[np.ndarray, "image unit key"]
    """Mean over the tokens that the read-out reads; units are the heads of all layers, in order."""
    read_largest: np.ndarray
    """uint16 `[image unit]`."""
    read_name: str = "cls"
    """Which tokens these are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """Maps over images by several methods, e.g. attributions."""

    name: str
    """What to call them."""
    methods: tuple[str, ...]
    """Name of each method."""
    ids: tuple[str, ...]
    """Images."""
    values: tuple[Float[np.ndarray, "image down across"], ...]
    """One array per method; grids may differ."""
    about: tuple[str, ...] = ()
    """A line on each method, or none at all."""

    def __post_init__(self):
        if len(self.values) != len(self.methods) or len(self.about) not in (0, len(self.methods)):
            raise ShapeMismatch(f"{len(self.methods)} methods, {len(self.values)} arrays, {len(self.about)} lines.")
        for method, array in zip(self.methods, self.values, strict=True):
            if array.ndim != 3 or len(array) != len(self.ids) or 0 in array.shape[1:]:
                raise ShapeMismatch(
                    f"maps of {method!r} are {list(array.shape)}; [{len(self.ids)} down across] is needed."
                )
            if not np.isfinite(array).all():
                raise NotFinite(f"the maps of {method!r} hold NaN or Inf.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """Latents of a dictionary with the images on which they fire."""

    name: str
    """What to call the dictionary."""
    columns: Mapping[str, Sequence[Any]]
    """By name one value per latent; `latent` is its number, `label` words on it."""
    grid: tuple[int, int]
    """Patches down and across."""
    latent: Int[np.ndarray, " example"]
    """Position of the latent of each example; ascending."""
    image: Int[np.ndarray, " example"]
    """Position of its image in `ids`."""
    value: Float[np.ndarray, " example"]
    """Largest activation."""
    peak: Float[np.ndarray, " example"]
    """Largest activation on the patches: what 255 means."""
    top: np.ndarray
    """Is it one of the strongest images (or one from the whole range)? bool `[example]`."""
    maps: UInt8[np.ndarray, "example patch"]
    """Heat maps as shares of the peak."""
    ids: tuple[str, ...]
    """Images."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What columns mean."""
    sections: tuple[Section, ...] = ()
    """What else is said of them, below."""

    def __post_init__(self):
        n = len(self.latent)
        for name in ("image", "value", "peak", "top", "maps"):
            if len(getattr(self, name)) != n:
                raise ShapeMismatch(f"{n} examples, and {len(getattr(self, name))} entries in {name!r}.")
        if "latent" not in self.columns:
            raise BadData("latents need the column 'latent', their numbers.")
        size = len(self.columns["latent"])
        if n and (self.latent.min() < 0 or self.latent.max() >= size or (np.diff(self.latent) < 0).any()):
            raise BadData(f"examples name their latents by position, ascending, from 0 to {size - 1}.")
        if n and (self.image.min() < 0 or self.image.max() >= len(self.ids)):
            raise BadData(f"examples name their images by position, from 0 to {len(self.ids) - 1}.")
        if self.maps.shape != (n, self.grid[0] * self.grid[1]):
            raise ShapeMismatch(f"{n} maps on a grid of {self.grid[0]} x {self.grid[1]}, got {list(self.maps.shape)}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Edge:
    """One edge of a circuit."""

    source: str
    """The component that writes."""
    target: str
    """The component that reads."""
    entry: str
    """Which of its inputs: q, k, v or nothing."""
    score: float | None
    """What it is worth; None: not known."""
    kept: bool = True
    """Does it belong to the circuit?"""
    note: str = ""
    """More on it: an interval, a p-value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A circuit: components by layer, and edges."""

    name: str
    """What to call it."""
    edges: tuple[Edge, ...]
    """At least one."""
    about: str = ""
    """Below the name."""
    sections: tuple[Section, ...] = ()
    """What else is said of it, below the drawing."""

    def __post_init__(self):
        if not self.edges:
            raise BadData(f"the graph {self.name!r} has no edge: there is nothing to draw.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Gate:
    """One gate of a card: a check that an explanation passes or fails before its numbers mean anything."""

    name: str
    """What is checked."""
    passed: bool | None
    """None: neither, see `said`."""
    statistic: str = ""
    """What was measured."""
    threshold: str = ""
    """What it had to be."""
    why: str = ""
    """What the number is, or why there is none."""
    said: str = ""
    """The answer in a word where there is no yes or no: not run, not applicable."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """A faithfulness card."""

    name: str
    """Of what."""
    gates: tuple[Gate, ...]
    """Checks, in their order."""
    measures: tuple[Mapping[str, Any], ...] = ()
    """One per number: `measure`, `value`, `low`, `high`, `n`, and anything else."""
    sections: tuple[Section, ...] = ()
    """Everything else on it."""
    scope: str = ""
    """What it says nothing about."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """Anything that has a report: its sections."""

    name: str
    """Heading."""
    subtitle: str = ""
    """Below it."""
    sections: tuple[Section, ...]
    """From top to bottom."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How to repeat it."""


Panel = Pictures | Attention | Maps | Latents | Graph | Card | Page
