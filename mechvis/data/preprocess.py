"""From raw images to the pixels a model expects, and masks through the same geometry.

Preprocessing is part of the model: the wrong mean or size gives plausible nonsense. So the image processor that
ships with a model does the work; this file adds two things to it:

1. a mask goes through the *same* resize and crop as its image (nearest neighbour, no rescaling), so that mask and
   pixels stay aligned;
2. pixels that cannot be right (0-255 values, NaN, wrong size) are refused with an explanation before they reach
   the network.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.axes import Mask, Pixels
from mechvis.errors import BadImages, MixedDevices

NEAREST = 0  # PIL's code, which image processors accept


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The image processor of one model, with what a check of its output needs to know."""

    processor: Any
    """A Hugging Face image processor (PIL backend): called with `images=` and `return_tensors="pt"`."""
    height: int
    """Height of the pixels that come out."""
    width: int
    """Width of the pixels that come out."""
    mean: tuple[float, ...]
    """Per-channel mean that is subtracted after scaling to [0, 1]."""
    std: tuple[float, ...]
    """Per-channel standard deviation that is divided by."""
    source: str = "given"
    """Where it came from: `folder`, `given`, or `default of <family>`."""
    settings: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The processor's own settings, kept for provenance."""

    @classmethod
    def of_processor(cls, processor: Any, *, source: str = "given") -> "Preprocess":
        """Wrap a Hugging Face image processor.

        Example:
            >>> from transformers import ViTImageProcessorPil
            >>> Preprocess.of_processor(ViTImageProcessorPil(size={"height": 64, "width": 64})).height
            64
        """
        settings = processor.to_dict()
        size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
        size = dict(size or {})
        height = size.get("height", size.get("shortest_edge"))
        width = size.get("width", size.get("shortest_edge"))
        if height is None or width is None:
            kind = type(processor).__name__
            raise BadImages(f"the image processor {kind} does not state its output size; seen {size}.")
        normalise = settings.get("do_normalize", True)
        mean = tuple(settings["image_mean"]) if normalise else (0.0, 0.0, 0.0)
        std = tuple(settings["image_std"]) if normalise else (1.0, 1.0, 1.0)
        return cls(
            processor=processor,
            height=int(height),
            width=int(width),
            mean=mean,
            std=std,
            source=source,
            settings=settings,
        )

    def __call__(self, images: Sequence[np.ndarray]) -> Pixels:
        """Pixels for a list of uint8 images `[height width channel]` (sizes may differ).

        Raises:
            BadImages: the list is empty or an image is not uint8 with three channels.
        """
        if len(images) == 0:
            raise BadImages("no images given: the list is empty.")
        for index, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != len(self.mean):
                raise BadImages(
                    f"image {index}: expected uint8 [height width {len(self.mean)}], got {image.dtype} {image.shape}. "
                    "Convert it to RGB first."
                )
        done = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        return done["pixel_values"]

    def masks(self, masks: Sequence[np.ndarray]) -> Mask:
        """Bool masks `[height width]` through the same resize and crop as their images.

        Raises:
            BadImages: the list is empty or a mask is not bool with two axes.
        """
        if len(masks) == 0:
            raise BadImages("no masks given: the list is empty.")
        for index, mask in enumerate(masks):
            if mask.dtype != bool or mask.ndim != 2:
                raise BadImages(f"mask {index}: expected bool [height width], got {mask.dtype} {mask.shape}.")
        as_images = [np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2) for mask in masks]
        settings = {"do_rescale": False, "do_normalize": False, "resample": NEAREST}
        done = self.processor(images=as_images, return_tensors="pt", input_data_format="channels_last", **settings)
        return done["pixel_values"][:, 0] > 127

    def unnormalise(self, pixels: Pixels) -> Pixels:
        """Pixels back in [0, 1] colour, clipped: for pictures."""
        mean, std = self._statistics(pixels)
        return (pixels * std + mean).clamp(0, 1)

    def normalise(self, colours: Pixels) -> Pixels:
        """Colours in [0, 1] to what the model expects."""
        mean, std = self._statistics(colours)
        return (colours - mean) / std

    def at_size(self, height: int, width: int) -> "Preprocess":
        """The same image processor for another output size; what is resized before a crop grows in proportion.

        Raises:
            BadImages: the processor is not one whose size can be changed.
        """
        if (height, width) == (self.height, self.width):
            return self
        if hasattr(self.processor, "at_size"):
            return self.processor.at_size(height, width, self)
        processor = copy.deepcopy(self.processor)
        if not hasattr(processor, "to_dict"):
            raise BadImages(
                f"this preprocessing makes {self.height} x {self.width} pixels and cannot be changed to {height} x "
                f"{width}; pass preprocess= for that size."
            )
        settings = processor.to_dict()
        size = dict(settings.get("size") or {})
        if settings.get("do_center_crop"):
            factor = max(height / self.height, width / self.width)
            processor.size = type(processor.size)(
                **{key: round(value * factor) for key, value in size.items() if value}
            )
            processor.crop_size = type(processor.crop_size)(height=height, width=width)
        else:
            processor.size = type(processor.size)(height=height, width=width)
        return Preprocess.of_processor(processor, source=self.source)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes pixels."""
        text = json.dumps([self.settings, self.height, self.width, self.mean, self.std], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=like.dtype, device=like.device)[:, None, None]
        std = torch.tensor(self.std, dtype=like.dtype, device=like.device)[:, None, None]
        return mean, std


def plain_scaling(height: int, width: int, *, mean: float = 0.5, std: float = 0.5) -> Preprocess:
    """Preprocessing for images that have their final size already: to [0, 1], minus `mean`, over `std`. No resizing.

    It needs no image processor, so that generated images have pixels before any model is loaded.

    Example:
        >>> float(plain_scaling(2, 2)([np.full((2, 2, 3), 255, np.uint8)]).max())
        1.0
    """

    def processor(images: Sequence[np.ndarray], *, do_rescale: bool = True, **settings: Any) -> dict[str, Tensor]:
        if any(image.shape[:2] != (height, width) for image in images):
            raise BadImages(
                f"these images are not all {height} x {width}; use a model's own preprocessing, which resizes."
            )
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(torch.float32)
        return {"pixel_values": (stacked * np.float32(1 / 255) - mean) / std if do_rescale else stacked}

    return Preprocess(
        processor=processor,
        height=height,
        width=width,
        mean=(mean,) * 3,
        std=(std,) * 3,
        source="plain scaling",
        settings={"plain scaling": [height, width, mean, std]},
    )


def check_pixels(
    pixels: Any,
    *,
    channels: int,
    sizes: tuple[int, int] | None,
    at_least: tuple[int, int] | None = None,
    preprocess: Preprocess | None,
    device: torch.device | None = None,
) -> None:
    """Refuse pixels that cannot be right, saying what was expected, what came, and the fix.

    Args:
        pixels: what the user passed.
        channels: channels the patch embedding reads.
        sizes: (height, width) the model is built for; None if it accepts others.
        at_least: (height, width) of one patch.
        preprocess: gives the range of normalised values; without it the range is not checked.
        device: where the model lives; None skips that check.

    Raises:
        BadImages: rank, channel count, size, dtype, range or NaN.
    """
    fix = "Pass raw images through model.preprocess(...), or an ImageSet, which does it for you."
    if not isinstance(pixels, Tensor):
        raise BadImages(f"expected a float tensor [image channel height width], got {type(pixels).__name__}. {fix}")
    shape = tuple(pixels.shape)
    if pixels.ndim != 4:
        hint = " Add the image axis: pixels[None]." if pixels.ndim == 3 else ""
        raise BadImages(f"expected [image channel height width], got shape {shape}.{hint}")
    if shape[0] == 0:
        raise BadImages(f"the batch is empty: shape {shape}.")
    if shape[1] != channels:
        hint = " The channel axis seems to be last: rearrange to [image channel height width]."
        hint = hint if shape[3] == channels else ""
        raise BadImages(f"expected {channels} channels, got shape {shape}.{hint}")
    if sizes is not None and shape[2:] != tuple(sizes):
        raise BadImages(f"expected images of {sizes[0]} x {sizes[1]} pixels, got {shape[2]} x {shape[3]}. {fix}")
    if at_least is not None and (shape[2] < at_least[0] or shape[3] < at_least[1]):
        raise BadImages(
            f"images of {shape[2]} x {shape[3]} pixels are smaller than a patch of {at_least[0]} x {at_least[1]}. {fix}"
        )
    if not pixels.is_floating_point():
        raise BadImages(f"expected normalised floats, got {pixels.dtype}: raw images of 0-255? {fix}")
    if device is not None and pixels.device != device:
        fix = f"Move them: pixels.to({str(device)!r})."
        raise MixedDevices(f"the model is on {device}, the pixels on {pixels.device}. {fix}")
    low, high = (float(v) for v in torch.aminmax(pixels.detach()))
    if not np.isfinite(low) or not np.isfinite(high):
        bad = (~torch.isfinite(pixels)).flatten(1).any(1).nonzero().flatten().tolist()
        raise BadImages(f"NaN or Inf in the pixels of image(s) {bad[:5]}{' ...' if len(bad) > 5 else ''}.")
    if preprocess is not None:
        most = max((1 - m) / s for m, s in zip(preprocess.mean, preprocess.std, strict=True))
        least = min(-m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True))
        span = most - least
        # Optimised or noisy inputs may leave the range of real images a little; 0-255 images leave it by far.
        if high > most + 5 * span or low < least - 5 * span:
            raise BadImages(
                f"pixel values lie in [{low:.3g}, {high:.3g}], normalised images of this model in "
                f"[{least:.3g}, {most:.3g}]: these look like 0-255 images. {fix}"
            )
