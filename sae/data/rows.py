"""A batch of rows, and what every source of them offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch: activations by site, and what is known of the rows."""

    activations: dict[str, Tensor]
    """`[row d]` by site; the same rows everywhere."""
    types: Int[Tensor, " row"] | None = None
    """Number of each row's type of token in `type_names`."""
    image: Int[Tensor, " row"] | None = None
    """Each row's image, its position in the set."""
    token: Int[Tensor, " row"] | None = None
    """Each row's token."""

    def __len__(self) -> int:
        return len(next(iter(self.activations.values())))

    def where(self, row: int) -> str:
        """What a row is about, for messages."""
        return (
            f"row {row}"
            if self.image is None
            else f"row {row} (image {int(self.image[row])}, token {int(self.token[row])})"
        )


@runtime_checkable
class Source(Protocol):
    """What training reads from."""

    type_names: tuple[str, ...]
    """Types of tokens, by number; nothing if they are not known."""

    def __next__(self) -> Rows: ...

    def state_dict(self) -> dict[str, Any]:
        """Where it is: plain JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the rows are, for the file of a dictionary: plain JSON."""
        ...
