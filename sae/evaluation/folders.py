"""Saved dictionaries by name, from folders: dictionaries themselves, or a training run with several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechvis.errors import BadData
from sae.dictionary import MANIFEST, Dictionary, load


def load_dictionaries(folders: Sequence[str | Path], *, device: Any = None) -> dict[str, Dictionary]:
    """Dictionaries by the names of their folders.

    Args:
        folders: of dictionaries (`Dictionary.save`), or of runs (`sae.train(out=...)`), whose dictionaries lie in
            `dictionaries/`.
        device: where to put them.

    Raises:
        BadData: no folder, or two of the same name.
        StoreCorrupt, ResultMismatch: a folder that holds no dictionary; see `Dictionary.load`.
    """
    places: list[Path] = []
    for folder in map(Path, folders):
        below = sorted((folder / "dictionaries").glob(f"*/{MANIFEST}"))
        places += [path.parent for path in below] if below else [folder]
    if not places:
        raise BadData("no dictionary to evaluate: name the folders that sae.train or Dictionary.save wrote.")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        # Two runs may both have a job called "dictionary": the run's name tells them apart.
        names = [f"{_run(place).name}-{place.name}" for place in places]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadData(f"two folders are called {twice!r}: rename one, since they are the names of the table's rows.")
    return {name: load(place, device=device) for name, place in zip(names, places, strict=True)}


def _run(place: Path) -> Path:
    return place.parent.parent if place.parent.name == "dictionaries" else place.parent
