"""Which patches go first: orders of maps with fair ties, and the masks that follow.

Equal values have no order. Taking them by their place would begin at the top left corner in every image, which is an
order with a meaning; so ties are broken by a draw that belongs to the image (seed and id), and the ascending order is
the descending one backwards: turning a map's sign exchanges the two exactly.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import OutOfRange
from mechvis.faithfulness.answers import Answers
from mechvis.keyed import generator_of
from mechvis.removal.game import order_masks


def descending(maps: Float[Tensor, "image patch"], answers: Answers) -> Int[Tensor, "image patch"]:
    """Patches of each image from the most to the least relevant."""
    rows = []
    for values, number in zip(maps, answers.ids(len(maps)), strict=True):
        mixed = torch.randperm(len(values), generator=generator_of(answers.seed, number, "ties"))
        rows.append(mixed[values[mixed].argsort(descending=True, stable=True)])
    return torch.stack(rows)


def counts_of(n_patches: int, steps: int) -> list[int]:
    """How many patches are gone at each point: 0 to all in about `steps` steps, as even as whole numbers allow, and the
    same from both ends (so that insertion and deletion use the same masks).

    Raises:
        OutOfRange: no step.

    Example:
        >>> counts_of(9, 4)
        [0, 2, 4, 5, 7, 9]
        >>> counts_of(4, 32)
        [0, 1, 2, 3, 4]
    """
    if steps < 1:
        raise OutOfRange(f"steps={steps}: a curve needs at least one step.")
    steps = min(steps, n_patches)
    found = {round(n_patches * step / steps) for step in range(steps + 1)}
    return sorted(found | {n_patches - count for count in found})


def removed_first(order: Int[Tensor, "image patch"], counts: list[int]) -> Bool[Tensor, "image row patch"]:
    """Masks without the first `counts` patches of an order."""
    return order_masks(order, counts)


def kept_first(order: Int[Tensor, "image patch"], counts: list[int]) -> Bool[Tensor, "image row patch"]:
    """Masks with nothing but the first `counts` patches of an order."""
    return ~order_masks(order, counts)


def area(curve: Float[Tensor, "image point"], points: Float[Tensor, " point"]) -> Float[Tensor, " image"]:
    """Area under a curve by the trapezoid rule, over the width that its points span.

    Example:
        >>> area(torch.tensor([[4.0, 1.0, 0.0]]), torch.tensor([0.0, 0.5, 1.0])).tolist()
        [1.5]
    """
    return torch.trapezoid(curve, points, dim=1) / (points[-1] - points[0])
