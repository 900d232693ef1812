"""Games without a network: a score of masks that is written down, so that the right answer of a metric is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class FunctionGame:
    """A function of masks as a game.

    Example:
        >>> game = FunctionGame(function=lambda masks: 2 * masks[..., 0] + masks[..., 1], grid=(1, 2))
        >>> game.scores(torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])).tolist()
        [[3.0, 1.0]]
    """

    function: Callable[[Float[Tensor, "image row patch"]], Tensor]
    """Masks to scores `[image row]`; with a `target`, to logits `[image row class]`. Image i is example `ids[i]`."""
    grid: tuple[int, int]
    """Patches (down, across)."""
    target: Any = None
    """Which class is explained (`mechvis.target.Target`), where the function gives logits."""
    ids: Sequence[int] | None = None
    """Which example each image is; None: 0, 1, ..."""
    seed: int = 0
    """Of metrics that draw."""

    @property
    def n_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    def scores(self, masks: Float[Tensor, "image row patch"], target: Any = None) -> Float[Tensor, "image row"]:
        """The score of each image under each mask."""
        read = self.target if target is None else target
        if read is None:
            return self.function(self._checked(masks))
        logits = self.outputs(masks)
        images = torch.arange(len(masks)).repeat_interleave(masks.shape[1])
        return read.read(logits.flatten(0, 1), images).unflatten(0, masks.shape[:2])

    def outputs(self, masks: Float[Tensor, "image row patch"]) -> Float[Tensor, "image row class"]:
        """All logits."""
        return self.function(self._checked(masks))

    def _checked(self, masks: Tensor) -> Tensor:
        if masks.ndim != 3 or masks.shape[2] != self.n_patches:
            raise ShapeMismatch(f"masks are [image row patch] with {self.n_patches} patches, got {list(masks.shape)}.")
        return masks.double()


def additive(weights: Float[Tensor, "image patch"], grid: tuple[int, int] | None = None, **rest: Any) -> FunctionGame:
    """A game in which every patch adds its weight: the perfect map is the weights.

    Args:
        weights: of each patch of each image.
        grid: patches (down, across); None: one row.
        **rest: other fields of the game.

    Example:
        >>> additive(torch.tensor([[1.0, 2.0]])).scores(torch.tensor([[[0.0, 1.0]]])).tolist()
        [[2.0]]
    """
    weights = weights.double()

    def score(masks: Tensor) -> Tensor:
        return torch.einsum("ip,irp->ir", weights, masks)

    return FunctionGame(function=score, grid=grid or (1, weights.shape[1]), **rest)
