"""The three losses of linear probes: mean over rows of a row's loss, plus `weight_decay / 2` times the squared weights.

==========  ============================================  =========================================  ================
kind        a row's loss                                  scores                                     scikit-learn
==========  ============================================  =========================================  ================
`classes`   cross-entropy of the softmax                  one column a class; one in all for two     logistic
`labels`    sum over labels of the binary cross-entropy   one column a label                         logistic, each
`numbers`   half the squared error, summed over columns   one column a number                        ridge
==========  ============================================  =========================================  ================

The bias is not penalised. With n rows, `weight_decay` is scikit-learn's `C = 1 / (n weight_decay)` for the logistic
ones and `alpha = n weight_decay` for ridge, so that every solver of this package minimises the very same function
(**X**). Gradients are closed formulas: nothing needs a graph.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["classes", "labels", "numbers"]
KINDS = ("classes", "labels", "numbers")


def loss_and_slope(
    kind: Kind, scores: Float[Tensor, "row column"], target: Tensor
) -> tuple[Tensor, Float[Tensor, "row column"]]:
    """Summed loss of some rows, and its derivative by their scores.

    Args:
        kind: see the module.
        scores: what the probe says.
        target: class numbers `[row]` for `classes`, else `[row column]`.

    Example:
        >>> loss, slope = loss_and_slope("numbers", torch.zeros(1, 1), torch.ones(1, 1))
        >>> float(loss), float(slope)
        (0.5, -1.0)
    """
    if kind == "numbers":
        slope = scores - target
        return slope.square().sum() / 2, slope
    if kind == "labels":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="sum")
        return loss, scores.sigmoid() - target
    log_p = log_probabilities(kind, scores)
    loss = -log_p.gather(1, target[:, None]).sum()
    slope = log_p.exp().scatter_add(1, target[:, None], torch.full_like(log_p[:, :1], -1.0))
    return loss, slope if scores.shape[1] > 1 else slope[:, 1:]


def log_probabilities(kind: Kind, scores: Float[Tensor, "row column"]) -> Float[Tensor, "row class"]:
    """Log-probabilities of classes (two for one column of scores), or of each label being true.

    Example:
        >>> log_probabilities("classes", torch.zeros(1, 1)).exp().tolist()
        [[0.5, 0.5]]
    """
    if kind == "labels":
        return torch.nn.functional.logsigmoid(scores)
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    return scores.log_softmax(1)
