"""Pairs of base and source images, drawn inside one split, with a labelled variable on both sides.

A source may be asked to share something with its base (`within`: the background, the object), so that the variable is
what differs, as in the clean/corrupt pairs of methods.md 5.8.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Pairs: row `i` is one interchange."""

    base: Int[Tensor, " pair"] = field(repr=False)
    """Image that is changed."""
    source: Int[Tensor, " pair"] = field(repr=False)
    """Image that the subspace is taken from; never the base itself."""

    def __len__(self) -> int:
        return len(self.base)


class Drawer:
    """Draws pairs from one split. Its own generator: nothing of the process is touched.

    Args:
        images: positions of the split's images.
        within: one name per image of the whole set; a source shares its base's. None: any two images.
        seed: fixes the draws.

    Raises:
        BadData: no image has a partner.

    Example:
        >>> pairs = Drawer(torch.arange(4), seed=0).draw(10)
        >>> bool((pairs.base != pairs.source).all())
        True
    """

    def __init__(self, images: Int[Tensor, " image"], *, within: Any = None, seed: int = 0):
        names = np.zeros(len(images), dtype=int) if within is None else _names(within, images)
        order = np.argsort(names, kind="stable")
        _, start, size = np.unique(names[order], return_index=True, return_counts=True)
        paired = np.repeat(size, size) > 1
        if not paired.any():
            raise BadData(f"none of the {len(images)} images has a partner to draw a source from; see within=.")
        self.images = images[torch.from_numpy(order)]
        self.start, self.size = (torch.from_numpy(np.repeat(x, size)) for x in (start, size))
        self.bases = torch.from_numpy(np.flatnonzero(paired))
        self.alone = int((~paired).sum())
        """Images without a partner: never drawn."""
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, n: int) -> Draws:
        """Random pairs, each base equally likely, each other image of its group equally likely as its source."""
        return self._pairs(self.bases[torch.randint(0, len(self.bases), (n,), generator=self.generator)])

    def rounds(self, n: int) -> Draws:
        """At least `n` pairs in which every image is a base equally often: for evaluation."""
        return self._pairs(self.bases.repeat(max(1, -(-n // len(self.bases)))))

    def _pairs(self, base: Tensor) -> Draws:
        start, size = self.start[base], self.size[base]
        step = 1 + (torch.rand(len(base), generator=self.generator, dtype=torch.float64) * (size - 1)).long()
        # A step of 1 to size - 1 around the group never comes back to the base.
        source = start + (base - start + step) % size
        return Draws(base=self.images[base], source=self.images[source])


def _names(within: Any, images: Tensor) -> np.ndarray:
    names = np.asarray(within)
    if names.ndim != 1 or len(names) <= int(images.max()):
        raise ShapeMismatch(
            f"within= needs one name per image: {list(names.shape)} for images up to {int(images.max())}."
        )
    return np.unique(names[images.numpy()], return_inverse=True)[1]
