"""IROF: deletion by regions instead of patches (Rieger and Hansen 2020): area *over* the curve, so high is good.

1. Regions: a label image (superpixels from anywhere), pooled to the patch grid by the label that covers most of a
   patch; or, by default, cells of `cells` x `cells` patches.
2. A region's relevance is the mean of the map over it; regions go in that order.
3. `IROF = integral of 1 - s(after l regions) / s(x)` over the share of regions that are gone.

A ratio of scores means something where scores are positive: the default form is the probability. Undefined where
`s(x)` is zero. Source: faithfulness.md 2.1 [K].
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.faithfulness.answers import Answers, answers_of
from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, checked_maps, measured
from mechvis.keyed import generator_of


@dataclass(frozen=True, kw_only=True)
class Irof(GameMetric):
    """Area over the curve of the score while regions go, the most relevant first."""

    NAME = "irof"
    UNIT = "share of the score"
    FORMULA = "integral over the share of regions gone of 1 - s(without the first l regions) / s(x); trapezoid"
    SOURCE = "faithfulness.md 2.1"
    SCALE_FREE = True
    form: str | None = "prob"
    cells: int = 2
    """Side of a default region, in patches."""

    def measure(
        self, maps: Tensor, game: MaskGame | Answers, labels: Int[Tensor, "image height width"] | None = None
    ) -> Measured:
        """One number per image.

        Args:
            maps: larger is more relevant.
            game: what takes patches away.
            labels: superpixels of each image as whole numbers, in the frame that the model sees; None: cells.
        """
        answers = answers_of(game)
        maps = checked_maps(maps, answers.n_patches)
        form = self.form if answers.own is not None else None
        if labels is None:
            regions = cells_of(answers.grid, self.cells).expand(len(maps), -1)
        else:
            regions = regions_of(labels, answers.grid)
        if len(regions) != len(maps):
            raise ShapeMismatch(f"{len(maps)} maps, {len(regions)} label images: they belong together.")
        full, values = answers.full(len(maps), form), torch.full((len(maps),), torch.nan, dtype=torch.float64)
        masks = [
            _masks(one, region, answers.seed, number)
            for one, region, number in zip(maps, regions, answers.ids(len(maps)), strict=True)
        ]
        most = max(map(len, masks))
        padded = torch.stack([torch.cat([mask, mask[-1:].expand(most - len(mask), -1)]) for mask in masks])
        scores = answers.scores(padded, form)
        gone = full.abs() < 1e-12
        curves = torch.full_like(scores, torch.nan)
        for image in (~gone).nonzero()[:, 0].tolist():
            n = len(masks[image])
            curves[image, :n] = 1 - scores[image, :n] / full[image]
            values[image] = torch.trapezoid(curves[image, :n]) / (n - 1)
        return measured(self.NAME, values, {"the score of the clean image is zero": gone}, curves={"over": curves})


def cells_of(grid: tuple[int, int], cells: int) -> Int[Tensor, " patch"]:
    """Which cell of `cells` x `cells` patches each patch belongs to.

    Example:
        >>> cells_of((2, 4), 2).tolist()
        [0, 0, 1, 1, 0, 0, 1, 1]
    """
    if cells < 1:
        raise OutOfRange(f"cells={cells}: give a side of at least one patch.")
    down, across = (torch.arange(n) // cells for n in grid)
    return (down[:, None] * (int(across.max()) + 1) + across).flatten()


def regions_of(labels: Tensor | np.ndarray, grid: tuple[int, int]) -> Int[Tensor, "image patch"]:
    """Label images on the patch grid: the label that covers most of a patch (of equals, the smallest).

    Raises:
        ShapeMismatch: not `[image height width]`, or a side that is no multiple of the grid.

    Example:
        >>> regions_of(torch.tensor([[[5, 5, 7, 7], [5, 7, 7, 7]]]), (1, 2)).tolist()
        [[5, 7]]
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 3 or labels.shape[1] % grid[0] or labels.shape[2] % grid[1]:
        raise ShapeMismatch(
            f"label images are [image height width] with sides that are multiples of {list(grid)}, "
            f"got {list(labels.shape)}."
        )
    pieces = rearrange(labels.long().cpu(), "i (d h) (a w) -> i (d a) (h w)", d=grid[0], a=grid[1])
    return pieces.mode(-1).values


def _masks(values: Tensor, regions: Tensor, seed: int, number: int) -> Tensor:
    """Kept patches after 0, 1, ..., all regions `[row patch]`."""
    names = regions.unique()
    relevance = torch.stack([values[regions == name].mean() for name in names])
    mixed = torch.randperm(len(names), generator=generator_of(seed, number, "ties of regions"))
    order = mixed[relevance[mixed].argsort(descending=True, stable=True)]
    kept = [torch.ones(len(values), dtype=torch.bool)]
    for name in names[order]:
        kept.append(kept[-1] & (regions != name))
    return torch.stack(kept)
