"""Several variables at one hook: disjoint blocks of rows of one rotation (methods2.md 16.1, K).

Each variable gets its own rows, orthogonal to those of the others, and is interchanged alone: swapping the block of one
must change that variable's answer and leave the others as they are. So the loss is the mean over the variables of the
loss that each would have alone, and the blocks come from one QR decomposition. Two variables that share directions pay
for it with accuracy: that they can be kept apart is itself a finding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.subspace.das import (
    DasSettings,
    Trained,
    off_manifold,
    optimise,
    rows_of,
    start_at,
    wrong_answers,
)
from circuits.subspace.draws import Draws
from circuits.subspace.interchange import interchange
from circuits.subspace.manifold import Manifold
from circuits.subspace.tail import Tail
from circuits.subspace.variable import Variable
from mechvis.errors import OutOfRange, ShapeMismatch


def train_several(
    tail: Tail,
    variables: Sequence[Variable],
    images: Tensor,
    *,
    ks: Sequence[int],
    seed: int = 0,
    settings: DasSettings | None = None,
    within: object = None,
) -> list[Trained]:
    """Learn orthogonal subspaces, one per variable.

    Args:
        tail: activations and the model behind them; the model stays as it is.
        variables: what each block should swap.
        images: positions of the training images.
        ks: rows per variable.
        seed: of the start and of the pairs.
        settings: how; default: `DasSettings()`.
        within: see :class:`circuits.subspace.Drawer`.

    Returns:
        One subspace per variable, in their order; `losses` are those of the sum.

    Raises:
        ShapeMismatch: not one k per variable, or no variable.
        OutOfRange: a k below 1, or more rows than the hook is wide.
        NotFinite, TrainMode, BadData.

    Example:
        >>> a, b = train_several(tail, [of_a, of_b], splits.train, ks=[7, 5])      # doctest: +SKIP
    """
    settings = settings or DasSettings()
    if not variables or len(ks) != len(variables):
        raise ShapeMismatch(f"one k per variable: {len(variables)} variables and ks={list(ks)}.")
    if min(ks) < 1 or sum(ks) > tail.width:
        raise OutOfRange(f"ks={list(ks)}: at least one row each, and at most {tail.width} together at {tail.name}.")
    manifold = Manifold.of(tail.h[images]) if settings.penalty else None
    free = start_at(tail, sum(ks), seed)

    def loss(step: int, pairs: Draws) -> Tensor:
        total = tail.h.new_zeros(())
        for variable, rows in zip(variables, rows_of(free).split(list(ks)), strict=True):
            changed = interchange(tail.h[pairs.base], tail.h[pairs.source], rows)
            total = total + wrong_answers(tail, variable, pairs, changed)
            total = total + off_manifold(manifold, changed, settings.penalty)
        return total / len(variables)

    losses = optimise(tail, images, [free], loss, seed=seed, settings=settings, within=within)
    with torch.no_grad():
        blocks = rows_of(free).split(list(ks))
    return [Trained(rows=rows.clone(), losses=losses, seed=seed) for rows in blocks]
