"""What lies at a path: the files, their JSON, the tensors in them. Read once, however many formats look at it."""

import math
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor

from mechvis import files
from mechvis.errors import BadData, StoreCorrupt
from sae.formats.pickles import load_pt, tensors_in

OF_FOLDERS = (
    "cfg.json",
    "config.json",
    "sae_weights.safetensors",
    "sae.safetensors",
    "model.safetensors",
    "weights.safetensors",
    "ae.pt",
)
"""Files that mean their folder: alone they leave open what they are."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What some formats leave out of their files, and the caller knows."""

    k: int | None = None
    """Active latents per row."""
    threshold: float | None = None
    """Of BatchTopK."""
    architecture: str | None = None
    """`relu`, where neither of them applies."""


class Seen:
    """A folder, or a file with its folder.

    Raises:
        StoreCorrupt: there is nothing at the path.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise StoreCorrupt(f"there is nothing at {self.path}.")
        self.one = self.path.is_file() and self.path.name not in OF_FOLDERS
        self.folder = self.path.parent if self.path.is_file() else self.path
        self._kept: dict[Path, Any] = {}

    @property
    def names(self) -> list[str]:
        """Names of the files: of the folder, or the one that was given."""
        if self.one:
            return [self.path.name]
        return sorted(place.name for place in self.folder.iterdir() if place.is_file())

    def has(self, *patterns: str) -> bool:
        """Is there a file of one of these names?"""
        return any(fnmatch(name, pattern) for pattern in patterns for name in self.names)

    def file(self, *patterns: str) -> Path:
        """The file of the first of these names that is there.

        Raises:
            StoreCorrupt: there is none.
            BadData: there are several of a pattern, so it is open which is meant.
        """
        for pattern in patterns:
            found = [name for name in self.names if fnmatch(name, pattern)]
            if len(found) > 1:
                told = ", ".join(found[:4]) + (" ..." if len(found) > 4 else "")
                raise BadData(
                    f"{self.path} has {len(found)} files {pattern} ({told}); say which one: {self.folder / found[0]}."
                )
            if found:
                return self.folder / found[0]
        raise StoreCorrupt(
            f"{self.path} has no {' or '.join(patterns)}; there is {', '.join(self.names) or 'nothing'}."
        )

    def json(self, *names: str) -> dict[str, Any]:
        """A JSON object of the folder (or of the one above, as checkpoints of dictionary_learning have it); {} if none.

        Raises:
            StoreCorrupt: it is no JSON object.
        """
        for folder in (self.folder, self.folder.parent):
            for name in names:
                place = folder / name
                if place.is_file():
                    if place not in self._kept:
                        self._kept[place] = files.read_json(place)
                    if not isinstance(self._kept[place], dict):
                        raise StoreCorrupt(f"{place} does not hold a JSON object.")
                    return self._kept[place]
            if not self.one:
                break
        return {}

    def safetensors(self, place: Path) -> dict[str, Tensor]:
        """The tensors of a safetensors file.

        Raises:
            StoreCorrupt: it is none.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if place not in self._kept:
            try:
                self._kept[place] = load(place.read_bytes())
            except (SafetensorError, OSError, ValueError) as error:
                raise StoreCorrupt(f"{place} is no safetensors file, or is truncated: {error}") from error
        return self._kept[place]

    def pickled(self, place: Path) -> Any:
        """What a `.pt` file holds; see `sae.formats.pickles`."""
        if place not in self._kept:
            self._kept[place] = load_pt(place)
        return self._kept[place]

    def tensors(self, place: Path) -> dict[str, Tensor]:
        """The tensors of a file of either kind."""
        return self.safetensors(place) if place.suffix == ".safetensors" else tensors_in(self.pickled(place))


def told_from(k: int | None, threshold: float | None, architecture: str | None) -> Told:
    """What the caller knows, checked.

    Raises:
        BadData: a k below one, a threshold below zero or both.
    """
    if k is not None and (type(k) is not int or k < 1):
        raise BadData(f"k={k!r} is a whole number from 1.")
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise BadData(f"threshold={threshold!r} is a number from 0.")
    if architecture not in (None, "relu"):
        raise BadData(f"architecture={architecture!r}: only 'relu' can be said; k= means TopK, threshold= BatchTopK.")
    if architecture and (k is not None or threshold is not None):
        raise BadData("architecture='relu' has neither k nor threshold.")
    return Told(k=k, threshold=threshold, architecture=architecture)
