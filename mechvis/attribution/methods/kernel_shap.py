"""KernelSHAP: Shapley values as the weighted least-squares fit of an additive game.

1. Draw sets of cells with sizes in proportion to `(p - 1) / (s (p - s))`, and with each set its complement.
2. Fit `f(S) - f(none) = sum of phi over S` under the constraint `sum phi = f(all) - f(none)`, which is solved for the
   last cell and put in: the fit then has p - 1 unknowns and no constraint.
3. If `n` passes are enough for all `2^p` sets, all are taken with their exact weights: the values are then exact.

Sets are drawn with the kernel's own probabilities, so all weigh the same. Standard errors take a set and its complement
as one observation (`se`). Cost: `n` passes, of which two are the full and the empty image.

Source: Lundberg and Lee 2017; pairs: Covert and Lee 2021; methods2.md 18.7 [K].
"""

from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.attribution.cells import Cells, Found, over_cells
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.shapley import MOST_EXACT, all_masks, checked_sum
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange
from mechvis.removal.operators import Operator


def kernel_shap(game: Any, generators: list[torch.Generator], *, n: int) -> Found:
    """Shapley values by weighted least squares.

    Args:
        game: masks in, scores out.
        generators: one per image.
        n: passes per image; with `n >= 2^p` values are exact.

    Returns:
        Values `[image cell]` in the unit of the score, `{"se": ...}` and `total` = f(all) - f(none).

    Raises:
        OutOfRange: fewer passes than twice the cells.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> kernel_shap(PatchGame(), [torch.Generator()], n=512)[0][0, :5].round(decimals=6).tolist()
        [2.0, 1.0, 1.5, 1.5, 0.0]
    """
    cells, n_images = game.n_patches, len(generators)
    ends = repeat(torch.tensor([False, True]), "end -> image end cell", image=n_images, cell=cells)
    everything = cells <= MOST_EXACT and n >= 2**cells
    if not everything and n < 2 * cells + 2:
        raise OutOfRange(f"n={n}: {cells} cells need at least {2 * cells + 2} passes.")
    if cells == 1:
        scores = game.scores(ends).double().cpu()
        total = scores[:, 1] - scores[:, 0]
        return total[:, None], {"se": torch.zeros(n_images, 1, dtype=torch.float64), "total": total}
    if everything:
        masks = repeat(_paired(all_masks(cells)[1:-1]), "row cell -> image row cell", image=n_images)
        sizes = masks[0].sum(1).tolist()
        weights = torch.tensor([(cells - 1) / (comb(cells, s) * s * (cells - s)) for s in sizes], dtype=torch.float64)
    else:
        masks = torch.stack([_sets(generator, (n - 2) // 2, cells) for generator in generators])
        weights = torch.ones(masks.shape[1], dtype=torch.float64)
    scores = game.scores(torch.cat([ends, masks], 1)).double().cpu()
    total = scores[:, 1] - scores[:, 0]
    values, errors = _fit(masks.double(), scores[:, 2:] - scores[:, :1], total, weights)
    checked_sum(values.sum(1), total, scores.abs().amax(1))
    return values, {"se": torch.zeros_like(errors) if everything else errors, "total": total}


def _paired(masks: Bool[Tensor, "row cell"]) -> Bool[Tensor, "row cell"]:
    """All sets, each beside its complement (binary counting puts it at the mirrored place)."""
    half = masks[: len(masks) // 2]
    return rearrange(torch.stack([half, ~half], 1), "pair two cell -> (pair two) cell")


def _sets(generator: torch.Generator, pairs: int, cells: int) -> Bool[Tensor, "row cell"]:
    sizes = torch.arange(1, cells)
    drawn = 1 + torch.multinomial(1.0 / (sizes * (cells - sizes)), pairs, replacement=True, generator=generator)
    place = torch.rand(pairs, cells, generator=generator).argsort(1).argsort(1)
    half = place < drawn[:, None]
    return rearrange(torch.stack([half, ~half], 1), "pair two cell -> (pair two) cell")


def _fit(
    masks: Float[Tensor, "image row cell"],
    gains: Float[Tensor, "image row"],
    total: Float[Tensor, " image"],
    weights: Float[Tensor, " row"],
) -> tuple[Float[Tensor, "image cell"], Float[Tensor, "image cell"]]:
    """Values and standard errors; the last cell is what the others leave of the total."""
    last = masks[..., -1:]
    design, wanted = masks[..., :-1] - last, (gains - last[..., 0] * total[:, None])[..., None]
    weighted = design * weights[:, None]
    inverse = torch.linalg.pinv(weighted.mT @ design, hermitian=True)
    slopes = inverse @ (weighted.mT @ wanted)
    rest = (wanted - design @ slopes) * weights[:, None]
    pulls = rearrange(design * rest, "image (pair two) cell -> image pair two cell", two=2).sum(2)
    spare = max(1, pulls.shape[1] - slopes.shape[1])
    covariance = inverse @ (pulls.mT @ pulls) @ inverse * (pulls.shape[1] / spare)
    values = torch.cat([slopes[..., 0], total[:, None] - slopes[..., 0].sum(1, keepdim=True)], 1)
    variances = torch.cat([covariance.diagonal(dim1=1, dim2=2), covariance.sum((1, 2))[:, None]], 1)
    return values, variances.clamp(min=0).sqrt()


@dataclass(frozen=True, kw_only=True)
class KernelShap(Method):
    """Shapley values of cells by weighted least squares. Complete.

    Example:
        >>> mechvis.attribute(model, images, KernelShap(n=1000))               # doctest: +SKIP
    """

    NAME = "kernel_shap"
    CLAIMS = Claims(class_specific=True, signed=True, complete=True, random=True, reads="outputs")
    SOURCE = "Lundberg and Lee 2017; methods2.md 18.7"
    operator: str | Operator = "token_drop"
    """What stands in the place of missing patches."""
    n: int = 3000
    """Passes per image."""
    cells: Cells = "coarse"
    """The players: at most 7 x 7 even cells; None: every patch."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""

        def explain(game: Any, generators: list[torch.Generator]) -> Found:
            return kernel_shap(game, generators, n=self.n)

        return over_cells(ask, self.operator, self.cells, "kernel shap sets", explain)
