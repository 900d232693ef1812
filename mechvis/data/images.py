"""A set of images with what is known about them: labels, masks, groups, captions.

One type for every source (image folder, Hugging Face data set, procedural scenes), so that sweeps and studies do not
care where images come from. Pixels are read when asked for; a set of a million files costs its names only.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from mechvis.axes import Mask, Pixels
from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, OutOfRange, SplitOverlap


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images, read lazily, with labels, object masks, groups and captions where they exist."""

    name: str
    """What to call it in tables and reports."""
    ids: tuple[str, ...]
    """One name per image, unique inside the source: a relative path, or `scenes/7/000012`."""
    read: Callable[[int], np.ndarray] = field(repr=False)
    """Image `i` of the source as uint8 `[height width channel]`."""
    rows: np.ndarray = field(repr=False)
    """Which images of the source this set holds, in order: int64 `[image]`."""
    labels: np.ndarray | None = field(default=None, repr=False)
    """Class index per image, int64 `[image]`; None when nothing is known."""
    class_names: tuple[str, ...] = ()
    """Name of each class index."""
    read_mask: Callable[[int], np.ndarray] | None = field(default=None, repr=False)
    """Object mask of image `i` of the source, bool `[height width]`, True on the object."""
    groups: np.ndarray | None = field(default=None, repr=False)
    """Group name per image (for worst-group accuracy), str `[image]`."""
    captions: tuple[str, ...] | None = field(default=None, repr=False)
    """One caption per image."""
    columns: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Anything else that is known per image."""
    preprocess: Preprocess | None = field(default=None, repr=False)
    """Used by :attr:`pixels` when no model is at hand; studies use the model's own."""
    recipe: str = ""
    """If the images are generated: text that fixes them bit by bit. It stands in for their content in the hash."""
    skipped: tuple[str, ...] = ()
    """Images of the source that were left out because they cannot be decoded (only on request)."""

    def __post_init__(self):
        n = len(self.ids)
        if n == 0:
            raise BadData(f"the image set {self.name!r} is empty.")
        for what, column in {
            "rows": self.rows,
            "labels": self.labels,
            "groups": self.groups,
            "captions": self.captions,
            **self.columns,
        }.items():
            if column is not None and len(column) != n:
                raise BadData(f"{self.name!r}: {n} images but {len(column)} entries in {what!r}.")
        if len(set(self.ids)) != n:
            raise BadData(f"{self.name!r}: image ids repeat, {n} images but {len(set(self.ids))} different ids.")
        if self.labels is not None and self.class_names:
            low, high = int(np.min(self.labels)), int(np.max(self.labels))
            if low < 0 or high >= len(self.class_names):
                raise BadData(
                    f"{self.name!r}: labels from {low} to {high}, but class names for 0 to {len(self.class_names) - 1}."
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "ImageSet":
        """A subset by slice, index list or bool mask (the order given is kept)."""
        if isinstance(index, slice):
            chosen = np.arange(len(self))[index]
        else:
            chosen = np.asarray(index)
            if chosen.dtype == bool:
                if len(chosen) != len(self):
                    raise BadData(f"a bool selection needs {len(self)} entries, got {len(chosen)}.")
                chosen = chosen.nonzero()[0]
            if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
                raise BadData(f"images are chosen by slice, whole numbers or a bool mask, got {chosen.dtype} values.")
            chosen = np.atleast_1d(chosen).astype(np.int64)
            outside = chosen[(chosen < -len(self)) | (chosen >= len(self))]
            if len(outside):
                raise OutOfRange(
                    f"image index {int(outside[0])} in a set of {len(self)}: valid are {-len(self)} to {len(self) - 1}."
                )
        if len(chosen) == 0:
            raise BadData(f"the selection from {self.name!r} holds no image.")
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            rows=self.rows[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            captions=None if self.captions is None else tuple(self.captions[i] for i in chosen),
            columns={name: column[chosen] for name, column in self.columns.items()},
        )

    def raw(self) -> list[np.ndarray]:
        """All images as uint8 `[height width channel]`, one array each."""
        return [self.read(int(row)) for row in self.rows]

    def pixels_for(self, preprocess: Preprocess) -> Pixels:
        """All images as pixels for a model with this preprocessing."""
        return preprocess(self.raw())

    @property
    def pixels(self) -> Pixels:
        """All images preprocessed with the set's own preprocessing.

        Raises:
            BadData: the set has none; use `images.pixels_for(model.preprocess)`.
        """
        if self.preprocess is None:
            raise BadData(
                f"{self.name!r} has no preprocessing of its own. Use images.pixels_for(model.preprocess), "
                "or build the set with preprocess=model.preprocess."
            )
        return self.pixels_for(self.preprocess)

    def masks_for(self, preprocess: Preprocess) -> Mask:
        """Object masks through the same geometry as :meth:`pixels_for`."""
        if self.read_mask is None:
            raise BadData(f"{self.name!r} has no masks. Pass masks= to the loader, or use mask_source='optimised'.")
        return preprocess.masks([self.read_mask(int(row)) for row in self.rows])

    @property
    def masks(self) -> Mask:
        """Object masks with the set's own preprocessing."""
        if self.preprocess is None:
            raise BadData(f"{self.name!r} has no preprocessing of its own. Use images.masks_for(model.preprocess).")
        return self.masks_for(self.preprocess)

    @property
    def label_tensor(self) -> torch.Tensor:
        """Labels as an int64 tensor `[image]`."""
        if self.labels is None:
            raise BadData(f"{self.name!r} has no labels. Give class folders or a metadata table with a label column.")
        return torch.as_tensor(self.labels, dtype=torch.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the images are: ids, labels, groups, captions, and content of images and masks (or recipe)."""
        digest = hashlib.sha256()
        known = [None if column is None else np.asarray(column).tolist() for column in (self.labels, self.groups)]
        digest.update(repr((self.ids, self.class_names, self.recipe, self.read_mask is not None, known)).encode())
        digest.update(repr(self.captions).encode())
        for row in () if self.recipe else self.rows:
            for read in (self.read, self.read_mask):
                if read is not None:
                    content = read(int(row))
                    digest.update(str(content.shape).encode())
                    digest.update(np.ascontiguousarray(content).tobytes())
        return digest.hexdigest()[:16]

    def split(self, *fractions: float, seed: int) -> tuple["ImageSet", ...]:
        """Disjoint random parts, stratified by group (else by label), e.g. `images.split(0.5, 0.25, 0.25, seed=0)`.

        Args:
            fractions: share of each part; they sum to at most 1.
            seed: fixes who goes where.

        Raises:
            BadData: the fractions are impossible, or a part would be empty.
        """
        if any(f <= 0 for f in fractions) or sum(fractions) > 1 + 1e-9:
            raise BadData(f"split fractions must be positive and sum to at most 1, got {fractions}.")
        strata = self.groups if self.groups is not None else self.labels
        strata = np.zeros(len(self), int) if strata is None else np.asarray(strata)
        generator = np.random.default_rng(seed)
        parts: list[list[int]] = [[] for _ in fractions]
        for stratum in np.unique(strata):
            members = generator.permutation(np.flatnonzero(strata == stratum))
            bounds = np.round(np.cumsum((0.0, *fractions)) * len(members)).astype(int)
            for part, start, stop in zip(parts, bounds[:-1], bounds[1:], strict=True):
                part.extend(members[start:stop])
        for fraction, part in zip(fractions, parts, strict=True):
            if not part:
                raise BadData(
                    f"a part of {fraction:g} of the {len(self)} images of {self.name!r} would be empty "
                    f"(split within {len(np.unique(strata))} labels or groups). Use more images."
                )
        return tuple(self[np.sort(np.array(part, dtype=np.int64))] for part in parts)

    def __repr__(self) -> str:
        known = [f"{len(self.class_names)} classes" if self.labels is not None else "no labels"]
        known += ["masks"] if self.read_mask is not None else []
        known += [f"{len(np.unique(self.groups))} groups"] if self.groups is not None else []
        known += ["captions"] if self.captions is not None else []
        known += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"ImageSet({self.name!r}, {len(self)} images, {', '.join(known)})"

    def _repr_html_(self) -> str:
        from mechvis.show import images, safely

        return safely(images, self)


def refuse_overlap(first: ImageSet, second: ImageSet, *, what: str) -> None:
    """Raise if two sets that must be disjoint share an image.

    Two images are the same if their ids are equal and so is their content, so that two folders that both number
    their files do not collide. Generated images are fixed by their ids and are not drawn for the comparison.

    Raises:
        SplitOverlap: names how many and which; `what` says why they must be disjoint.
    """
    rows = dict(zip(second.ids, second.rows, strict=True))
    generated = bool(first.recipe and second.recipe)

    def same(row: int, other: int) -> bool:
        known = generated or (first.read is second.read and row == other)
        return known or np.array_equal(first.read(row), second.read(other))

    pairs = ((name, int(row), rows.get(name)) for name, row in zip(first.ids, first.rows, strict=True))
    shared = [name for name, row, other in pairs if other is not None and same(row, int(other))]
    if shared:
        some = ", ".join(shared[:3]) + (" ..." if len(shared) > 3 else "")
        raise SplitOverlap(
            f"{what} must not share images: {len(shared)} in both ({some}). "
            "Use images.split(...), or allow_overlap=True if you know why."
        )
