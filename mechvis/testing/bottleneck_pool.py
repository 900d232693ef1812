"""F11 BottleneckPool: twelve tokens of which a classifier reads two, so that all others must carry no information.

Logits are `(.6 x_2 + .4 x_5) W`: tokens 2 and 5 alone are read, the first more than the second. A method that measures
how much each token has to carry must give these two bits and the others none, for every weight of the information; how
many bits they get is set by that weight (methods2.md 18.3 [P]: from 33/20 at beta .1 to .51/.66 at beta 100).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

READ = (2, 5)
"""Tokens that are read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BottleneckPool:
    """Data and classifier of F11, made by :func:`bottleneck_pool`."""

    stream: Float[Tensor, "image token d_model"]
    """Activations."""
    weights: Float[Tensor, " token"]
    """Weight of each token in the pool."""
    head: Float[Tensor, "d_model class"]
    """Classifier of the pooled token."""
    classes: Int[Tensor, " image"]
    """Class of each image: what the classifier says."""

    def loss(self, rows: Float[Tensor, "row token d_model"], images: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Cross-entropy (nats)."""
        logits = torch.einsum("rtd,t->rd", rows, self.weights) @ self.head
        return torch.nn.functional.cross_entropy(logits, self.classes[images], reduction="none")


def bottleneck_pool(
    n: int = 8, *, d_model: int = 8, n_classes: int = 5, weights: dict[int, float] | None = None, seed: int = 0
) -> BottleneckPool:
    """F11: 12 tokens; tokens 2 and 5 are read with weights .6 and .4.

    Args:
        n: images.
        d_model: channels.
        n_classes: classes.
        weights: of tokens that are read instead.
        seed: fixes everything.

    Example:
        >>> pool = bottleneck_pool()
        >>> pool.weights.nonzero().flatten().tolist()
        [2, 5]
    """
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randn(n, 12, d_model, generator=generator, dtype=torch.float64)
    head = 2 * torch.randn(d_model, n_classes, generator=generator, dtype=torch.float64)
    pool = torch.zeros(12, dtype=torch.float64)
    for token, weight in (weights or {2: 0.6, 5: 0.4}).items():
        pool[token] = weight
    classes = (torch.einsum("rtd,t->rd", stream, pool) @ head).argmax(1)
    return BottleneckPool(stream=stream, weights=pool, head=head, classes=classes)
