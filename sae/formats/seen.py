"""What lies at a path: the files, their JSON, the tensors in them. Read once, however many formats look at it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import files
from mechvis.errors import BadData, NotFinite, ShapeMismatch, StoreCorrupt
from sae.formats.pickles import Inert, load_pt, tensors_in

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
LARGEST_WIDTH = 2**31
"""A width or number of latents beyond this is a mistake."""


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
        """The first file of these names.

        Raises:
            StoreCorrupt: there is none.
        """
        for pattern in patterns:
            for name in self.names:
                if fnmatch(name, pattern):
                    return self.folder / name
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


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """The tensors of a file, checked as they are taken."""

    found: Mapping[str, Tensor]
    """By name."""
    where: str
    """The file, for errors."""

    def take(self, name: str, *shape: int | None) -> Float[Tensor, "..."]:
        """A tensor, in float32 (float64 stays).

        Args:
            name: its name.
            shape: its sizes; None: any.

        Raises:
            BadData: it is not there; lists what is.
            ShapeMismatch: other sizes; says so if it is the transpose.
            NotFinite: it holds NaN or Inf.
        """
        if name not in self.found:
            names = ", ".join(sorted(self.found)[:12])
            raise BadData(f"{self.where} has no tensor {name!r}; it has {names or 'none'}.")
        tensor = self.found[name]
        if not isinstance(tensor, Tensor):
            raise BadData(f"{name} in {self.where} is no tensor.")
        if len(shape) != tensor.ndim or any(
            want not in (None, got) for want, got in zip(shape, tensor.shape, strict=False)
        ):
            told = [("any" if size is None else size) for size in shape]
            turned = " It looks transposed." if list(reversed(tensor.shape)) == told and tensor.ndim == 2 else ""
            raise ShapeMismatch(f"{name} in {self.where} is {list(tensor.shape)}, not {told}.{turned}")
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NotFinite(f"{name} in {self.where} holds {bad} NaN or Inf. It is not loaded.")
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def has(self, *names: str) -> bool:
        """Are they all there?"""
        return all(name in self.found for name in names)

    def number(self, name: str) -> float:
        """A tensor of one number."""
        if name in self.found and isinstance(self.found[name], Tensor) and self.found[name].numel() != 1:
            raise ShapeMismatch(f"{name} in {self.where} is {list(self.found[name].shape)}; it should be one number.")
        return float(self.take(name, *([None] * self.found[name].ndim if name in self.found else [])))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a file, checked as they are taken."""

    found: Mapping[str, Any]
    """By name."""
    where: str
    """The file, for errors."""

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number.

        Raises:
            BadData: missing, not whole, or too small.
        """
        value = self.found.get(name, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value < LARGEST_WIDTH:
            raise BadData(f"{name} in {self.where} is {str(value)[:40]!r}; a whole number from {least} is needed.")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            BadData: missing, no number, or not finite.
        """
        value = self.found.get(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise BadData(f"{name} in {self.where} is {str(value)[:40]!r}; a number is needed.")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        """A text.

        Raises:
            BadData: missing, or no text.
        """
        value = self.found.get(name, default)
        if not isinstance(value, str):
            raise BadData(f"{name} in {self.where} is {str(value)[:40]!r}; a text is needed.")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false.

        Raises:
            BadData: missing, or neither.
        """
        value = self.found.get(name, default)
        if not isinstance(value, bool):
            raise BadData(f"{name} in {self.where} is {str(value)[:40]!r}; true or false is needed.")
        return value

    def table(self, name: str) -> "Config":
        """Settings inside settings; none if there are none.

        Raises:
            BadData: something else is there.
        """
        value = self.found.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise BadData(f"{name} in {self.where} is {str(value)[:40]!r}; a table is needed.")
        return Config(found=value, where=f"{name} of {self.where}")

    def plain(self) -> dict[str, Any]:
        """What of it JSON can say, for provenance."""
        return {str(key): plain(value) for key, value in self.found.items()}


def plain(value: Any) -> Any:
    """As JSON can say it; objects by their name, what is deep or long as a text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple) and all(v is None or isinstance(v, str | bool | int | float) for v in value):
        return [plain(v) for v in value]
    if isinstance(value, Mapping) and all(v is None or isinstance(v, str | bool | int | float) for v in value.values()):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Inert):
        return value.name
    return f"<{type(value).__name__}>"


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
    return dataclasses.replace(Told(), k=k, threshold=threshold, architecture=architecture)
