"""Records whose arrays an explorer can show on images: pages of latents, and maps.

They are read by their tables and arrays alone, so the packages that make them need not be imported.
"""

import itertools
import re
from typing import Any

import numpy as np
import polars as pl

from mechvis.data.images import ImageSet
from mechvis.errors import BadData
from mechvis.explorer.panels import Latents, Maps, Panel, Pictures
from mechvis.record import Record

_EMPTY = pl.DataFrame()
LATENT_COLUMNS = (
    "latent", "fires", "frequency", "density", "mean", "max", "top_class", "class_share", "class_base", "top_group",
    "group_share", "moran",
)  # fmt: skip
"""Columns of the table of latents that are shown, each with the ends of its interval where it has one."""


def panels_of_record(record: Record, images: ImageSet | None = None) -> list[Panel]:
    """What of a record can be looked at on images; nothing for most.

    Args:
        record: a record.
        images: the images of the study, for records that only number theirs.

    Raises:
        BadData: a record of a known kind without what that kind must have.
    """
    if record.kind == "latent_pages":
        return [*_latents(record)]
    maps = record.arrays.get("maps")
    if maps is not None and maps.ndim in (3, 4) and {"id", "image"} & set(record.tables.get("images", _EMPTY).columns):
        return [_maps(record, images)]
    return []


def _latents(record: Record) -> tuple[Pictures, Latents]:
    """Pages of latents (`sae.dashboards`): the images that are examples, and the latents."""
    try:
        latents, examples, images = (record.tables[name] for name in ("latents", "examples", "images"))
        maps, offsets, files = (record.arrays[name] for name in ("maps", "picture_offsets", "pictures"))
        grid = tuple(record.facts["grid"])
    except KeyError as error:
        raise BadData(f"the pages of latents {record.title!r} have no {error}.") from error
    ids = tuple(map(str, images["id"]))
    place = {image: i for i, image in enumerate(images["image"])}
    number = {latent: i for i, latent in enumerate(latents["latent"])}
    shown = [f"{name}{end}" for name in LATENT_COLUMNS for end in ("", "_low", "_high")]
    columns: dict[str, Any] = {name: latents[name].to_list() for name in shown if name in latents.columns}
    columns["label"] = _labels(record, list(latents["latent"]))
    if not any(columns["label"]):
        del columns["label"]
    pictures = Pictures(
        ids=ids,
        files=tuple(files[a:b].tobytes() for a, b in itertools.pairwise(offsets)),
        labels=tuple(images["class"]) if "class" in images.columns else (),
        groups=tuple(images["group"]) if "group" in images.columns else (),
    )
    return pictures, Latents(
        name=record.title,
        columns=columns,
        grid=grid,
        latent=np.array([number[latent] for latent in examples["latent"]], np.int64),
        image=np.array([place[image] for image in examples["image"]], np.int64),
        value=examples["value"].to_numpy().astype(np.float64),
        peak=examples["peak"].to_numpy().astype(np.float64),
        top=(examples["kind"] == "top").to_numpy(),
        maps=maps.reshape(examples.height, -1) if grid[0] * grid[1] else np.zeros((examples.height, 0), np.uint8),
        ids=ids,
        words={name: record.words[name] for name in LATENT_COLUMNS if name in record.words},
    )


def _labels(record: Record, latents: list[int]) -> list[str]:
    """A few words on each latent: its own column `label`, else the nearest text that is above chance."""
    own = record.tables["latents"]
    if "label" in own.columns:
        return ["" if text is None else str(text) for text in own["label"]]
    texts = record.tables.get("texts")
    if texts is None:
        return [""] * len(latents)
    best: dict[int, str] = {}
    for row in texts.filter(pl.col("above_chance")).sort("rank", maintain_order=True).iter_rows(named=True):
        best.setdefault(row["latent"], row["text"])
    return [best.get(latent, "") for latent in latents]


def _ids(record: Record, n: int, images: ImageSet | None) -> tuple[str, ...]:
    """Ids of a record's images. Positions become ids only if the study's first images are proven to be the same ones:
    a map on the wrong image would look like a finding."""
    table = record.tables["images"]
    if "id" in table.columns:
        found = tuple(map(str, table["id"]))
    else:
        data = record.provenance.get("data") or {}
        places = table["image"].to_list()
        same = images is not None and n <= len(images) and data.get("fingerprint") == images[:n].fingerprint
        if same and places == list(range(n)):
            return tuple(images.ids[:n])
        name = data.get("name") or record.title
        found = tuple(f"{name}, image {place}" for place in places)
    if len(found) != n or len(set(found)) != n:
        raise BadData(f"{record.title!r} has maps of {n} images, and {len(set(found))} different images in its table.")
    return found


def _maps(record: Record, images: ImageSet | None) -> Maps:
    """Maps over images: `maps [image down across]`, or `[method image down across]` with the names in the facts.

    Further arrays of the same shape that are named `maps ...` or `maps_...` are further methods.
    """
    maps = record.arrays["maps"]
    ids = _ids(record, maps.shape[-3], images)
    name = str(record.facts.get("method", record.title))
    if maps.ndim == 4:
        told = record.facts.get("methods", [])
        methods = [str(told[i]) if i < len(told) else f"{name} {i}" for i in range(len(maps))]
        return Maps(name=record.title, methods=tuple(methods), ids=ids, values=tuple(maps.astype(np.float64)))
    found = {name: maps.astype(np.float64)}
    for other, array in record.arrays.items():
        if re.match(r"maps[ _]", other) and array.ndim == 3 and len(array) == len(ids):
            found[other[5:]] = array.astype(np.float64)
    return Maps(name=record.title, methods=tuple(found), ids=ids, values=tuple(found.values()))
