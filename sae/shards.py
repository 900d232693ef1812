"""The parts of one dictionary that is too large for a process: what those with the other latents have to be asked.

In one process nobody is asked, and everything here hands on what it gets. `sae.parallel.sharded` has the form for
several: every process has some of the latents and the same rows; the k largest are chosen over all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.kernels.support import Support
from mechvis.kernels.topk import topk

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


class Shards(ABC):
    """What a loss asks of those who have the other latents."""

    size: int = 1
    rank: int = 0

    @abstractmethod
    def shared(self, parameter: Tensor) -> Tensor:
        """A parameter that all have, used for one's own latents alone: its gradients have to be added up."""

    @abstractmethod
    def sum(self, written: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """What all latents write; differentiable."""

    @abstractmethod
    def row_support(
        self, scores: Float[Tensor, "row latent"], k: int, among: Tensor | None = None
    ) -> tuple[Support, Float[Tensor, " entry"]]:
        """The places of the k largest of each row that are mine, and the scores there.

        Args:
            scores: of my latents.
            k: over all latents.
            among: restricts to some of mine; places that have to be filled up have the score -inf.
        """

    @abstractmethod
    def part(self, d: "Dictionary") -> "Dictionary":
        """My part of a dictionary."""

    @abstractmethod
    def whole(self, d: "Dictionary") -> "Dictionary":
        """The dictionary of which I have a part."""

    @abstractmethod
    def total(self, value: Tensor) -> Tensor:
        """A number added up over all parts; no gradient."""

    @abstractmethod
    def norm(self, gradients: Mapping[str, Tensor], mine: set[str]) -> Float[Tensor, ""]:
        """Norm of the gradients of the whole dictionary; `mine` names those that differ between parts."""


class Whole(Shards):
    """All latents in one process."""

    def shared(self, parameter: Tensor) -> Tensor:
        """The parameter."""
        return parameter

    def sum(self, written: Tensor) -> Tensor:
        """What is written."""
        return written

    def row_support(self, scores: Tensor, k: int, among: Tensor | None = None) -> tuple[Support, Tensor]:
        """The k largest of each row."""
        values, latents = topk(scores, k, among=among)
        return Support.from_rows(latents, scores.shape[1]), values.reshape(-1)

    def part(self, d: "Dictionary") -> "Dictionary":
        """The dictionary."""
        return d

    def whole(self, d: "Dictionary") -> "Dictionary":
        """The dictionary."""
        return d

    def total(self, value: Tensor) -> Tensor:
        """The number."""
        return value

    def norm(self, gradients: Mapping[str, Tensor], mine: set[str]) -> Tensor:
        """Norm of all gradients together."""
        return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


WHOLE = Whole()
