"""F10 PatchGame: a score of nine patches that is written down, so that what each patch is worth is known exactly.

`f(m) = 2 m0 + m1 + 3 m2 m3`, with masks between 0 and 1 (1 = kept): one strong patch, one weak one, two that only
count together, and five that do not matter. What methods must find (methods2.md 18 [P]):

* Shapley values `(2, 1, 1.5, 1.5, 0, ...)`;
* total Sobol indices for uniform masks `(.390, .098, .293, .293, 0, ...)`: `V = 4/12 + 1/12 + 9 (1/9 - 1/16)`;
* the best sets of 1, 2, 3 patches `{0}`, `{2, 3}`, `{0, 2, 3}`: not nested, so no ranking finds all of them.

It speaks as :class:`mechvis.removal.Game` does (`scores`, `n_patches`, `grid`, `cost`), and gradients reach the masks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import ShapeMismatch
from mechvis.removal.game import Cost

SHAPLEY = (2.0, 1.0, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Exact Shapley values."""

SOBOL_TOTAL = (16 / 41, 4 / 41, 12 / 41, 12 / 41, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Exact total Sobol indices for independent uniform masks: parts of the variance 16, 4, 9, 9 and 3 of 41; the last,
which belongs to patches 2 and 3 together, counts for both."""

BEST_SETS = {1: ((0,),), 2: ((2, 3), (0, 1)), 3: ((0, 2, 3),)}
"""Which sets of so many patches have the highest score."""


def patch_score(masks: Float[Tensor, "... patch"]) -> Float[Tensor, "..."]:
    """`2 m0 + m1 + 3 m2 m3`."""
    return 2 * masks[..., 0] + masks[..., 1] + 3 * masks[..., 2] * masks[..., 3]


@dataclass(kw_only=True, eq=False)
class PatchGame:
    """A game with a written-down score; by default F10, for `n_images` images that are all the same.

    Example:
        >>> game = PatchGame()
        >>> game.scores(torch.ones(1, 1, 9)).tolist(), game.cost.forwards
        ([[6.0]], 1)
    """

    score: Callable[[Float[Tensor, "image row patch"]], Float[Tensor, "image row"]] = patch_score
    """Of masks; another one makes another game."""
    n_images: int = 1
    """Images."""
    grid: tuple[int, int] = (3, 3)
    """Patches (down, across)."""
    cost: Cost = field(default_factory=Cost)
    """Counts rows."""

    @property
    def n_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    def scores(self, masks: Float[Tensor, "image row patch"] | Bool[Tensor, "image row patch"]) -> Tensor:
        """The score of each mask, in float64.

        Raises:
            ShapeMismatch: masks of another shape.
        """
        if masks.ndim != 3 or masks.shape[0] != self.n_images or masks.shape[2] != self.n_patches:
            raise ShapeMismatch(
                f"masks are [image row patch] = [{self.n_images} row {self.n_patches}], got {list(masks.shape)}."
            )
        self.cost.forwards += masks.shape[0] * masks.shape[1]
        return self.score(masks.double())

    def full(self) -> Float[Tensor, " image"]:
        """Scores with every patch kept."""
        return self.scores(torch.ones(self.n_images, 1, self.n_patches))[:, 0]

    def empty(self) -> Float[Tensor, " image"]:
        """Scores with no patch kept."""
        return self.scores(torch.zeros(self.n_images, 1, self.n_patches))[:, 0]
