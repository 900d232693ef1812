"""Sobol indices: which share of the score's variance under random masks involves this patch?

1. Two designs A and B of `n` masks each, uniform in [0, 1], from one scrambled Sobol sequence per image.
2. `A_B^i` is A with the column of cell i from B. Total index (Jansen): `sum (f(A) - f(A_B^i))^2 / (2 n Var f)`.
3. With `order="first"` also f(B): `1 - sum (f(B) - f(A_B^i))^2 / (2 n Var f)`, what the cell does by itself.

Unsigned: a patch against the target counts like one for it. A score that masks do not change gives zeros. The designs
are what costs: `n (p + 1)` passes for the total index, `n (p + 2)` for the first-order one. Needs an operator that
takes masks between 0 and 1, so no token drop.

Source: Fel et al. 2021; methods2.md 18.5 [C]. `Var f` is taken over A. On PatchGame the largest error of a cell is .095
with n = 32 and .010 with n = 256 (mean of 30 designs; methods2.md has .076 and .003 for one).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from mechvis.attribution.cells import Cells, Found, over_cells
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange, unknown
from mechvis.removal.operators import Operator

Order = Literal["total", "first"]

_ROWS = 4096
"""Masks that are made at a time, for all images together: their number is `n (p + 1)` each."""

_SAME = 1e-20
"""A variance below this share of the mean square is rounding: the score does not depend on the masks."""


def design(
    generators: list[torch.Generator], n: int, n_cells: int
) -> tuple[Float[Tensor, "image row cell"], Float[Tensor, "image row cell"]]:
    """Two designs per image, from a scrambled Sobol sequence of twice as many dimensions.

    Raises:
        OutOfRange: n is no power of two: the sequence is even in powers of two only.
    """
    if n < 2 or n & (n - 1):
        raise OutOfRange(f"n={n}: a power of two, at least 2.")
    drawn = []
    for generator in generators:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        drawn.append(torch.quasirandom.SobolEngine(2 * n_cells, scramble=True, seed=seed).draw(n))
    both = torch.stack(drawn).clamp(0, 1)
    return both[..., :n_cells], both[..., n_cells:]


def sobol(game: Any, generators: list[torch.Generator], *, n: int, order: Order = "total") -> Found:
    """Sobol indices of each cell.

    Args:
        game: soft masks in, scores out.
        generators: one per image.
        n: masks of each design, a power of two.
        order: `total` or `first`.

    Returns:
        Shares of the variance `[image cell]`; 0 where the score does not depend on the masks.

    Raises:
        OutOfRange: n is no power of two.
        UnknownName: another order.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> found, _ = sobol(PatchGame(), [torch.Generator().manual_seed(0)], n=1024)
        >>> [round(value, 2) for value in found[0, :5].tolist()]
        [0.39, 0.1, 0.29, 0.29, 0.0]
    """
    if order not in get_args(Order):
        raise unknown("order", order, get_args(Order))
    cells, n_images = game.n_patches, len(generators)
    first, second = design(generators, n, cells)
    at_first = game.scores(first).double().cpu()
    compared = at_first if order == "total" else game.scores(second).double().cpu()
    variance = at_first.var(1, correction=0)
    steps = max(1, _ROWS // (n * n_images))
    sums = []
    for start in range(0, cells, steps):
        columns = range(start, min(start + steps, cells))
        mixed = repeat(first, "image row cell -> image column row cell", column=len(columns)).clone()
        for at, column in enumerate(columns):
            mixed[:, at, :, column] = second[:, :, column]
        scores = game.scores(rearrange(mixed, "image column row cell -> image (column row) cell")).double().cpu()
        away = rearrange(scores, "image (column row) -> image column row", row=n) - compared[:, None]
        sums.append(away.square().sum(-1))
    share = torch.cat(sums, 1) / (2 * n * variance.clamp(min=1e-300)[:, None])
    if order == "first":
        share = 1 - share
    varies = variance > _SAME * at_first.square().mean(1).clamp(min=1e-300)
    return torch.where(varies[:, None], share, 0.0), {}


@dataclass(frozen=True, kw_only=True)
class Sobol(Method):
    """Share of the score's variance under random soft masks that involves a cell. Unsigned.

    Example:
        >>> mechvis.attribute(model, images, Sobol(n=32, operator="blur"))     # doctest: +SKIP
    """

    NAME = "sobol"
    CLAIMS = Claims(class_specific=True, signed=False, random=True, reads="outputs")
    SOURCE = "Fel et al. 2021; methods2.md 18.5"
    operator: str | Operator = "mean"
    """What stands in the place of missing patches; takes masks between 0 and 1."""
    n: int = 32
    """Masks of each design; a power of two."""
    cells: Cells = "coarse"
    """What is masked together; None: every patch by itself."""
    order: Order = "total"
    """`total`: with everything that the cell takes part in; `first`: by itself."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""

        def explain(game: Any, generators: list[torch.Generator]) -> Found:
            return sobol(game, generators, n=self.n, order=self.order)

        return over_cells(ask, self.operator, self.cells, "sobol design", explain)
