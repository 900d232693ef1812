"""One pass over the images: batches with chosen sites, the final stream, and the model's own answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.cache import Cache
from mechvis.engine import budget_bytes
from mechvis.errors import BadData, NotFinite
from mechvis.models.parts import TowerParts
from mechvis.store.forward import Read, images_at_once, reader
from mechvis.store.rows import one_image, rows_at

_STREAMS = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
"""What can be read like a last stream: the stream, and what is added to it. What a norm has been at cannot."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one forward pass shows."""

    part: np.ndarray
    """Positions of the images."""
    cache: Cache
    """The captured sites, `[image token d_model]` each."""
    output: Tensor
    """The model's answer `[image class]`."""
    last: Tensor
    """The stream after the last block."""
    pixels: Tensor
    """The images as they were read."""

    def digests(self) -> np.ndarray:
        """One number per image that tells its pixels from others, uint64: to notice images that are used twice."""
        rows = self.pixels.detach().cpu().float().numpy()
        return np.array([int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest()) for row in rows], np.uint64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """Images through a model in batches that fit the budget; iterate for :class:`Batch`."""

    model: Any
    """A wrapped image tower."""
    read: Read
    """Pixels by position."""
    sites: tuple[str, ...]
    """What is captured: sites `[image token d_model]`, in the order in which they fire."""
    parts: TowerParts
    """The model's parts at the size of the images."""
    at_once: int
    """Images per batch."""
    n: int
    """Images."""

    @classmethod
    def over(cls, model: Any, images: Any, sites: str | Sequence[str], budget: str | int | None) -> "Batches":
        """Plan a pass.

        Raises:
            UnknownSite: a pattern matches nothing.
            BadData: a site that does not have the tokens and the width of the stream.
            OutOfMemory: not even one image fits.
        """
        read, first = reader(model, images), one_image(model, images)
        parts, graph = model._for_size(tuple(first.shape[2:]))
        names = tuple(dict.fromkeys(graph.match(sites)))
        for name in names:
            site = graph[name]
            if tuple(site.axes[1:]) != ("token", "d_model") or not name.endswith(_STREAMS):
                raise BadData(
                    f"a lens reads sites [image token d_model]; {name} is [{' '.join(site.axes)}]. Use "
                    "blocks.*.hook_resid_pre, hook_resid_mid, hook_resid_post, hook_attn_out or hook_mlp_out."
                )
        captured = rows_at(model, first, [*names, _last(parts)], n_images=len(images), tokens="all", dtype=None, seed=0)
        at_once = images_at_once(model, first, list(captured), budget_bytes(budget, model.device))
        return cls(model=model, read=read, sites=names, parts=parts, at_once=at_once, n=len(images))

    @torch.no_grad()
    def batch(self, part: np.ndarray) -> Batch:
        """Some of the images, by their positions.

        Raises:
            NotFinite: NaN or Inf in an output; names the image.
        """
        model, last = self.model, _last(self.parts)
        pixels = self.read(part)
        inputs = pixels.to(model.device, model.dtype)
        run = model.run(inputs, capture=list(dict.fromkeys([*self.sites, last])), check_finite=False)
        bad = ~torch.isfinite(run.output).flatten(1).all(1)
        if bad.any():
            raise NotFinite(f"the model's answer to image {int(part[int(bad.nonzero()[0])])} is NaN or Inf.")
        return Batch(part=part, cache=run.cache, output=run.output, last=run.cache[last], pixels=pixels)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.n, self.at_once):
            yield self.batch(np.arange(start, min(start + self.at_once, self.n)))


def _last(parts: TowerParts) -> str:
    return f"blocks.{len(parts.blocks) - 1}.hook_resid_post"
