"""Images with a given magnitude spectrum, of which only the phase is free.

`image = irfft2(magnitude * exp(i phase))`. The magnitude is the mean over natural images, so that whatever the phase
is, the picture has the amount of detail that natural pictures have.

Two columns of a real spectrum are their own mirror images (frequency 0 and the middle one across). There the phase must
be odd, or the inverse transform throws part of the magnitude away: with a random phase these columns keep two thirds of
it on average [P]. `odd_at_edges` makes it so.

Source: Fel et al. 2023 (MACO), methods2.md 19.2 [C].
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch

Spectrum = Float[Tensor, "channel frequency half"]


def magnitude_of(images: Float[Tensor, "image channel height width"], size: int) -> Spectrum:
    """Mean magnitude of the images' spectra at a canvas of `size` pixels.

    Raises:
        ShapeMismatch, NotFinite, BadData: no images, NaN, or images that are all black.
    """
    if images.ndim != 4 or not len(images):
        raise ShapeMismatch(f"natural images are [image channel height width], got {list(images.shape)}.")
    if not bool(torch.isfinite(images).all()):
        raise NotFinite("the natural images hold NaN or Inf.")
    if images.shape[2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    found = torch.fft.rfft2(images).abs().mean(0)
    if not bool(found.any()):
        raise BadData("the natural images are all black: their spectrum is zero.")
    return found


def odd_at_edges(phase: Spectrum) -> Spectrum:
    """The phase, made odd in the columns that are their own mirror images.

    Example:
        >>> phase = odd_at_edges(torch.rand(1, 8, 5))
        >>> bool(torch.allclose(phase[0, 1, 0], -phase[0, 7, 0]))
        True
    """
    edges = [0, phase.shape[-1] - 1]
    own = phase[..., edges]
    mirrored = own.flip(-2).roll(1, -2)
    odd = (own - mirrored) / 2
    return torch.cat([odd[..., :1], phase[..., 1:-1], odd[..., 1:]], -1)


def image_of(magnitude: Spectrum, phase: Spectrum) -> Float[Tensor, "channel height width"]:
    """The image with this magnitude and phase (canvas of even size); the magnitude is kept at every frequency."""
    side = magnitude.shape[-2]
    return torch.fft.irfft2(torch.polar(magnitude, odd_at_edges(phase)), s=(side, side))


def standard(values: Tensor) -> Tensor:
    """Zero mean and unit standard deviation over everything."""
    return (values - values.mean()) / values.std().clamp(min=1e-12)


def colour_root(images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "channel channel"]:
    """Root of the covariance of natural colours, scaled to a largest column of length one: what turns independent
    channels into colours that go together."""
    colours = images.movedim(1, 0).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(colours).reshape(len(colours), len(colours)))
    root = vectors * values.clamp(min=0).sqrt()
    return (root / root.norm(dim=0).max().clamp(min=1e-12)).to(images.dtype)
