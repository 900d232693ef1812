"""What goes into a wrapped model, checked before it reaches the network: pixels, token ids, a stream to restart from.

Each refusal says what the model takes, what came, and what to do.
"""

from typing import Any

import torch
from torch import Tensor

from mechvis.data.preprocess import check_pixels
from mechvis.errors import BadImages, MixedDevices, NotFinite, OutOfRange, ShapeMismatch


def checked(model: Any, images: Any, *, start_at_layer: int = 0) -> Tensor:
    """What the forward of a `HookedViT` takes, from an `ImageSet`, pixels, token ids, or (with `start_at_layer`) a
    stream `[row token d_model]`.

    Raises:
        BadImages, ShapeMismatch, MixedDevices, OutOfRange, NotFinite.
    """
    parts = model.parts
    if hasattr(images, "pixels_for"):
        if model.preprocess is None:
            raise BadImages("this model has no image preprocessing; pass preprocess= to mechvis.load, or pixels.")
        images = images.pixels_for(model.preprocess).to(model.device, model.dtype)
    if start_at_layer:
        return _stream(model, images, start_at_layer)
    if parts.modality == "text":
        return _token_ids(model, images)
    check_pixels(
        images,
        channels=parts.channels,
        sizes=None if parts.sizes == "any" else parts.image_size,
        at_least=parts.patch_size,
        preprocess=model.preprocess,
        device=model.device,
    )
    check_kind(model, images, "pixels")
    return images


def check_kind(model: Any, given: Tensor, what: str) -> None:
    """Refuse a tensor of another device or type than the model's.

    Raises:
        MixedDevices: says how to convert.
    """
    if given.device != model.device:
        raise MixedDevices(f"the model is on {model.device}, the {what} on {given.device}.")
    if given.dtype != model.dtype:
        raise MixedDevices(f"the model is {model.dtype}, the {what} {given.dtype}. Convert: {what}.to({model.dtype}).")


def _stream(model: Any, stream: Any, layer: int) -> Tensor:
    d_model = model.parts.d_model
    fits = isinstance(stream, Tensor) and stream.ndim == 3 and len(stream) and stream.shape[2] == d_model
    if not fits:
        seen = list(stream.shape) if isinstance(stream, Tensor) else type(stream).__name__
        raise ShapeMismatch(f"start_at_layer={layer} takes the stream [row token {d_model}], got {seen}.")
    check_kind(model, stream, "stream")
    if not torch.isfinite(stream.detach().sum()) and not torch.isfinite(stream).all():
        raise NotFinite(f"NaN or Inf in the stream given to start_at_layer={layer}.")
    return stream


def _token_ids(model: Any, ids: Any) -> Tensor:
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ShapeMismatch("a text tower takes token ids [row token] (int64); use clip.tokenize(texts).")
    if ids.numel() == 0:
        raise ShapeMismatch(f"the batch of token ids is empty: shape {list(ids.shape)}.")
    if ids.shape[1] > model.parts.n_tokens:
        raise ShapeMismatch(f"a text of {ids.shape[1]} tokens; this model takes up to {model.parts.n_tokens}.")
    if ids.device != model.device:
        raise MixedDevices(f"the model is on {model.device}, the token ids on {ids.device}.")
    n = model.parts.vocabulary
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or (n is not None and high >= n):
        raise OutOfRange(f"token id {low if low < 0 else high} does not exist; this model's are 0 to {(n or 0) - 1}.")
    return ids
