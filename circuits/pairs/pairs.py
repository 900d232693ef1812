"""Clean and corrupt images that are aligned token by token: what patching compares.

Row `i` of both halves is one pair. A constructor (the other files of this folder) says how the corrupt half came about;
:func:`circuits.pairs.check_pairs` says whether the model tells the halves apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mechvis.axes import Labels, Mask, Pixels
from mechvis.errors import BadData, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Preprocessed clean and corrupt images, aligned token by token.

    Raises:
        ShapeMismatch: halves, labels, masks or ids that do not fit each other.
        BadData: no pair, or ids that repeat.
    """

    name: str
    """How the corrupt half was made, e.g. `object swap`."""
    clean: Pixels = field(repr=False)
    """Preprocessed for the model."""
    corrupt: Pixels = field(repr=False)
    """Preprocessed for the model."""
    ids: tuple[str, ...] = field(repr=False)
    """One name per pair, unique."""
    clean_labels: Labels | None = field(default=None, repr=False)
    """Class of each clean image; None: the model's prediction counts."""
    corrupt_labels: Labels | None = field(default=None, repr=False)
    """Class of each corrupt image; None: the model's prediction counts."""
    masks: Mask | None = field(default=None, repr=False)
    """Object of the clean image, at the model's resolution, True on the object."""
    corrupt_masks: Mask | None = field(default=None, repr=False)
    """Object of the corrupt image."""
    class_names: tuple[str, ...] = ()
    """Name of each class index."""

    def __post_init__(self):
        n = len(self.clean)
        if n == 0:
            raise BadData(f"the pairs {self.name!r} are empty.")
        if self.clean.shape != self.corrupt.shape:
            raise ShapeMismatch(
                f"{self.name!r}: clean images are {list(self.clean.shape)}, corrupt ones {list(self.corrupt.shape)}. "
                "Pairs are aligned token by token, so both halves need one shape."
            )
        others = {
            "ids": self.ids,
            "clean_labels": self.clean_labels,
            "corrupt_labels": self.corrupt_labels,
            "masks": self.masks,
            "corrupt_masks": self.corrupt_masks,
        }
        for what, values in others.items():
            if values is not None and len(values) != n:
                raise ShapeMismatch(f"{self.name!r}: {n} pairs but {len(values)} entries in {what}.")
        if len(set(self.ids)) != n:
            raise BadData(f"{self.name!r}: ids repeat, {n} pairs but {len(set(self.ids))} different ids.")

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "Pairs":
        """Some pairs, by slice, index list or bool mask."""
        chosen = index if isinstance(index, slice) else torch.as_tensor(np.asarray(index))
        if not isinstance(chosen, slice) and not chosen.numel():
            raise BadData(f"the selection from {self.name!r} holds no pair.")
        rows = torch.arange(len(self))[chosen].reshape(-1)

        def at(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        return replace(
            self,
            clean=at(self.clean),
            corrupt=at(self.corrupt),
            ids=tuple(self.ids[int(row)] for row in rows),
            clean_labels=at(self.clean_labels),
            corrupt_labels=at(self.corrupt_labels),
            masks=at(self.masks),
            corrupt_masks=at(self.corrupt_masks),
        )

    def reversed(self) -> "Pairs":
        """Clean and corrupt exchanged: denoising instead of noising."""
        return replace(
            self,
            name=f"{self.name}, reversed",
            clean=self.corrupt,
            corrupt=self.clean,
            clean_labels=self.corrupt_labels,
            corrupt_labels=self.clean_labels,
            masks=self.corrupt_masks,
            corrupt_masks=self.masks,
        )

    def halves(self, seed: int = 0) -> tuple["Pairs", "Pairs"]:
        """Two disjoint random halves, for stability.

        Raises:
            BadData: fewer than two pairs.
        """
        if len(self) < 2:
            raise BadData(f"{self.name!r}: {len(self)} pair cannot be split in two halves.")
        order = np.random.default_rng(seed).permutation(len(self))
        middle = len(self) // 2
        return self[np.sort(order[:middle])], self[np.sort(order[middle:])]

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels, labels and ids."""
        digest = hashlib.sha256(repr((self.name, self.ids)).encode())
        for values in (self.clean, self.corrupt, self.clean_labels, self.corrupt_labels):
            if values is not None:
                digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]
