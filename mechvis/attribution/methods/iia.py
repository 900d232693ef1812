"""Iterated integrated attributions: the path of the image, and at each of its points the path of a block's attention.

1. `outer` points on the way from the baseline image to the image (midpoints);
2. at each, `inner` points on the way from zero to the pattern that the block has there;
3. at each of these `relu(A' * ds/dA')`, with `A'` the scaled pattern;
4. the mean over all points, mean over heads, and rollout with an identity from the output's row.

A scaled pattern has rows that add up to less than one: no attention looks like that, and nothing adds up at the end.
So IIA never counts as complete. With one point each and the path taken at its end it is Chefer's relevance of one block
(the test).

Source: methods2.md 18.2 [K] for the principle, [C] for the loop (the release: zero image, last block, 10 x 10 points at
the right ends of their intervals, not the midpoints).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechvis import edits
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.patterns import POOLING, first_row, pattern_sites
from mechvis.attribution.methods.rollout import as_maps, plus_identity, rolled
from mechvis.attribution.question import Question
from mechvis.errors import FailedCheck, OutOfRange, unknown

RULES = ("midpoint", "end")


@dataclass(frozen=True, kw_only=True)
class IIA(Method):
    """Iterated integrated attributions at a block's attention.

    Example:
        >>> mechvis.attribute(model, images, IIA(outer=10, inner=10))                          # doctest: +SKIP
    """

    NAME = "iia"
    CLAIMS = Claims(class_specific=True, signed=False)
    SOURCE = "methods2.md 18.2 [K] [C]; Barkan et al. 2023"
    layer: int | None = None
    """Block; negative: from the end; None: the last attention before the output."""
    outer: int = 5
    """Points on the path of the image."""
    inner: int = 5
    """Points on the path of the pattern."""
    rule: str = "midpoint"
    """Where points lie in their intervals: `midpoint`, or `end` as in the release."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            OutOfRange, UnknownName: points, layer or rule.
            FailedCheck: the gradient is zero at all points.
        """
        if self.outer < 1 or self.inner < 1:
            raise OutOfRange(f"outer={self.outer}, inner={self.inner}: both need at least one point.")
        if self.rule not in RULES:
            raise unknown("rule of IIA", self.rule, RULES)
        shift = 0.5 if self.rule == "midpoint" else 1.0
        site = pattern_sites(ask)[-1] if self.layer is None else f"blocks.{ask.layer(self.layer)}.attn.hook_pattern"
        total, nowhere = 0, None
        for k in range(self.outer):
            pixels = ask.pixels * ((k + shift) / self.outer)
            for m in range(self.inner):
                place = (m + shift) / self.inner
                moved = [] if place == 1 else [edits.scale(site, place)]
                try:
                    _, values, gradients = ask.gradients([site], pixels=pixels, edits=moved)
                except FailedCheck as error:  # flat at this point; an error only if it is so at all of them
                    nowhere = error
                    continue
                total = total + (values[site] * gradients[site]).relu()
        if not isinstance(total, Tensor):
            raise nowhere
        mean = (total / (self.outer * self.inner)).mean(1)
        if site == POOLING:
            return as_maps(ask, first_row(ask, mean))
        row = first_row(ask, None) if ask.parts.pooling is None else torch.full_like(mean[:, 0], 1 / mean.shape[2])
        return as_maps(ask, rolled(row, [plus_identity(mean)]))
