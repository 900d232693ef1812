"""Chefer relevance: attention times its gradient, positive part, accumulated over blocks.

1. `Abar_l = mean_h relu(ds/dA_l * A_l)`;
2. `R <- R + Abar_l R`, starting from the identity;
3. the map is the row of R that the output reads.

Written for a row it is `rolled` with `W_l = I + Abar_l`. The gradient is that of the explained score: a logit, a
difference of logits, the similarity with a text.

Source: Chefer et al. 2021b (generic attention), methods.md 10 [K]. The older form (2021a), which needs the relevance of
attention by layer-wise propagation through every module, is left out: it is a backward rule of its own with other
claims, and the authors themselves replaced it.
"""

from dataclasses import dataclass

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.patterns import Pattern, Weights, split
from mechvis.attribution.methods.rollout import as_maps, gradient_times_pattern, plus_identity, rolled
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange


@dataclass(frozen=True, kw_only=True)
class Chefer(Method):
    """Chefer relevance (2021b).

    Example:
        >>> mechvis.attribute(clip, images, Chefer(), target="a star on grass")                # doctest: +SKIP
    """

    NAME = "chefer"
    CLAIMS = Claims(class_specific=True, signed=False)
    SOURCE = "methods.md 10 [K]; Chefer et al. 2021b"
    start: int = 0
    """First block that is looked at; negative: from the end. Blocks before it pass everything on."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            OutOfRange: start is not a block.
        """
        if not -ask.n_layers <= self.start < ask.n_layers:
            raise OutOfRange(f"start={self.start}: this model has {ask.n_layers} blocks.")
        _, products = gradient_times_pattern(ask)
        row, weights = split(ask, products, relevance)
        return as_maps(ask, rolled(row, [plus_identity(one) for one in weights[self.start % ask.n_layers :]]))


def relevance(product: Pattern) -> Weights:
    """Gradient times pattern to `mean_h relu(.)`."""
    return product.relu().mean(1)
