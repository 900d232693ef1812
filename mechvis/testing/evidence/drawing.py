"""Small pictures whose every patch is known: marks on a grid of cells over a noisy ground.

An image has 32 x 32 pixels and 8 x 8 patches of 4 x 4. A mark covers exactly one cell of 2 x 2 patches; there are
4 x 4 cells. So which patches a mark covers is exact, and to remove, exchange or move a mark is to draw the image again
with the same ground. Pixels are drawn as the model sees them (the ground has mean 0, colours lie in [-1, 1]): the
operator `zero` puts the mean ground in the place of a patch.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SIZE, PATCH, GRID = 32, 4, 8
CELLS = 4
"""Cells along a side; a cell is 2 x 2 patches."""
N_CELLS, N_PATCHES = CELLS * CELLS, GRID * GRID
NOISE = 0.12
"""Standard deviation of the ground."""
NONE = -1
"""Kind of a mark that is not there."""

_ROWS = {
    "ring": ["........", ".######.", ".######.", ".##..##.", ".##..##.", ".######.", ".######.", "........"],
    "plus": ["...##...", "...##...", "...##...", "########", "########", "...##...", "...##...", "...##..."],
    "cross": ["##....##", "###..###", ".######.", "..####..", "..####..", ".######.", "###..###", "##....##"],
    "bars": ["########", "########", "........", "........", "........", "........", "########", "########"],
    "square": ["########"] * 8,
    "disc": ["..####..", ".######.", "########", "########", "########", "########", ".######.", "..####.."],
    "dots": ["##..##..", "##..##..", "........", "........", "##..##..", "##..##..", "........", "........"],
}
_COLOURS = {
    "white": (0.8, 0.8, 0.8),
    "blue": (-0.5, -0.3, 1.0),
    "red": (1.0, -0.5, -0.3),
    "green": (-0.4, 1.0, -0.4),
    "yellow": (0.9, 0.8, -0.6),
    "faint": (0.1, 0.1, 0.1),
}


def bitmap(shape: str, colour: str, energy: float | None = None) -> Float[Tensor, "3 8 8"]:
    """One mark, as what is added to the ground.

    Args:
        shape: one of ring, plus, cross, bars, square, disc, dots.
        colour: one of white, blue, red, green, yellow, faint.
        energy: root mean square over the cell that the mark is scaled to, so that marks are equally loud.

    Example:
        >>> bitmap("square", "white").shape
        torch.Size([3, 8, 8])
    """
    drawn = torch.tensor([[float(letter == "#") for letter in row] for row in _ROWS[shape]])
    mark = torch.tensor(_COLOURS[colour])[:, None, None] * drawn
    return mark if energy is None else mark * (energy / mark.square().mean().sqrt())


def paint(
    ground: Float[Tensor, "image 3 height width"],
    marks: Float[Tensor, "kind 3 8 8"],
    kinds: Int[Tensor, "image slot"],
    cells: Int[Tensor, "image slot"],
) -> Float[Tensor, "image 3 height width"]:
    """Ground and marks together; a slot of kind -1 leaves the ground as it is.

    Example:
        >>> paint(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 8, 8), torch.tensor([[0]]), torch.tensor([[5]])).sum()
        tensor(192.)
    """
    shown = torch.cat([marks, torch.zeros_like(marks[:1])])[kinds]  # -1 picks the empty one at the end
    canvas = torch.zeros(len(ground), N_CELLS, 3, 2 * PATCH, 2 * PATCH)
    canvas.scatter_add_(1, cells[:, :, None, None, None].expand_as(shown), shown)
    drawn = canvas.unflatten(1, (CELLS, CELLS)).permute(0, 3, 1, 4, 2, 5).reshape(len(ground), 3, SIZE, SIZE)
    return ground + drawn


def patches_of(cells: Int[Tensor, " image"], there: Bool[Tensor, " image"]) -> Bool[Tensor, "image patch"]:
    """The four patches of a cell, where the mark is there.

    Example:
        >>> patches_of(torch.tensor([0]), torch.tensor([True]))[0].nonzero().flatten().tolist()
        [0, 1, 8, 9]
    """
    place = torch.arange(N_PATCHES)
    cell_of = (place // GRID // 2) * CELLS + place % GRID // 2
    return (cell_of == cells[:, None]) & there[:, None]
