"""The last linear layer of a classifier as one matrix: what it reads, and what it cannot see, follow from it.

The matrix is read off by sending unit vectors through the user's own head, so adapters take part, and a head that is
not linear (cosines with prompts, a stack of layers) is refused instead of being approximated.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, RefusedMethod, ShapeMismatch
from mechvis.record import finite


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """Logits are `features @ weight.T + bias`."""

    weight: Float[np.ndarray, "class d"]
    """One row per class, float64."""
    bias: Float[np.ndarray, " class"]
    """Added to the logits, float64."""
    site: str = ""
    """Site of the wrapped model whose value the head reads (`hook_pooled` or `hook_embedding`)."""
    class_names: tuple[str, ...] = ()
    """Name of each class."""
    eps: float = float(np.finfo(np.float64).eps)
    """Rounding unit of the type that the weights were stored in: what counts as zero depends on it."""

    def __post_init__(self):
        weight = finite("the head's weight", np.asarray(self.weight, np.float64))
        bias = finite("the head's bias", np.asarray(self.bias, np.float64))
        if weight.ndim != 2 or 0 in weight.shape or bias.shape != weight.shape[:1]:
            raise ShapeMismatch(
                f"a head has a weight [class d] and a bias [class], got {list(weight.shape)} and {list(bias.shape)}."
            )
        names = tuple(self.class_names) or tuple(f"class {i}" for i in range(len(weight)))
        if len(names) != len(weight):
            raise ShapeMismatch(f"{len(weight)} classes but {len(names)} class names.")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias)
        object.__setattr__(self, "class_names", names)

    def __call__(self, features: Float[np.ndarray, "row d"]) -> Float[np.ndarray, "row class"]:
        """Logits, in float64."""
        return rows_of(features, self.weight.shape[1], "features") @ self.weight.T + self.bias


def linear_head(model: Any) -> LinearHead:
    """The head of a wrapped classifier as a matrix.

    Args:
        model: a wrapped model with a linear head.

    Returns:
        LinearHead: with `site`, the place whose value it reads.

    Raises:
        BadData: the model has no head.
        RefusedMethod: the head is not linear: its null space would not be one space.

    Example:
        >>> linear_head(mechvis.load("scenes-vit")).weight.shape                                   # doctest: +SKIP
        (8, 128)
    """
    parts = model.parts
    if parts.head is None:
        raise BadData("this model has no head, so there is no null space of one. For CLIP give a linear head of yours.")
    if hasattr(parts.head, "prompts"):
        raise RefusedMethod(
            "a zero-shot head divides by the length of the embedding, so it is not linear and has no null space: "
            "moving along a direction that no prompt reads changes every cosine. Use a linear probe: "
            "LinearHead(weight=, bias=)."
        )
    site = "hook_embedding" if parts.project is not None else "hook_pooled"
    width = _width(model, site)
    with torch.no_grad():
        eye = torch.eye(width, device=model.device, dtype=model.dtype)
        bias = parts.head(torch.zeros_like(eye[:1]))
        weight = parts.head(eye) - bias
        probe = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(eye)
        expected = probe @ weight + bias
        off = float((parts.head(probe) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    # Products of `width` terms in the model's type; a non-linearity is off by tenths.
    if not off < 1e3 * torch.finfo(model.dtype).eps:
        raise RefusedMethod(f"the head is not linear (off by {off:.2g} of its output), so it has no null space.")
    return LinearHead(
        weight=_numpy(weight.T),
        bias=_numpy(bias[0]),
        site=site,
        class_names=tuple(parts.class_names) or (),
        eps=torch.finfo(model.dtype).eps,
    )


def rows_of(rows: Any, width: int | None, what: str) -> Float[np.ndarray, "row d"]:
    """Finite float64 rows of a width.

    Raises:
        ShapeMismatch, NotFinite.
    """
    found = np.asarray(rows, np.float64)
    if found.ndim != 2 or 0 in found.shape or (width is not None and found.shape[1] != width):
        raise ShapeMismatch(f"{what} must be [row {width or 'd'}], got {list(found.shape)}.")
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found)).any(1).argmax())
        raise NotFinite(f"{what} hold NaN or Inf, first in row {row}.")
    return found


def _width(model: Any, site: str) -> int:
    size = model.graph[site].sizes[-1]
    return int(size) if size is not None else int(model.parts.d_pooled or model.parts.d_model)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
