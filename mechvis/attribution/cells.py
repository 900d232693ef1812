"""Players of a removal game: single patches, or cells of several that are kept and taken away together.

A method that asks for every subset of its players pays for their number: 196 patches are too many where 49 cells are
not. A cell's worth is spread back evenly over its patches, so that what the map adds up to stays.

* :class:`CellGame` is a game like any other (`scores`, `n_patches`), whose patches are cells;
* :func:`over_cells` asks a plain function of a game about a batch, and spreads what it finds;
* :class:`Superpixels` are cells that follow each image's own edges. Their number differs from image to image, so each
  image is then asked by itself: in company, draws of one image would depend on the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.attribution.method import Maps
from mechvis.attribution.question import Question
from mechvis.errors import BadData, OutOfRange
from mechvis.patches import patch_groups
from mechvis.removal.operators import Operator


class AnyGame(Protocol):
    """What the plain functions need: masks in, scores out."""

    n_patches: int
    """Players: patches, or cells."""

    def scores(self, masks: Float[Tensor, "image row patch"]) -> Float[Tensor, "image row"]:
        """The score of each image under each of its masks."""
        ...


Found = tuple[Float[Tensor, "image cell"], Mapping[str, Float[Tensor, "image ..."]]]
"""What a plain function found: values of cells, and more by name: other numbers of cells (`se`), and `total`, one per
image, which values should add up to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CellGame:
    """A game in which patches come and go by cells. Patches of no cell always stay.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> members = torch.eye(3, dtype=torch.bool).repeat_interleave(3, 1)     # rows of three patches
        >>> CellGame(game=PatchGame(), members=members).scores(torch.tensor([[[1.0, 0, 0]]])).tolist()
        [[3.0]]
    """

    game: Any
    """A game over patches."""
    members: Bool[Tensor, "cell patch"]
    """Which patches each cell has; a patch belongs to one cell at most."""

    def __post_init__(self):
        if self.members.ndim != 2 or self.members.shape[1] != self.game.n_patches or not len(self.members):
            raise BadData(f"cells are [cell patch] over {self.game.n_patches} patches: {list(self.members.shape)}.")
        if bool((self.members.sum(0) > 1).any()):
            raise BadData("a patch lies in two cells: it could not be kept with one and taken away with the other.")

    @property
    def n_patches(self) -> int:
        """Players: cells."""
        return len(self.members)

    def masks(self, cells: Float[Tensor, "image row cell"]) -> Float[Tensor, "image row patch"]:
        """Masks over patches."""
        members = self.members.to(cells.device)
        kept = cells.float() @ members.float() + (~members.any(0)).float()
        return kept if cells.is_floating_point() else kept.bool()

    def scores(self, cells: Float[Tensor, "image row cell"]) -> Float[Tensor, "image row"]:
        """The score of each image under each of its masks over cells."""
        return self.game.scores(self.masks(cells))

    def spread(self, values: Float[Tensor, "image cell"]) -> Float[Tensor, "image patch"]:
        """Each patch its even share of its cell's value; patches of no cell get 0."""
        members = self.members.to(values)
        return (values / members.sum(1).clamp(min=1)) @ members


