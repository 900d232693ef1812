"""Tensors and settings of a file, checked as they are taken: there, of the right size or kind, finite.

What a file of another library holds may be anything. Nothing is used before it was taken through here, and every error
says the file, the name, and what was found.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, MechvisWarning, NotFinite, ShapeMismatch
from sae.formats.machine import Inert

LARGEST_WIDTH = 2**31
"""A width or number of latents beyond this is a mistake."""


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """The tensors of a file, checked as they are taken."""

    found: Mapping[str, Tensor]
    """By name."""
    where: str
    """The file, for errors."""
    taken: set[str] = field(default_factory=set)
    """Names of those that were asked for."""

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
        self.taken.add(name)
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

    def finish(self, *known: str) -> None:
        """Warn of tensors that nobody asked for: what they do is not done here.

        Args:
            known: names (a `*` at the end for any ending) of those that do nothing to codes and output.
        """
        left = [
            name
            for name in sorted(set(map(str, self.found)) - self.taken)
            if not any(name == one or (one.endswith("*") and name.startswith(one[:-1])) for one in known)
        ]
        if left:
            warnings.warn(
                f"{self.where} also has {', '.join(left[:8])}, which such files are not known to have. It is read "
                "without; if that changes codes or output in its library, they differ here.",
                MechvisWarning,
                stacklevel=5,
            )

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
