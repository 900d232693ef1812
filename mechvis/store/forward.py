"""From images to rows: one forward pass for all sites, stopped at the last of them.

Harvesting, repairing and streaming all compute rows here, so they cannot differ. Which images share a forward pass
matters to the last bit (matrix products round differently for other numbers of rows); whoever promises equal bits keeps
the batches.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData, BadImages, NotFinite, OutOfMemory
from mechvis.store.rows import SiteRows
from mechvis.wave import bytes_per_row, rows_at_once

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 256
"""Images in a forward pass on an accelerator; a judgement, not measured."""

Read = Callable[[np.ndarray], Tensor]
"""Pixels of some images, by their positions in the set."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A model, its images, and the rows that are wanted of them."""

    model: Any
    """A wrapped image tower."""
    read: Read
    """The images."""
    sites: Mapping[str, SiteRows]
    """What is kept, by site, in the order in which the sites fire."""
    describe: Callable[[int], str]
    """What to call an image in an error."""

    def rows(self, images: np.ndarray, pixels: Tensor | None = None, *, upto: str | None = None) -> dict[str, Tensor]:
        """Rows `[image*row width]` of every site, on the CPU, in the type of the store.

        Args:
            images: positions in the set.
            pixels: theirs, if they have been read.
            upto: leave out the sites that fire after this one, and what only they need.

        Raises:
            NotFinite: NaN or Inf; names site and image.
            BadImages: pixels that cannot be right.
            OutOfMemory: one image alone does not fit the accelerator.
        """
        pixels = self.read(images) if pixels is None else pixels
        try:
            return self._rows(images, pixels, upto)
        except torch.OutOfMemoryError as error:
            failure = str(error)
        # Outside the handler: a live traceback would keep the failed attempt's tensors.
        torch.cuda.empty_cache()
        if len(images) == 1:
            raise OutOfMemory(f"one image does not fit the accelerator's memory: {failure}")
        logger.warning("%d images do not fit the accelerator: in halves, which may round otherwise.", len(images))
        middle = len(images) // 2
        halves = (slice(None, middle), slice(middle, None))
        parts = [self.rows(images[half], pixels[half], upto=upto) for half in halves]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _rows(self, images: np.ndarray, pixels: Tensor, upto: str | None) -> dict[str, Tensor]:
        device = self.model.device
        inputs = pixels.to(device, non_blocking=device.type == "cuda").to(self.model.dtype)
        names = list(self.sites)
        wanted = names if upto is None else names[: names.index(upto) + 1]
        try:
            cache = self.model.run(inputs, capture=wanted, check_finite=False, stop_when_captured=True).cache
        except BadImages as error:
            those = ", ".join(map(str, images[:64])) + (" ..." if len(images) > 64 else "")
            raise BadImages(f"{error} (Counted in the batch of images {those}.)") from error
        found = {}
        for name in wanted:
            site, value = self.sites[name], cache[name]
            if tuple(value.shape[1:]) != site.sizes:
                raise BadData(
                    f"{name} is {list(value.shape[1:])} per image here and {list(site.sizes)} at the first image: all "
                    "images need one size."
                )
            rows = site.rows_of(value, images)
            # One pass; the long way only if something is wrong (or the sum itself overflows).
            if not torch.isfinite(rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))):
                self._check(site, rows, value, images)
            found[name] = rows.cpu()
        return found

    def _check(self, site: SiteRows, rows: Tensor, value: Tensor, images: np.ndarray) -> None:
        bad = ~torch.isfinite(rows)
        if not bad.any():
            return
        image = int(bad.any(-1).nonzero()[0]) // site.per_image
        why = "Look at the image, and at earlier sites."
        if torch.isfinite(value[image]).all():
            most = float(value[image].abs().max())
            why = f"{site.dtype} cannot hold {most:.3g}, which the model has there. Use dtype='bfloat16' or 'float32'."
        raise NotFinite(f"{site.name}: NaN or Inf at {self.describe(int(images[image]))}. {why}")


def reader(model: Any, images: Any) -> Read:
    """Pixels of some images, read when they are asked for."""
    if hasattr(images, "pixels_for"):
        if getattr(model, "preprocess", None) is None:
            raise BadData("this model has no image preprocessing; pass preprocess= to mechvis.load, or pixels.")
        return lambda part: images[part].pixels_for(model.preprocess)
    if not isinstance(images, Tensor):
        raise BadData(
            f"images must be an ImageSet or pixels [image channel height width], got {type(images).__name__}."
        )
    return lambda part: images[torch.from_numpy(part)]


def namer(images: Any) -> Callable[[int], str]:
    """What to call an image in an error."""
    ids = getattr(images, "ids", None)
    return (lambda i: f"image {i}") if ids is None else (lambda i: f"image {i} ({ids[i]})")


def images_at_once(model: Any, pixels: Tensor, sites: Sequence[SiteRows], budget: int) -> int:
    """Images per forward pass that fit a budget of bytes: a power of two.

    On a CPU no more than go through a block together fast (`mechvis.wave.rows_at_once`), on an accelerator no more than
    fill it: more would only take memory and make pieces longer.

    Raises:
        OutOfMemory: not even one image fits; says how much it needs.
    """
    element = model.dtype.itemsize
    captured = sum(int(np.prod(site.sizes)) * element + site.bytes_per_image for site in sites)
    # Three times the pixels: those in use, the same in the model's type, and those that are read ahead.
    each = sum(bytes_per_row(model.parts, element)) + captured + 3 * pixels[0].numel() * pixels.element_size()
    if each > budget:
        raise OutOfMemory(
            f"one image needs about {each / 2**20:.3g} MiB for pixels and activations, the budget is "
            f"{budget / 2**20:.3g} MiB. Raise budget=."
        )
    most = budget // each
    most = min(most, rows_at_once(model.parts, element) if model.device.type == "cpu" else MOST_AT_ONCE)
    return 1 << (int(most).bit_length() - 1)
