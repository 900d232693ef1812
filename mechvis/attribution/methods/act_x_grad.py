"""Activation times gradient at the normalised stream that a block's attention reads.

The score's first-order change if the token's activation were taken to zero: `sum_d x_d * ds/dx_d`.

Why the normalised stream and not the residual stream: LayerNorm does not change when its input grows, so the gradient
of whatever is read through a LayerNorm alone is at a right angle to the input, and their product is zero. At the input
of the last block of a model that reads CLS that is so for every patch (measured here: 1e-6 of the score); a method that
looks there shows rounding errors as a map.

Source: methods.md 10 [K]; a sum over d_model, signed.
"""

from dataclasses import dataclass

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question


@dataclass(frozen=True, kw_only=True)
class ActTimesGrad(Method):
    """Activation x gradient.

    Example:
        >>> mechvis.attribute(model, images, ActTimesGrad(layer=2))            # doctest: +SKIP
    """

    NAME = "act_x_grad"
    CLAIMS = Claims(class_specific=True, signed=True)
    SOURCE = "methods.md 10"
    layer: int = -1
    """Block whose attention input is looked at; negative: from the end."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        site = f"blocks.{ask.layer(self.layer)}.ln1.hook_normalized"
        _, values, gradients = ask.gradients([site])
        found = (values[site] * gradients[site]).sum(-1)
        return Maps(values=found[:, ask.n_prefix :], prefix=found[:, : ask.n_prefix])
