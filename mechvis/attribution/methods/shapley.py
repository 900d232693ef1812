"""Shapley values of cells: each cell's mean gain over all orders in which the image could have been put together.

1. Draw orders of the cells; each goes with its reverse (antithetic): games of pairs are then exact with any number.
2. Along an order, cells come in one by one; a cell gets what the score gains when it comes.
3. Mean over orders; the standard error comes from the means of order and reverse, which are independent.

Values add up to `f(all) - f(none)` whatever is drawn, which is checked. Cost: `2 + 2 T (p - 1)` passes for `T` pairs of
orders (the full and the empty image are the same in all). :func:`exact` enumerates, for tests and few cells.

Source: methods2.md 18.7 [K], [P] on F10.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.attribution.cells import Cells, Found, over_cells
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.errors import FailedCheck, OutOfRange
from mechvis.removal.operators import Operator

GAP = 1e-6
"""Largest `|sum - (f(all) - f(none))|`, as a share of the largest score that was seen."""

MOST_EXACT = 14
"""Cells that are enumerated at most."""


def shapley(game: Any, generators: list[torch.Generator], *, pairs: int) -> Found:
    """Shapley values by antithetic orders.

    Args:
        game: masks in, scores out.
        generators: one per image.
        pairs: orders that are drawn; each is also walked backwards.

    Returns:
        Values `[image cell]` in the unit of the score, `{"se": ...}` (of one pair: as wide as all scores seen) and
        `total` = f(all) - f(none).

    Raises:
        OutOfRange: no pair.
        FailedCheck: values do not add up to `f(all) - f(none)`.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> shapley(PatchGame(), [torch.Generator().manual_seed(0)], pairs=2)[0][0, :5].tolist()
        [2.0, 1.0, 1.5, 1.5, 0.0]
    """
    if pairs < 1:
        raise OutOfRange(f"pairs={pairs}: give at least one order.")
    orders = torch.stack([_orders(generator, pairs, game.n_patches) for generator in generators])
    gains, total, wide = _gains(game, orders)
    means = rearrange(gains, "image (pair two) cell -> image pair two cell", two=2).mean(2)
    values = means.mean(1)
    errors = means.std(1) / pairs**0.5 if pairs > 1 else wide[:, None].expand_as(values)
    return values, {"se": errors, "total": total}


def _orders(generator: torch.Generator, pairs: int, n_cells: int) -> Int[Tensor, "order cell"]:
    drawn = [torch.randperm(n_cells, generator=generator) for _ in range(pairs)]
    return torch.stack([order for one in drawn for order in (one, one.flip(0))])


def _gains(
    game: Any, orders: Int[Tensor, "image order cell"]
) -> tuple[Float[Tensor, "image order cell"], Float[Tensor, " image"], Float[Tensor, " image"]]:
    """What the score gains by each cell of each order, in float64; f(all) - f(none); the range of scores."""
    n_images, n_orders, n_cells = orders.shape
    place = orders.argsort(-1)
    between = place[:, :, None] < torch.arange(1, n_cells)[:, None]  # [image order step cell]: the first 1 .. p-1
    ends = repeat(torch.tensor([False, True]), "end -> image end cell", image=n_images, cell=n_cells)
    rows = rearrange(between, "image order step cell -> image (order step) cell")
    scores = game.scores(torch.cat([ends, rows], 1)).double().cpu()
    nothing, everything = (repeat(scores[:, end], "image -> image order 1", order=n_orders) for end in (0, 1))
    steps = rearrange(scores[:, 2:], "image (order step) -> image order step", order=n_orders)
    gains = torch.cat([nothing, steps, everything], -1).diff(dim=-1)
    total = scores[:, 1] - scores[:, 0]
    checked_sum(gains.sum(-1).mean(1), total, scores.abs().amax(1))
    return gains.gather(-1, place), total, scores.amax(1) - scores.amin(1)


def checked_sum(sums: Float[Tensor, " image"], total: Float[Tensor, " image"], scale: Float[Tensor, " image"]) -> None:
    """Raise if values do not add up to what they should.

    Raises:
        FailedCheck: names the image and the gap.
    """
    gap = (sums - total).abs() / scale.clamp(min=1e-12)
    if bool((gap > GAP).any()):
        image = int(gap.argmax())
        raise FailedCheck(
            f"Shapley values of image {image} add up to {float(sums[image]):.6g}, not to f(all) - f(none) = "
            f"{float(total[image]):.6g}: the game gives one mask two scores."
        )


def exact(game: Any, n_images: int = 1) -> Float[Tensor, "image cell"]:
    """Shapley values by all `2^p` sets of cells: the plain twin.

    Raises:
        OutOfRange: more than 14 cells.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> exact(PatchGame())[0, :5].round(decimals=9).tolist()
        [2.0, 1.0, 1.5, 1.5, 0.0]
    """
    masks = all_masks(game.n_patches)
    scores = game.scores(repeat(masks, "row cell -> image row cell", image=n_images)).double().cpu()
    values = torch.zeros(n_images, game.n_patches, dtype=torch.float64)
    number = {tuple(row): at for at, row in enumerate(masks.int().tolist())}
    for cell in range(game.n_patches):
        others = [other for other in range(game.n_patches) if other != cell]
        for size in range(len(others) + 1):
            weight = 1 / (game.n_patches * comb(len(others), size))
            for chosen in combinations(others, size):
                without = [int(place in chosen) for place in range(game.n_patches)]
                having = list(without)
                having[cell] = 1
                values[:, cell] += weight * (scores[:, number[tuple(having)]] - scores[:, number[tuple(without)]])
    return values


def all_masks(n_cells: int) -> Tensor:
    """All `2^p` masks `[row cell]`, bool, counting up in binary from the empty one.

    Raises:
        OutOfRange: more than 14 cells.
    """
    if n_cells > MOST_EXACT:
        raise OutOfRange(f"{n_cells} cells have 2^{n_cells} sets; at most {MOST_EXACT} are enumerated.")
    return (torch.arange(2**n_cells)[:, None] >> torch.arange(n_cells)) % 2 == 1


@dataclass(frozen=True, kw_only=True)
class Shapley(Method):
    """Mean gain of a cell over orders in which the image is put together. Complete.

    Example:
        >>> mechvis.attribute(model, images, Shapley(cells=(4, 4)))            # doctest: +SKIP
    """

    NAME = "shapley"
    CLAIMS = Claims(class_specific=True, signed=True, complete=True, random=True, reads="outputs")
    SOURCE = "methods2.md 18.7"
    operator: str | Operator = "token_drop"
    """What stands in the place of missing patches."""
    pairs: int = 96
    """Orders that are drawn; each is also walked backwards."""
    cells: Cells = "coarse"
    """The players: at most 7 x 7 even cells; None: every patch."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""

        def explain(game: Any, generators: list[torch.Generator]) -> Found:
            return shapley(game, generators, pairs=self.pairs)

        return over_cells(ask, self.operator, self.cells, "shapley orders", explain)
