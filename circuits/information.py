"""How much of a prediction comes from the object and how much from its context (CIGMA, methods.md 1.1).

For image I with object mask S and fill B:

    I_-fg = (1 - S) I + S B      object removed
    I_-bg = S I + (1 - S) B      context removed
    FIG   = JS(q, q_-fg)         foreground information gain: what the object contributes, in nats
    BIG   = JS(q, q_-bg)         background information gain: what the context contributes, in nats
    BIR   = sum BIG / (sum BIG + sum FIG)     background influence ratio, in [0, 1], lower is better

JS is the Jensen-Shannon divergence of full predictive distributions. FIG, BIG: verified at note level [N][A]. BIR: the
paper's formula is in an appendix that was not seen; ours is a ratio of sums [X].
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Mask, Pixels
from mechvis.errors import ShapeMismatch, unknown
from mechvis.metrics import jensen_shannon

Fill = Literal["mean", "blur", "zero"]
FILLS = ("mean", "blur", "zero")

ORIGINAL, WITHOUT_CONTEXT, WITHOUT_OBJECT = 0, 1, 2
"""Places on the view axis of :func:`three_views`."""

FLAT = 1e-4
"""Images with BIG + FIG below this (nats) have no ratio of their own; they are dropped from the mean of ratios and
counted."""


def fill_of(pixels: Pixels, fill: Fill) -> Pixels:
    """What removed pixels become.

    Args:
        pixels: normalised pixels.
        fill: `mean` (the image's own mean colour), `blur` (strong Gaussian blur), or `zero` (the model's grey).

    Raises:
        UnknownName: not one of these.
    """
    if fill == "mean":
        return pixels.mean((-2, -1), keepdim=True).expand_as(pixels)
    if fill == "zero":
        return torch.zeros_like(pixels)
    if fill == "blur":
        return blur(pixels, sigma=max(pixels.shape[-2:]) / 8)
    raise unknown("fill", fill, FILLS)


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with reflected borders; `sigma` in pixels."""
    radius = min(int(3 * sigma), min(pixels.shape[-2:]) - 1)
    steps = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(pixels.shape[1], 1)
    wide = F.pad(pixels, (radius, radius, radius, radius), mode="reflect")
    wide = F.conv2d(wide, kernel[:, None, None, :], groups=pixels.shape[1])
    return F.conv2d(wide, kernel[:, None, :, None], groups=pixels.shape[1])


def three_views(pixels: Pixels, masks: Mask, fill: Fill = "mean") -> Float[Tensor, "view image channel height width"]:
    """The image, the image without its context, the image without its object.

    Raises:
        ShapeMismatch: masks do not fit the pixels.
    """
    if masks.shape != (len(pixels), *pixels.shape[-2:]):
        raise ShapeMismatch(
            f"masks of shape {list(masks.shape)} do not fit pixels {list(pixels.shape)}; "
            "one [height width] mask per image."
        )
    on_object = masks[:, None].to(pixels.device)
    blank = fill_of(pixels, fill)
    return torch.stack([pixels, torch.where(on_object, pixels, blank), torch.where(on_object, blank, pixels)])


@dataclass(frozen=True)
class Information:
    """Gains and answers of some images; arrays are float64 `[... image]`, in nats or 0/1."""

    big: Tensor
    """Background information gain."""
    fig: Tensor
    """Foreground information gain."""
    correct: Tensor
    """1 where the original image is classified as labelled."""
    object_only: Tensor
    """1 where the image without context is classified as labelled."""
    context_only: Tensor
    """1 where the image without object is classified as labelled."""


def information(logits: Float[Tensor, "*rows view image class"], labels: Tensor, *, tau: float = 1.0) -> Information:
    """FIG, BIG and answers from the logits of the three views.

    Args:
        logits: views in the order of :func:`three_views`.
        labels: class per image `[image]`.
        tau: softmax temperature.
    """
    q = (logits.double() / tau).softmax(-1)
    original, without_context, without_object = (q[..., v, :, :] for v in range(3))
    answers = (logits.argmax(-1) == labels.to(logits.device)).double()
    return Information(
        big=jensen_shannon(original, without_context),
        fig=jensen_shannon(original, without_object),
        correct=answers[..., ORIGINAL, :],
        object_only=answers[..., WITHOUT_CONTEXT, :],
        context_only=answers[..., WITHOUT_OBJECT, :],
    )


def background_influence_ratio(big: np.ndarray, fig: np.ndarray) -> float:
    """BIR = sum BIG / (sum BIG + sum FIG) over images, in [0, 1]; NaN if nothing has any influence.

    Example:
        >>> background_influence_ratio(np.array([0.3, 0.1]), np.array([0.1, 0.1]))
        0.6666666666666666
    """
    total = float(np.sum(big) + np.sum(fig))
    return float(np.sum(big)) / total if total > 0 else float("nan")


def mean_of_ratios(big: np.ndarray, fig: np.ndarray) -> tuple[float, int]:
    """Mean over images of BIG / (BIG + FIG), and how many images were dropped because both are near zero."""
    total = np.asarray(big) + np.asarray(fig)
    used = total >= FLAT
    ratio = float(np.mean(np.asarray(big)[used] / total[used])) if used.any() else float("nan")
    return ratio, int((~used).sum())
