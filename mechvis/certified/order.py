"""Which images are drawn first: one random order for all units, and how far into it each round goes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mechvis.certified.bounds import FIRST
from mechvis.errors import ShapeMismatch


def draw(n_images: int, strata: Sequence[Any] | np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """All images in a random order of which every prefix holds each stratum in proportion, as nearly as possible.

    Args:
        n_images: how many.
        strata: class of each image; None: a plain random order.
        seed: of the order.

    Returns:
        Positions int64 `[image]`.

    Example:
        >>> order = draw(80, np.arange(80) % 4, seed=1)
        >>> np.bincount(order[:8] % 4).tolist(), len(set(order.tolist()))
        ([2, 2, 2, 2], 80)
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(n_images)
    if strata is None:
        return order
    _, of = np.unique(np.asarray(strata), return_inverse=True)
    if len(of) != n_images:
        raise ShapeMismatch(f"{n_images} images but {len(of)} strata.")
    # Systematic: the j-th of a stratum's m images lies at (j + offset) / m, one random offset for each stratum.
    offset, sizes = generator.random(of.max() + 1), np.bincount(of)
    rank = np.empty(n_images, dtype=np.int64)
    grouped = order[np.argsort(of[order], kind="stable")]
    rank[grouped] = np.arange(n_images) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.argsort(((rank + offset[of]) / sizes[of])[order], kind="stable")]


def schedule(n_images: int, max_images: int | None = None, first: int = FIRST) -> list[int]:
    """Images drawn after each round: doubling from `first`, up to `max_images` (default: all).

    Example:
        >>> schedule(600)
        [64, 128, 256, 512, 600]
    """
    most = n_images if max_images is None else min(max_images, n_images)
    found = []
    while first < most:
        found.append(first)
        first *= 2
    return [*found, most]
