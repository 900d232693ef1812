"""DINOv3's image processor without torchvision, which the one of transformers needs.

It is unlike the others: pixels become floats before they are resized, so they are not rounded to 8 bits in between.
The pixels here are those of transformers' `DINOv3ViTImageProcessor`, bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

NEAREST, BILINEAR, BICUBIC = 0, 2, 3  # PIL's codes, which image processors accept
MODES = {NEAREST: "nearest-exact", BILINEAR: "bilinear", BICUBIC: "bicubic"}


@dataclass(kw_only=True)
class FloatResize:
    """Rescale, resize, normalise; called as `Preprocess` calls an image processor."""

    size: dict[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    """`height` and `width` of what comes out."""
    resample: int = BILINEAR
    """PIL's code of the interpolation."""
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    """Per-channel mean."""
    image_std: Sequence[float] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation."""

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> "FloatResize":
        """From a saved `preprocessor_config.json`."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__ if name in settings})

    def to_dict(self) -> dict[str, Any]:
        """The settings, as image processors give theirs."""
        return asdict(self)

    def __call__(
        self,
        images: Sequence[np.ndarray],
        *,
        do_rescale: bool = True,
        do_normalize: bool = True,
        resample: int | None = None,
        **settings: Any,
    ) -> dict[str, Tensor]:
        """Pixels of uint8 images `[height width channel]`; without rescaling and normalising, those of masks."""
        mode = MODES[self.resample if resample is None else resample]
        smooth = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
        done = []
        for image in images:
            x = rearrange(torch.tensor(image), "height width channel -> 1 channel height width").to(torch.float32)
            x = x * (1 / 255) if do_rescale else x
            done.append(F.interpolate(x, (self.size["height"], self.size["width"]), mode=mode, **smooth))
        pixels = torch.cat(done)
        if not do_normalize:
            return {"pixel_values": pixels}
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return {"pixel_values": (pixels - mean) / std}
