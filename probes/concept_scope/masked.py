"""What a model says of images without a concept's pixels, and of these pixels alone."""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Pixels
from mechvis.data.images import ImageSet
from mechvis.errors import NotFinite, unknown
from mechvis.progress import track

Fill = Literal["zero", "mean", "blur"]
FILLS = ("zero", "mean", "blur")
WHOLE, WITHOUT, ALONE = 0, 1, 2
VIEWS = {"whole": WHOLE, "without": WITHOUT, "alone": ALONE}


def probabilities(
    model: Any, images: ImageSet, labels: np.ndarray, masks: list[Tensor], fill: Fill, batch_size: int, progress: bool
) -> Float[np.ndarray, "concept view image"]:
    """Probability of each image's class: whole, without the concept, the concept alone."""
    found = np.empty((len(masks), 3, len(images)))
    with track(len(images), "concepts", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            pixels = model.inputs(images[part])
            own = torch.from_numpy(labels[part]).to(model.device)
            other = fill_of(pixels, fill)
            found[:, WHOLE, part] = _p(model, pixels, own)
            for c, mask in enumerate(masks):
                on = mask[part][:, None].to(pixels.device)
                found[c, WITHOUT, part] = _p(model, torch.where(on, other, pixels), own)
                found[c, ALONE, part] = _p(model, torch.where(on, pixels, other), own)
            bar.update(len(pixels))
    if not np.isfinite(found).all():
        raise NotFinite("the model's probabilities hold NaN or Inf on masked images.")
    return found


def fill_of(pixels: Pixels, fill: Fill) -> Pixels:
    """What removed pixels become: zeros (the grey of the preprocessing), the image's mean colour, or a strong blur.

    Raises:
        UnknownName: none of these.
    """
    if fill == "zero":
        return torch.zeros_like(pixels)
    mean = pixels.mean((-2, -1), keepdim=True).expand_as(pixels)
    if fill == "mean":
        return mean
    if fill != "blur":
        raise unknown("fill", fill, FILLS)
    side = max(3, (min(pixels.shape[-2:]) // 4) | 1)
    wide = F.pad(pixels, (side // 2,) * 4, mode="replicate")
    # Three box blurs are a good Gaussian; borders are repeated.
    for _ in range(3):
        wide = F.avg_pool2d(F.pad(wide, (side // 2,) * 4, mode="replicate"), side, stride=1)
    return wide[..., side // 2 : side // 2 + pixels.shape[-2], side // 2 : side // 2 + pixels.shape[-1]]


def _p(model: Any, pixels: Pixels, own: Tensor) -> np.ndarray:
    p = model.run(pixels).output.double().softmax(-1)
    return p.gather(1, own[:, None])[:, 0].cpu().numpy()
