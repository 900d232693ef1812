"""What an edit changed in the weights: for every tensor the smallest box of entries, as they were and as they are.

An edit that is kept as boxes can be done again on the same weights and undone on the edited ones, both bit by bit: no
arithmetic is repeated, numbers are put in their places. How the edit was made does not matter, so one way serves all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mechvis.errors import ResultMismatch, UnsupportedModel

_AS_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """A box of entries of one tensor of a model's state."""

    name: str
    """Name in the module's `state_dict`."""
    start: tuple[int, ...]
    """First index along each axis."""
    old: Tensor
    """The entries before the edit."""
    new: Tensor
    """The entries after it."""

    @property
    def index(self) -> tuple[slice, ...]:
        """Where it is in the tensor."""
        return tuple(slice(first, first + n) for first, n in zip(self.start, self.old.shape, strict=True))

    def __repr__(self) -> str:
        box = ", ".join(f"{at.start}:{at.stop}" for at in self.index)
        return f"Slice({self.name}[{box}])"


def differences(before: nn.Module, after: nn.Module) -> tuple[Slice, ...]:
    """Boxes around everything that differs bitwise between two modules of one architecture.

    Args:
        before: the module as it was.
        after: its edited copy.

    Raises:
        UnsupportedModel: they do not hold the same tensors.

    Example:
        >>> import copy
        >>> first = nn.Linear(3, 2)
        >>> second = copy.deepcopy(first)
        >>> _ = second.bias.data[1:].add_(1.0)
        >>> differences(first, second)
        (Slice(bias[1:2]),)
    """
    old, new = before.state_dict(), after.state_dict()
    if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
        raise UnsupportedModel("the edited copy does not hold the same tensors as the model: only weights may change.")
    found = []
    for name, first in old.items():
        second = new[name]
        changed = _bits(first) != _bits(second)
        if not bool(changed.any()):
            continue
        places = changed.nonzero()
        start = places.min(0).values.tolist() if first.ndim else []
        stop = (places.max(0).values + 1).tolist() if first.ndim else []
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        found.append(Slice(name=name, start=tuple(start), old=first[box].clone(), new=second[box].clone()))
    return tuple(found)


def _bits(value: Tensor) -> Tensor:
    """The entries as whole numbers: NaN equals NaN, and 0 is not -0."""
    value = value.detach().contiguous()
    flat = value.reshape(1) if value.ndim == 0 else value
    return flat.view(_AS_WHOLE_NUMBERS[value.element_size()]).reshape(value.shape)


@torch.no_grad()
def write(module: nn.Module, slices: Iterable[Slice], which: Literal["old", "new"]) -> None:
    """Put the entries of all boxes into a module; nothing is written unless all of them fit.

    Args:
        module: of the architecture that they were taken from.
        slices: what to write.
        which: the entries from before or after the edit.

    Raises:
        ResultMismatch: a tensor is not there, or has another shape or type.
    """
    state = module.state_dict()
    pairs = []
    for part in slices:
        there, value = state.get(part.name), getattr(part, which)
        fits = there is not None and there.dtype == value.dtype and there.ndim == len(part.start)
        if not fits or any(at.stop > size for at, size in zip(part.index, there.shape, strict=True)):
            seen = "is missing" if there is None else f"is {there.dtype} {list(there.shape)}"
            raise ResultMismatch(f"{part!r} ({value.dtype}) does not fit this model: {part.name} {seen} there.")
        pairs.append((there[part.index] if there.ndim else there, value))
    for place, value in pairs:
        place.copy_(value)
