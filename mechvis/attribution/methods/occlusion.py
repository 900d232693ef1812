"""Occlusion: how far does the score fall when a window of patches is taken away, or rise when only it is shown?

1. A window of `window x window` patches slides over the grid in steps of `stride`.
2. `hide`: effect = score of the whole image - score without the window. `reveal`: score with nothing but the window -
   score with no patch at all.
3. A patch gets the mean effect of the windows that cover it.

Positive: the patch supports the target. Costs one pass per window and one of the whole (or empty) image.

Hiding single patches fails where evidence is redundant: each of ten patches that say the same can go without the score
noticing, and all ten look useless (faithfulness.md 2.6 measured an AUROC of .47-.55 on a trained model). Then reveal,
or take larger windows. Source: Zeiler and Fergus 2014, as sliding windows on the token grid; token drop: methods.md 10.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange, unknown
from mechvis.removal.operators import Operator

Direction = Literal["hide", "reveal"]


def windows(grid: tuple[int, int], window: int = 1, stride: int = 1) -> Bool[Tensor, "window patch"]:
    """The patches of each window; the last window of a line ends at the edge, so that every patch is covered.

    Raises:
        OutOfRange: a window larger than the grid, or a step that leaves patches out.

    Example:
        >>> windows((1, 3), window=1).int().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    if not 1 <= window <= max(grid):
        raise OutOfRange(f"window={window}: between 1 and {max(grid)} patches a side.")
    if not 1 <= stride <= window:
        raise OutOfRange(f"stride={stride}: between 1 and the window ({window}), or patches are never hidden.")
    lines = []
    for side in grid:
        size = min(window, side)
        starts = sorted({*range(0, side - size + 1, stride), side - size})
        line = torch.zeros(len(starts), side, dtype=torch.bool)
        for row, start in enumerate(starts):
            line[row, start : start + size] = True
        lines.append(line)
    return (lines[0][:, None, :, None] & lines[1][None, :, None, :]).flatten(2).flatten(0, 1)


def occlusion(
    game: Any, covers: Bool[Tensor, "window patch"], n_images: int, direction: Direction = "hide"
) -> Float[Tensor, "image patch"]:
    """Mean effect of the windows that cover each patch.

    Args:
        game: masks in, scores out.
        covers: the patches of each window; a patch of no window gets 0.
        n_images: images of the game.
        direction: `hide` takes the window away, `reveal` shows nothing else.

    Returns:
        In the unit of the score; positive: the patch supports it.

    Raises:
        UnknownName: another direction.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> occlusion(PatchGame(), windows((3, 3)), 1)[0, :4].tolist()
        [2.0, 1.0, 3.0, 3.0]
    """
    if direction not in get_args(Direction):
        raise unknown("direction", direction, get_args(Direction))
    hide = direction == "hide"
    rows = torch.cat([torch.full((1, covers.shape[1]), hide), ~covers if hide else covers])
    scores = game.scores(repeat(rows, "row patch -> image row patch", image=n_images))
    effects = scores[:, :1] - scores[:, 1:] if hide else scores[:, 1:] - scores[:, :1]
    weights = covers.to(effects)
    return effects @ weights / weights.sum(0).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Occlusion(Method):
    """The score's fall when patches are hidden, or its rise when only they are shown.

    Single patches (`window=1`, `hide`) say nothing of redundant evidence: compare with `direction="reveal"`.

    Example:
        >>> mechvis.attribute(model, images, Occlusion(window=2))              # doctest: +SKIP
    """

    NAME = "occlusion"
    CLAIMS = Claims(class_specific=True, signed=True, reads="outputs")
    SOURCE = "Zeiler and Fergus 2014; methods.md 10; faithfulness.md 2.6"
    operator: str | Operator = "token_drop"
    """What stands in the place of missing patches."""
    window: int = 1
    """Patches a side of the window."""
    stride: int = 1
    """Patches between windows."""
    direction: Direction = "hide"
    """`hide` the window, or `reveal` nothing else."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        covers = windows(ask.grid, self.window, self.stride)
        found = occlusion(ask.game(self.operator), covers, len(ask.pixels), self.direction)
        return Maps(values=found)
