"""How much of each concept is at each location: the only thing that the decoder of a completeness test may see."""

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

SMALL = 1e-3
"""Added to the sum that scores are divided by (C)."""


def concept_scores(
    z: Float[Tensor, "image location d"],
    concepts: Float[Tensor, "concept d"],
    *,
    threshold: float = 0.2,
    normalise: bool = True,
) -> Float[Tensor, "image location concept"]:
    """Scores `z . v`, kept where the cosine is above the threshold, divided by their sum over concepts.

    With `normalise`, a location where one weak score passes the threshold looks like one that is full of that concept:
    where noise can pass, raise the threshold or leave the division out.

    Args:
        z: representations.
        concepts: unit vectors, as :func:`unit_concepts` gives them.
        threshold: of the cosine between location and concept; 0.5 or 0 to 0.2 in the released code (**C**).
        normalise: divide by the sum over concepts + 1e-3 (**C**).

    Returns:
        Zero where the cosine is at or below the threshold.

    Raises:
        ShapeMismatch: widths that differ.
        OutOfRange: a threshold that is no cosine.

    Example:
        >>> concept_scores(torch.eye(2)[None], torch.eye(2), normalise=False)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    if z.ndim != 3 or concepts.ndim != 2 or z.shape[2] != concepts.shape[1]:
        raise ShapeMismatch(
            f"representations are [image location d] and concepts [concept d]; got {list(z.shape)} and "
            f"{list(concepts.shape)}."
        )
    if not -1 <= threshold < 1:
        raise OutOfRange(f"threshold={threshold} is compared with a cosine: from -1 to below 1.")
    raw = z @ concepts.to(z).T
    length = z.norm(dim=2, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    kept = torch.where(raw / length > threshold, raw, torch.zeros_like(raw))
    return kept / (kept.sum(2, keepdim=True) + SMALL) if normalise else kept


def unit_concepts(concepts: Float[Tensor, "concept d"]) -> Float[Tensor, "concept d"]:
    """Concept vectors at unit length, checked.

    Raises:
        ShapeMismatch: not `[concept d]`, or none.
        NotFinite: NaN or Inf.
        BadData: a vector of length 0.
    """
    concepts = torch.as_tensor(concepts)
    if concepts.ndim != 2 or not len(concepts):
        raise ShapeMismatch(f"concepts are vectors [concept d], at least one; got {list(concepts.shape)}.")
    if not torch.isfinite(concepts).all():
        raise NotFinite("the concept vectors hold NaN or Inf.")
    length = concepts.norm(dim=1, keepdim=True)
    if (length == 0).any():
        raise BadData(f"concept {int((length[:, 0] == 0).nonzero()[0])} is the zero vector and points nowhere.")
    return concepts / length
