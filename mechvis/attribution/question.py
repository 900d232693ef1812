"""A question to a method: these images, this model, this score. It offers what methods need, and counts what it costs.

* `scores`, `gradients`: one forward (and backward) pass with sites captured;
* `game(operator)`: the model on images with patches removed;
* `generator(image, purpose)`: random numbers that belong to the image, not to its place in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.edits import Edit
from mechvis.errors import FailedCheck
from mechvis.keyed import generator_of
from mechvis.removal.game import Cost, Game
from mechvis.removal.operators import Operator
from mechvis.target import Target


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """A batch of images, a model, and the score that is explained."""

    model: Any
    """A wrapped vision model."""
    pixels: Float[Tensor, "image channel height width"]
    """Preprocessed images."""
    target: Target
    """The explained score of each image."""
    ids: Int[Tensor, " image"]
    """Which example each image is; random draws belong to it."""
    seed: int = 0
    """Of methods that draw."""
    batch_size: int = 256
    """Rows that go through the model together, where a method makes many of an image."""
    cost: Cost = field(default_factory=Cost)
    """Passes so far."""

    @property
    def parts(self) -> Any:
        """Parts of the model at the size of these images."""
        return self.model._for_size(tuple(self.pixels.shape[2:]))[0]

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches."""
        return len(self.parts.prefix)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.parts.grid

    @property
    def n_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.parts.blocks)

    def layer(self, given: int) -> int:
        """A layer counted from the end where it is negative, checked."""
        found = self.model._layer(given, "layer")
        return found if found < self.n_layers else self.model._layer(self.n_layers + 1, "layer")

    def scores(self, pixels: Tensor | None = None, edits: Sequence[Edit] = ()) -> Float[Tensor, " image"]:
        """The score of each image."""
        pixels = self.pixels if pixels is None else pixels
        self.cost.forwards += len(pixels)
        return self.target.read(self.model.run(pixels, edits).output)

    def captured(self, sites: Sequence[str]) -> tuple[Float[Tensor, " image"], dict[str, Tensor]]:
        """Scores and activations, without gradients."""
        self.cost.forwards += len(self.pixels)
        run = self.model.run(self.pixels, capture=list(sites))
        return self.target.read(run.output), {site: run.cache[site] for site in sites}

    def gradients(
        self, sites: Sequence[str], *, pixels: Tensor | None = None, edits: Sequence[Edit] = ()
    ) -> tuple[Float[Tensor, " image"], dict[str, Tensor], dict[str, Tensor]]:
        """Scores, activations and the score's gradient at each site (`sites` are canonical names).

        Raises:
            FailedCheck: the gradient at every site is identically zero for every image: the score does not depend on
                them (patches after the last block of a model that reads CLS).
        """
        pixels = self.pixels if pixels is None else pixels
        self.cost.forwards += len(pixels)
        self.cost.backwards += len(pixels)
        run = self.model.run(pixels, edits, capture=list(sites), grad=True)
        scores = self.target.read(run.output)
        values = [run.cache[site] for site in sites]
        found = torch.autograd.grad(scores.sum(), values, allow_unused=True)
        if all(gradient is None or not bool(gradient.any()) for gradient in found):
            raise FailedCheck(
                f"the gradient of the score is zero at {', '.join(sites)}: nothing reads them. Patches after the last "
                "block of a model that reads its CLS token are such a place; take an earlier layer."
            )
        gradients = {
            site: torch.zeros_like(value) if gradient is None else gradient.detach()
            for site, value, gradient in zip(sites, values, found, strict=True)
        }
        return scores.detach(), {site: value.detach() for site, value in zip(sites, values, strict=True)}, gradients

    def game(self, operator: str | Operator) -> Game:
        """The model on these images with patches removed."""
        return Game(
            model=self.model,
            pixels=self.pixels,
            target=self.target,
            operator=operator,
            ids=self.ids,
            seed=self.seed,
            batch_size=self.batch_size,
            cost=self.cost,
        )

    def generator(self, image: int, purpose: str) -> torch.Generator:
        """Random numbers of one image (by its place in this batch) for a purpose."""
        return generator_of(self.seed, int(self.ids[image]), purpose)
