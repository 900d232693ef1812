"""Runs with directions added to an activation, many directions in one batch.

A direction d is added with strength rho relative to the activations there: alpha = rho * mean|x| / |d|, the mean over
the tokens of the very image (methods.md 8 [X]), so that dictionaries of any scale compare. Nothing else is added: the
decoder's bias belongs to no latent. Where the activation is the stream itself, the run starts there.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis import edits
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown

Blank = Literal["white", "black", "grey", "noise"]
BLANKS = ("white", "black", "grey", "noise")
_STREAM = {"hook_resid_post": 1, "hook_resid_pre": 0}
"""Sites from which a run can start, and how many layers after their own."""


def blank_pixels(model: Any, blank: Blank = "white", *, seed: int = 0) -> Float[Tensor, "1 channel height width"]:
    """An image with nothing on it, preprocessed for a model.

    Args:
        model: a wrapped vision tower with preprocessing.
        blank: `white`, `black`, `grey`, or `noise` (uniform colours, drawn by `seed`).
        seed: of the noise.

    Raises:
        UnknownName: none of these.
        BadData: the model has no preprocessing.
    """
    if blank not in BLANKS:
        raise unknown("blank image", blank, BLANKS)
    if model.preprocess is None or model.parts.image_size is None:
        raise BadData("a blank image needs the model's preprocessing; pass preprocess= to mechvis.load.")
    size = model.parts.image_size
    if blank == "noise":
        image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    else:
        image = np.full((*size, 3), {"white": 255, "black": 0, "grey": 128}[blank], np.uint8)
    return model.preprocess([image]).to(model.device, model.dtype)


@torch.no_grad()
def steered_outputs(
    model: Any,
    pixels: Float[Tensor, "image channel height width"],
    site: str,
    directions: Float[Tensor, "direction d"],
    rho: float,
    *,
    tokens: Bool[Tensor, "image token"] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "direction image out"]:
    """Output of a model for every direction and image, the direction added with a strength relative to the activation.

    Args:
        model: a wrapped tower.
        pixels: images.
        site: where.
        directions: of the site's width (heads side by side).
        rho: strength: length of what is added over the mean length of the activation's tokens in the image.
        tokens: at which; None: all.
        batch_size: rows per forward.

    Raises:
        ShapeMismatch: another width, or a mask that does not fit.
        BadData: a direction of length zero.
        OutOfRange: rho is not finite.
    """
    site = model.graph.resolve(site)
    x = model.run(pixels, capture=[site], stop_when_captured=True).cache[site]
    flat = x.flatten(2) if x.ndim == 4 else x
    if flat.ndim != 3 or directions.ndim != 2 or directions.shape[1] != flat.shape[-1]:
        raise ShapeMismatch(f"directions for {site} are [direction {flat.shape[-1]}], got {list(directions.shape)}.")
    if not np.isfinite(rho):
        raise OutOfRange(f"rho={rho}: expected a finite number.")
    lengths = directions.norm(dim=1, keepdim=True)
    if not (lengths > 0).all():
        raise BadData(f"direction {int((lengths[:, 0] == 0).nonzero()[0])} has length zero, so it steers nowhere.")
    if tokens is not None and tokens.shape != flat.shape[:2]:
        raise ShapeMismatch(f"tokens= is a mask {list(flat.shape[:2])} (image token), got {list(tokens.shape)}.")
    if rho == 0:
        # Nothing is added: the very run, not one of another batch size that rounds otherwise.
        return model.run(pixels).output.expand(len(directions), -1, -1)
    strength = rho * flat.norm(dim=-1).mean(1)
    units = (directions / lengths).to(flat)
    layer, start = model.graph[site].layer, None
    word = site.rsplit(".", 1)[-1]
    if word in _STREAM and layer is not None:
        start = layer + _STREAM[word]
    found = []
    per = max(1, batch_size // len(pixels))
    for first in range(0, len(units), per):
        some = units[first : first + per]
        added = some[:, None, None, :] * strength[None, :, None, None]
        added = added.expand(len(some), *flat.shape)
        if tokens is not None:
            added = torch.where(tokens[None, :, :, None], added, 0.0)
        added = added.flatten(0, 1).reshape(-1, *x.shape[1:])
        # Where the first block follows at once the run starts with the pixels: a stream is not taken for layer 0.
        if start is not None and start > 0:
            stream = x.repeat(len(some), 1, 1) + added
            size = tuple(pixels.shape[2:])
            output = model.run(stream, start_at_layer=start, size=size).output
        else:
            output = model.run(pixels.repeat(len(some), 1, 1, 1), edits=[edits.add(site, added)]).output
        found.append(output.unflatten(0, (len(some), len(pixels))))
    return torch.cat(found)
