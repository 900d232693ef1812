"""Edge attribution in head space: the plain twin of the kernel, and what runs on a CPU.

    scores[image, source, reader] = sum over token, d_model of
        (change[image, token, source] @ weight[source]) * gradient[image, token, reader]

The sums of types below float32 are taken in float32, and so is the answer. The first product is the only large
intermediate, `[image token source d_model]`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import ShapeMismatch

Change = Float[Tensor, "image token source d_head"]
Weight = Float[Tensor, "source d_head d_model"]
Gradient = Float[Tensor, "image token reader d_model"]
Scores = Float[Tensor, "image source reader"]


def edge_scores(change: Change, weight: Weight, gradient: Gradient) -> Scores:
    """See `mechvis.kernels.edge_scores.edge_scores`."""
    require_shapes(change, weight, gradient)
    work = torch.promote_types(change.dtype, torch.float32)
    written = torch.einsum("itse,sed->itsd", change.to(work), weight.to(work))
    return torch.einsum("itsd,itrd->isr", written, gradient.to(work))


def require_shapes(change: Tensor, weight: Tensor, gradient: Tensor) -> None:
    """Sizes fit each other.

    Raises:
        ShapeMismatch: they do not.
    """
    fits = change.ndim == 4 and weight.ndim == 3 and gradient.ndim == 4
    fits = fits and change.shape[:2] == gradient.shape[:2]
    if not fits or weight.shape != (*change.shape[2:], gradient.shape[3]):
        raise ShapeMismatch(
            "edge_scores takes change [image token source d_head], weight [source d_head d_model] and gradient [image "
            f"token reader d_model]; got {list(change.shape)}, {list(weight.shape)}, {list(gradient.shape)}."
        )
