"""What a folder holds, for an explorer: one saved thing, or sub-folders that hold some.

Results, records and studies are read as `mechvis report` reads them. A circuit (`mechvis.circuit`) has no report of its
own and is read by its table of edges; a card is a JSON file with gates and measures.
"""

import io
from pathlib import Path
from typing import Any

import polars as pl

from mechvis import files
from mechvis.errors import BadData, StoreCorrupt
from mechvis.explorer.cards import card_in
from mechvis.explorer.graph import graph_of_table
from mechvis.explorer.panels import Graph

MOST_FOLDERS = 200
"""Sub-folders of a study that are read."""


def load_things(folder: str | Path) -> list[Any]:
    """Everything that was saved in a folder, or in its sub-folders if it holds nothing itself.

    Args:
        folder: of one thing, or of a study; or a card's JSON file.

    Raises:
        BadData: nothing that is known, or more sub-folders than a study has.
        StoreCorrupt: a file is missing, truncated or changed.

    Example:
        >>> load_things("study")                                                                   # doctest: +SKIP
        [Result(...), Record(...)]
    """
    folder = Path(folder)
    if folder.is_file():
        return [_card(folder)]
    own = things_in(folder)
    if own or not folder.is_dir():
        if not own:
            raise BadData(f"{folder} is not a folder.")
        return own
    below = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    if len(below) > MOST_FOLDERS:
        raise BadData(f"{folder} has {len(below)} folders; a study has at most {MOST_FOLDERS}. Name the ones you mean.")
    found = [thing for place in below for thing in things_in(place)]
    if not found:
        raise BadData(
            f"{folder} holds no saved result, record, circuit or card, and neither do its {len(below)} sub-folders."
        )
    return found


def things_in(folder: Path) -> list[Any]:
    """What lies in this very folder: a saved result or study, a circuit, cards."""
    from mechvis.commands.saved import formats_in, load_saved, readers

    if not folder.is_dir():
        return []
    found: list[Any] = []
    formats = formats_in(folder)
    known = {file for name, file in formats.items() if name in readers() or name == "mechvis.circuit"}
    if any(name in readers() for name in formats):
        found.append(load_saved(folder))
    if "mechvis.circuit" in formats:
        found.append(load_circuit(folder))
    for file in sorted(folder.glob("*.json")):
        if file.name not in known and (thing := _maybe_card(file)) is not None:
            found.append(thing)
    return found


def load_circuit(folder: str | Path) -> Graph:
    """The edges of a saved circuit.

    Raises:
        StoreCorrupt, ResultMismatch: as `Circuit.load` says.
    """
    folder = Path(folder)
    check = files.only_format(folder / "circuit.json", "mechvis.circuit", 1, "a circuit")
    manifest = files.read_manifest(folder, "circuit.json", check=check)
    content = files.read_together(folder, manifest, "edges.parquet")
    try:
        table = pl.read_parquet(io.BytesIO(content)).select("writer", "reader", "kept", "score")
        return graph_of_table(table, str(manifest["title"]), str(manifest["model"].get("name", "")))
    except (pl.exceptions.PolarsError, KeyError, AttributeError) as error:
        raise StoreCorrupt(f"{folder / 'edges.parquet'} does not hold what a circuit needs: {error}") from error


def _card(file: Path) -> Any:
    found = _maybe_card(file)
    if found is None:
        raise BadData(f"{file} is no card: a card is JSON with gates and measures.")
    return found


def _maybe_card(file: Path) -> Any:
    try:
        content = files.read_json(file)
    except StoreCorrupt:
        return None
    if isinstance(content, dict) and isinstance(content.get("card"), dict):
        content = content["card"]  # as `FaithfulnessCard.save` writes it
    return content if isinstance(content, dict) and card_in(content) is not None else None
