"""Edge attribution in head space: the plain twin of the kernel, and what runs on a CPU.

    scores[image, source, reader] = sum over token, d_model of
        (change[image, token, source] @ weight[source]) * gradient[image, token, reader]

The sums of types below float32 are taken in float32, and so is the answer. The first product is the only large
intermediate, `[source image token d_model]`. Both are plain matrix products over contiguous axes where the gradient is
a view of `[reader image token d_model]`, as edge attribution makes it.
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
    n_images, n_tokens = change.shape[:2]
    by_source = change.to(work).permute(2, 0, 1, 3).flatten(1, 2)
    written = torch.bmm(by_source, weight.to(work)).unflatten(1, (n_images, n_tokens))
    readers = gradient.to(work).permute(2, 0, 1, 3)
    scores = [written[:, image].flatten(1) @ readers[:, image].flatten(1).T for image in range(n_images)]
    return torch.stack(scores) if scores else written.new_zeros(0, len(weight), gradient.shape[2])


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
