"""The batches of a store without the store: rows are computed when a pool is filled, and forgotten afterwards.

For image sets whose activations no disk holds. A stream and a store of the same images, tokens and seeds hand out the
same rows in the same order if their blocks are the same (`block=`); the numbers agree up to rounding, since other
images share a forward pass. By default a block is one image, so that the order of the images does not matter at all.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.engine import budget_bytes
from mechvis.errors import BadData, ShapeMismatch
from mechvis.store.forward import Forward, images_at_once, namer, reader
from mechvis.store.reader import BUFFER, Reader
from mechvis.store.rows import SiteRows, one_image, rows_at
from mechvis.store.tokens import canonical
from mechvis.sweep_inputs import _identity


class Live:
    """A model and its images as a source of rows."""

    def __init__(self, forward: Forward, n_images: int, block: int, batch: int, settings: Mapping[str, Any]):
        self.forward, self.n_images, self.block, self.batch = forward, n_images, block, batch
        self.settings = {**settings, "block": block, "batch": batch}

    @property
    def sites(self) -> Mapping[str, SiteRows]:
        """The sites."""
        return self.forward.sites

    @property
    def blocks(self) -> np.ndarray:
        """First image and the one after the last, of each block."""
        starts = np.arange(0, self.n_images, self.block)
        return np.stack([starts, np.minimum(starts + self.block, self.n_images)], axis=1)

    def fill(self, images: np.ndarray, into: Mapping[str, Tensor]) -> None:
        """Compute the rows of images, `batch` of them at a time."""
        torch.get_num_threads()  # a new thread computes with as many threads as the others only once it was asked
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            for name, rows in self.forward.rows(part).items():
                at = start * self.sites[name].per_image
                into[name][at : at + len(rows)] = rows


def stream(
    model: Any,
    images: Any,
    sites: str | Sequence[str],
    *,
    tokens: str | int = "all",
    dtype: Any = None,
    size: int = 4096,
    seed: int = 0,
    epoch: int = 0,
    epochs: int = 1,
    part: tuple[int, int] = (0, 1),
    buffer: str | int = BUFFER,
    drop_last: bool = False,
    prefetch: bool = True,
    block: int = 1,
    batch: int | None = None,
    budget: str | int | None = None,
) -> Reader:
    """Shuffled batches of rows, computed on the way: what `Store.batches` gives, without a disk.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`, or pixels.
        sites: names or patterns; their rows must be about the same tokens.
        tokens: which tokens become rows, as in :func:`mechvis.harvest`; drawn tokens are the same in every epoch.
        dtype: type of the rows: None for the model's own.
        size: rows per batch.
        seed: of the order, and of tokens that are drawn.
        epoch: number of the first epoch.
        epochs: how many.
        part: `(rank, ranks)`: of each batch only this rank's share; every rank computes all rows.
        buffer: memory for two pools of rows.
        drop_last: leave out the rows at the end of an epoch that fill no batch.
        prefetch: compute the next pool in a thread while this one is used.
        block: images that stay together in the order; `store[site].block` gives the order of a store.
        batch: images per forward pass. It fixes the last bits, so it is part of a position; by default what fits
            `budget`.
        budget: memory for pixels and activations.

    Raises:
        UnknownSite, BadData, ShapeMismatch, OutOfMemory; NotFinite on the way, naming site and image.

    Example:
        >>> for batch in stream(model, images, "blocks.2.hook_resid_post", size=4096):     # doctest: +SKIP
        ...     loss = train(batch.x)
    """
    read, first = reader(model, images), one_image(model, images)
    found = rows_at(model, first, sites, n_images=len(images), tokens=tokens, dtype=dtype, seed=seed)
    for site in found[1:]:
        if site.tokens != found[0].tokens:
            raise ShapeMismatch(
                f"rows of {site.name} and {found[0].name} are not about the same tokens: {site.per_image} and "
                f"{found[0].per_image} per image. Stream them one by one."
            )
    if block < 1 or (batch is not None and batch < 1):
        raise BadData(f"block={block}, batch={batch}: both are numbers of images, at least 1.")
    at_once = images_at_once(model, first, found, budget_bytes(budget, model.device)) if batch is None else batch
    forward = Forward(model=model, read=read, sites={site.name: site for site in found}, describe=namer(images))
    settings = {
        "model": model.fingerprint,
        "images_named": _names(images),
        "site_hashes": [site.fingerprint for site in found],
        "dtype": found[0].dtype,
        "tokens": canonical(tokens),
    }
    return Reader(
        Live(forward, len(images), block, at_once, settings),
        size=size,
        seed=seed,
        epoch=epoch,
        epochs=epochs,
        part=part,
        buffer=buffer,
        drop_last=drop_last,
        prefetch=prefetch,
    )


def _names(images: Any) -> str:
    """What a set is, by the names of its images: hashing what a hundred million images look like would read them all
    once more."""
    if not hasattr(images, "ids"):
        return _identity(images)
    known = hashlib.sha256(repr((images.name, images.recipe, len(images))).encode())
    for name in images.ids:
        known.update(name.encode() + b"\0")
    return known.hexdigest()[:16]
