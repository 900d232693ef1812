"""The second look, at example images only: heat maps, small pictures, and embeddings.

Which images are examples is known only after all were seen, and keeping maps of whatever might become one would cost
`latents x entries x patches` in memory. So the examples' images are run once more, and their maps are filled in.

A map is kept in one byte per patch: round(255 c / peak), c the code on the patch (the largest, where a token has a row
per head) and peak the largest on the patches. A patch on which the latent fires is never rounded to zero.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mechvis.progress import track
from sae.dashboards.best import EMPTY
from sae.dashboards.codes import Reading, batches

QUALITY = 85
"""Of JPEG files."""


@dataclass(kw_only=True, eq=False)
class Looked:
    """What the second look found."""

    maps: UInt8[np.ndarray, "example patch"]
    """Codes of each example's patches, as shares of the peak."""
    peaks: Float[np.ndarray, " example"]
    """Largest code on the patches."""
    images: Int[np.ndarray, " picture"]
    """Positions of the images that are examples, ascending."""
    pictures: list[bytes] = field(default_factory=list)
    """JPEG or PNG of each."""
    embeddings: Float[np.ndarray, "picture d_embed"] | None = None
    """Unit embedding of each, where it was asked for."""


def look_again(
    reading: Reading,
    pixels_of: Callable[[np.ndarray], Tensor],
    latents: Int[np.ndarray, " latent"],
    image: Int[np.ndarray, " example"],
    latent: Int[np.ndarray, " example"],
    *,
    n_patches: int,
    batch_size: int,
    thumbnail: int,
    embed: Callable[[Tensor, Tensor], Tensor] | None = None,
    to_the_end: bool = False,
    progress: bool = True,
) -> Looked:
    """Maps, pictures and embeddings of examples.

    Args:
        reading: model and dictionary.
        pixels_of: pixels of some images of the set.
        latents: latents that have pages.
        image: of each example.
        latent: of each example, as a position in `latents`; no image twice for one latent.
        n_patches: places of the grid; 0: none.
        batch_size: images per forward.
        thumbnail: longest side of a picture, in pixels.
        embed: unit embeddings from pixels and output.
        to_the_end: does `embed` need the model's output?
        progress: show a progress bar.
    """
    seen = np.unique(image)
    key = image * len(latents) + latent
    order = np.argsort(key, kind="stable")
    key = key[order]
    found = Looked(maps=np.zeros((len(image), n_patches), np.uint8), peaks=np.zeros(len(image)), images=seen)
    embedded: list[np.ndarray] = []
    preprocess = reading.model.preprocess
    with track(len(seen), "examples", " images", show=progress) as bar:
        for some in batches(len(seen), batch_size):
            which = seen[some.start : some.stop]
            pixels = pixels_of(which)
            entries, rows = reading.entries(pixels, range(len(which)), latents, to_the_end=to_the_end)
            first, last = np.searchsorted(key, (which[0] * len(latents), (which[-1] + 1) * len(latents)))
            if n_patches and last > first:
                codes = np.zeros((last - first, n_patches))
                own = which[entries.image] * len(latents) + entries.latent
                at = np.minimum(np.searchsorted(key[first:last], own), last - first - 1)
                patch = rows.patch[entries.row]
                hit = (key[first:last][at] == own) & (patch != EMPTY)
                np.maximum.at(codes, (at[hit], patch[hit]), entries.value[hit])
                found.maps[order[first:last]], found.peaks[order[first:last]] = in_bytes(codes)
            found.pictures += [picture(image, thumbnail) for image in colours(pixels, preprocess)]
            if embed is not None:
                embedded.append(embed(pixels, entries.output).double().cpu().numpy())
            bar.update(len(which))
    found.embeddings = np.concatenate(embedded) if embedded else None
    return found


def in_bytes(
    codes: Float[np.ndarray, "example patch"],
) -> tuple[UInt8[np.ndarray, "example patch"], Float[np.ndarray, " example"]]:
    """Maps as shares of their peak in bytes, and the peaks.

    Example:
        >>> in_bytes(np.array([[0.0, 0.001, 2.0]]))[0].tolist()
        [[0, 1, 255]]
    """
    peaks = codes.max(1, initial=0)
    shares = np.rint(255 * codes / np.where(peaks > 0, peaks, 1)[:, None])
    return np.where(codes > 0, np.maximum(shares, 1), 0).astype(np.uint8), peaks


def colours(pixels: Tensor, preprocess: Any = None) -> UInt8[np.ndarray, "image height width channel"]:
    """Pixels as pictures: what the model sees, resized and cropped, so that patches lie where they belong.

    Without a preprocessing, nothing says what the numbers mean, and each image is stretched from its least to its
    largest value.
    """
    if preprocess is not None:
        shown = preprocess.unnormalise(pixels)
    else:
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        shown = (pixels - low) / (high - low).clamp_min(1e-12)
    return (shown * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()


def picture(image: UInt8[np.ndarray, "height width channel"], longest: int) -> bytes:
    """A small picture: PNG or JPEG, whichever has fewer bytes."""
    from PIL import Image

    drawn = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image[..., :3]))
    if max(drawn.size) > longest:
        scale = longest / max(drawn.size)
        size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
        drawn = drawn.resize(size, Image.Resampling.LANCZOS)
    files = []
    for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": QUALITY, "subsampling": 0})):
        buffer = io.BytesIO()
        drawn.save(buffer, form, **options)
        files.append(buffer.getvalue())
    return min(files, key=len)
