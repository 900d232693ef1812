"""The processes that train one dictionary together, as a loss sees them: sums over all rows of a batch.

A loss that divides by a number of the whole batch (its variance, its k largest) has to ask the others for it. In one
process nobody is asked. `sae.parallel` has the team of several.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


class Team(ABC):
    """What losses ask of the other processes. Nothing here is differentiated."""

    size: int = 1
    rank: int = 0

    @abstractmethod
    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes."""

    @abstractmethod
    def largest(self, value: Tensor) -> Tensor:
        """Maximum over processes."""

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes, which have equal shares of a batch."""
        return self.sum(value) / self.size

    @abstractmethod
    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one after the other."""

    @abstractmethod
    def share(self, dictionary: "Dictionary") -> None:
        """Give all processes the first one's numbers."""

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Mean over processes, in place."""
        for gradient in gradients:
            gradient.copy_(self.mean(gradient))

    def least(self, value: Tensor) -> Tensor:
        """Minimum over processes."""
        return -self.largest(-value)


class Alone(Team):
    """One process."""

    def sum(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows."""
        return rows

    def share(self, dictionary: "Dictionary") -> None:
        """Nothing to do."""


ALONE = Alone()
