"""F15 SwapGrid: nine cells, a mean-pooled linear classifier, and evidence in known cells of two images.

The query has evidence 3, 1 and .3 for its class in cells 3, 7 and 1, the distractor 3 and 1.5 for the other class in
cells 4 and 8. One swap turns the decision: the distractor's cell 4 in the place of the query's cell 3. A relaxed search
takes all of cell 3, part of cell 7 and nothing of the others, all from cell 4 (methods2.md 19.1 [P]).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

GRID = (3, 3)
QUERY = {3: 3.0, 7: 1.0, 1: 0.3}
"""Evidence for class 0 by cell of the query."""
OTHER = {4: 3.0, 8: 1.5}
"""Evidence for class 1 by cell of the distractor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SwapGrid:
    """F15, made by :func:`swap_grid`."""

    query: Float[Tensor, "patch d_model"]
    """Tokens of the query."""
    other: Float[Tensor, "patch d_model"]
    """Tokens of the distractor."""
    scale: float
    """Logit of a mean evidence of one."""

    def logits(self, tokens: Float[Tensor, "row patch d_model"]) -> Float[Tensor, "row class"]:
        """Two classes: the mean of channels 0 and 1."""
        return self.scale * tokens[..., :2].mean(-2)


def swap_grid(*, scale: float = 9.0, d_model: int = 6, seed: int = 0) -> SwapGrid:
    """F15: evidence in channels 0 and 1, what else cells look like in the others.

    Args:
        scale: of the logits; 9 makes them sums over cells.
        d_model: channels.
        seed: of the channels that nobody reads.

    Example:
        >>> grid = swap_grid()
        >>> grid.logits(torch.stack([grid.query, grid.other])).argmax(1).tolist()
        [0, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = 0.1 * torch.randn(2, 9, d_model, generator=generator, dtype=torch.float64)
    tokens[..., :2] = 0
    for cell, evidence in QUERY.items():
        tokens[0, cell, 0] = evidence
    for cell, evidence in OTHER.items():
        tokens[1, cell, 1] = evidence
    return SwapGrid(query=tokens[0], other=tokens[1], scale=scale)