@dataclass(frozen=True, kw_only=True)
class Superpixels:
    """Cells that follow an image's edges: k-means of patches by mean colour and place (SLIC on the patch grid).

    Example:
        >>> Superpixels(n=2, compactness=0.1).labels(torch.eye(2).repeat_interleave(2, 1)[None, None], (2, 2)).tolist()
        [[[1, 0], [0, 1]]]
    """

    n: int = 16
    """How many cells to start from, on an even grid; empty ones disappear."""
    compactness: float = 1.0
    """Weight of place against colour: larger gives more compact cells."""
    steps: int = 10
    """Rounds of k-means."""

    def __post_init__(self):
        if self.n < 1 or self.steps < 1 or not self.compactness >= 0:
            raise OutOfRange(f"{self!r}: n and steps are at least 1, compactness is not negative.")

    @property
    def title(self) -> str:
        """Name and settings in one word."""
        return f"superpixels(n={self.n}, compactness={self.compactness:g})"

    def labels(
        self, pixels: Float[Tensor, "image channel height width"], grid: tuple[int, int]
    ) -> Int[Tensor, "image down across"]:
        """The cell of each patch."""
        from mechvis.removal.operators import patch_means

        size = (pixels.shape[2] // grid[0], pixels.shape[3] // grid[1])
        colours = rearrange(patch_means(pixels, size), "i c d a -> i (d a) c").double()
        spread = (colours - colours.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()[:, None, None]
        place = torch.stack(torch.meshgrid(*(torch.arange(side).double() for side in grid), indexing="ij"), -1)
        side = (grid[0] * grid[1] / self.n) ** 0.5
        place = rearrange(place, "d a two -> (d a) two").to(colours.device) * (self.compactness / max(side, 1.0))
        points = torch.cat([colours / spread.clamp(min=1e-12), place.expand(len(pixels), -1, -1)], -1)
        first = torch.linspace(0, points.shape[1] - 1, min(self.n, points.shape[1])).round().long()
        return torch.stack([_clusters(image, first, self.steps).reshape(grid) for image in points])


def _clusters(points: Float[Tensor, "patch d"], first: Tensor, steps: int) -> Int[Tensor, " patch"]:
    centres = points[first]
    for _ in range(steps):
        nearest = torch.cdist(points, centres).argmin(1)
        one_hot = (nearest[:, None] == torch.arange(len(centres), device=points.device)).to(points)
        counts = one_hot.sum(0)
        centres = torch.where(counts[:, None] > 0, one_hot.T @ points / counts.clamp(min=1)[:, None], centres)
    return nearest.unique(return_inverse=True)[1]


Cells = None | str | tuple[int, int] | Superpixels
"""`None`: every patch is a player; `"coarse"`: at most 7 x 7 even cells; `(down, across)`; or superpixels."""


def coarse(grid: tuple[int, int], most: int = 7) -> tuple[int, int]:
    """The finest even division of a grid with at most `most` cells a side.

    Example:
        >>> coarse((8, 8)), coarse((14, 14)), coarse((13, 13))
        ((4, 4), (7, 7), (7, 7))
    """
    sides = []
    for side in grid:
        even = [count for count in range(2, most + 1) if side % count == 0]
        sides.append(max(even) if even else min(side, most))
    return sides[0], sides[1]


def over_cells(
    ask: Question,
    operator: str | Operator,
    cells: Cells,
    purpose: str,
    explain: Callable[[Any, list[torch.Generator]], Found],
) -> Maps:
    """Ask a plain function about a batch, with cells as players, and spread what it finds over patches.

    Args:
        ask: the question.
        operator: what stands in the place of missing patches.
        cells: the players.
        purpose: of the random numbers.
        explain: function of a game and one generator per image.

    Raises:
        BadData: cells that are none.
    """
    if isinstance(cells, Superpixels):
        alone = [
            replace(ask, pixels=ask.pixels[i : i + 1], target=ask.target[i : i + 1], ids=ask.ids[i : i + 1])
            for i in range(len(ask.pixels))
        ]
        found = [_one(one, operator, cells.labels(one.pixels, ask.grid)[0], purpose, explain) for one in alone]
        return Maps(
            values=torch.cat([one.values for one in found]),
            total=None if found[0].total is None else torch.cat([one.total for one in found]),
            extra={name: torch.cat([one.extra[name] for one in found]) for name in found[0].extra},
        )
    if isinstance(cells, str):
        if cells != "coarse":
            raise BadData(f"cells={cells!r}: give None, 'coarse', (down, across) or Superpixels().")
        cells = coarse(ask.grid)
    return _one(ask, operator, cells, purpose, explain)


def _one(ask: Question, operator: Any, cells: Any, purpose: str, explain: Any) -> Maps:
    game = ask.game(operator)
    if cells is None:
        members = torch.eye(ask.n_patches, dtype=torch.bool)
    else:
        given = cells if isinstance(cells, tuple) else repeat(cells, "d a -> i d a", i=len(ask.pixels))
        members = patch_groups(ask.model, ask.pixels, given).members[0, :, ask.n_prefix :]
    grouped = CellGame(game=game, members=members)
    generators = [ask.generator(i, purpose) for i in range(len(ask.pixels))]
    values, extra = explain(grouped, generators)
    return Maps(
        values=grouped.spread(values).to(ask.pixels),
        total=extra.get("total"),
        extra={name: grouped.spread(value) for name, value in extra.items() if name != "total"},
    )
