"""Missing patches as the weighted mean of their neighbours: the noisy linear imputation of ROAD, on the patch grid.

For all missing patches of an image together: `x_i = sum_j w_ij x_j / sum_j w_ij`, with weight 1/6 for direct neighbours
and 1/12 for diagonal ones, neighbours outside the image left out. That is one linear system per image, dense and small
(as many unknowns as missing patches). Noise is added so that a model cannot tell what was filled in by its smoothness.
With nothing kept there is no equation to start from: the mean colour of the image takes the place of all.
"""

import functools

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.removal.operators import patch_means

DIRECT, DIAGONAL = 1 / 6, 1 / 12


def imputed(
    pixels: Float[Tensor, "row channel height width"],
    kept: Bool[Tensor, "row patch"],
    grid: tuple[int, int],
    patch: tuple[int, int],
    noise: float,
    generators: list[torch.Generator],
) -> Float[Tensor, "row channel height width"]:
    """The images with their missing patches filled in.

    Args:
        pixels: images.
        kept: which patches stay.
        grid: patches (down, across).
        patch: (height, width) of a patch in pixels.
        noise: standard deviation of what is added to filled-in pixels.
        generators: one per row; every row of an image draws the same noise image.
    """
    colours = rearrange(patch_means(pixels, patch), "r c d a -> r (d a) c").double()
    weights = neighbour_weights(grid).to(colours.device)
    filled = torch.stack([_solved(colours[row], kept[row], weights) for row in range(len(pixels))])
    fill = rearrange(filled, "r (d a) c -> r c d a", d=grid[0]).to(pixels.dtype)
    lines = [
        (torch.arange(side, device=pixels.device) // size).clamp(max=count - 1)
        for side, size, count in zip(pixels.shape[2:], patch, grid, strict=True)
    ]
    drawn = torch.stack([torch.randn(pixels.shape[1:], generator=generator) for generator in generators])
    background = fill[:, :, lines[0]][:, :, :, lines[1]] + noise * drawn.to(pixels)
    missing = rearrange(~kept, "r (d a) -> r 1 d a", d=grid[0])[:, :, lines[0]][:, :, :, lines[1]]
    return torch.where(missing, background, pixels)


@functools.lru_cache(maxsize=8)
def neighbour_weights(grid: tuple[int, int]) -> Float[Tensor, "patch patch"]:
    """Weights of each patch's neighbours, rows adding up to one.

    Example:
        >>> neighbour_weights((1, 3))[1].tolist()
        [0.5, 0.0, 0.5]
    """
    down, across = grid
    place = torch.stack(torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij"), -1).flatten(0, 1)
    away = (place[:, None] - place[None]).abs()
    near = (away.max(-1).values == 1).double()
    weights = near * torch.where(away.sum(-1) == 1, DIRECT, DIAGONAL)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)


def _solved(colours: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
    if bool(kept.all()):
        return colours
    if not bool(kept.any()):
        return colours.mean(0, keepdim=True).expand_as(colours)
    gone = ~kept
    system = torch.eye(int(gone.sum()), dtype=weights.dtype, device=weights.device) - weights[gone][:, gone]
    found = colours.clone()
    found[gone] = torch.linalg.solve(system, weights[gone][:, kept] @ colours[kept])
    return found
