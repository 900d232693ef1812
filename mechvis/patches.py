"""Groups of patches: where in the image, and in which layer, lies what the output depends on?

    effects = mechvis.sweep(model, images, units="patches", groups="object", edit="mean_positional")
    patch_maps(effects)                                  # [image layer down across]

A unit is a group of tokens in the stream before a block (`blocks.{l}.hook_resid_pre`; layer 0 is the embedding), for
example the object's patches before layer 5. Groups are cells of a grid, object and background, superpixels or any
other label map, or lists of tokens; they may differ from image to image.

A patch belongs to the group that most of its pixels have; of two with equally many, to the one with the lower label
(the object before the background, and any label before "no label"). So groups from masks and label maps never share a
patch. Lists of tokens are taken as they are and may overlap (sliding windows). Prefix tokens (CLS, registers) belong to
no group unless a list names them.

An image in which a group has no patch has no effect for it: NaN, not counted in `n`.
"""

import hashlib
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ResultMismatch, ShapeMismatch
from mechvis.results import Result
from mechvis.units import Unit

logger = logging.getLogger(__name__)

NO_LABEL = -1
"""Negative labels mean "in no group"."""

COLUMN = "group_tokens"
"""Column of a result's images that lists the tokens of each group, where they differ from image to image."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Groups:
    """Named groups of tokens, the same in all images or one set per image. Made by :func:`patch_groups`."""

    names: tuple[str, ...]
    """Name of each group."""
    members: Bool[Tensor, "image group token"]
    """Which tokens are in it; one row if the groups are the same in all images."""
    grid: tuple[int, int]
    """Patches (down, across)."""
    n_prefix: int
    """Tokens before the patches."""
    per_image: bool
    """Do the groups differ between images?"""

    def __getitem__(self, chosen: Sequence[int]) -> "Groups":
        """The groups of some images."""
        return replace(self, members=self.members[list(chosen)]) if self.per_image else self

    def __len__(self) -> int:
        return len(self.names)

    def units(self, layer: int) -> list[Unit]:
        """One unit per group before block `layer`."""
        return [
            Unit(layer, "patches", i, name, None if self.per_image else self.tokens(i))
            for i, name in enumerate(self.names)
        ]

    def tokens(self, group: int, image: int = 0) -> tuple[int, ...]:
        """Token indices of a group (in an image, where they differ)."""
        return tuple(self.members[image if self.per_image else 0, group].nonzero().flatten().tolist())

    @property
    def fingerprint(self) -> str:
        """Hash of names and members."""
        digest = hashlib.sha256(repr((self.names, tuple(self.members.shape))).encode())
        digest.update(np.packbits(self.members.numpy()).tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        names = f"{', '.join(self.names[:4])}{' ...' if len(self) > 4 else ''}"
        where = f"of each of {len(self.members)} images" if self.per_image else "of every image"
        return f"Groups({len(self)}: {names}; {where}, {self.grid[0]} x {self.grid[1]} patches)"


def patch_groups(model: Any, images: Any, groups: Any) -> Groups:
    """Groups of patches from whatever says what they are.

    Args:
        model: a wrapped vision model.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        groups: one of
            `(down, across)`: a grid of so many cells, as even as the patches allow;
            `"object"`: object and background by the masks of the `ImageSet`;
            a bool array `[image height width]` or `[height width]` (for all images): the same by these masks;
            an integer array of the same shapes: a label map (superpixels); negative pixels are in no group;
            a mapping from names to lists of token indices, or to bool masks as above that do not overlap;
            a list of lists of token indices; or :class:`Groups`.
            Maps have the size of the pixels that the model sees, or one entry per patch.

    Raises:
        BadData: there are no masks, a named group covers no patch of any image, or two masks overlap.
        ShapeMismatch: maps of another size, or not one for each image.
        OutOfRange: a token that does not exist.

    Example:
        >>> patch_groups(model, images, (2, 2))                                                    # doctest: +SKIP
        Groups(4: cell 0,0, cell 0,1, cell 1,0, cell 1,1; of every image, 8 x 8 patches)
    """
    if model.parts.grid is None:
        raise BadData("groups of patches need a vision model; this tower reads text.")
    size = tuple(images.shape[2:]) if isinstance(images, Tensor) and images.ndim == 4 else model.parts.image_size
    place = _Place(model.parts.at_size(size), len(images))
    if isinstance(groups, Groups):
        found = groups
        if found.grid != place.grid or (found.per_image and len(found.members) != len(images)):
            raise ShapeMismatch(
                f"{found!r} do not fit {len(images)} images of {place.grid[0]} x {place.grid[1]} patches."
            )
        return found
    if isinstance(groups, str):
        found = place.of_labels(_object_labels(place, _masks(model, images, groups)), ("object", "background"))
    elif isinstance(groups, tuple) and len(groups) == 2 and all(isinstance(count, int) for count in groups):
        found = place.of_cells(*groups)
    elif isinstance(groups, Tensor | np.ndarray):
        found = _of_array(place, torch.as_tensor(groups))
    elif isinstance(groups, Mapping):
        found = _of_mapping(place, groups)
    elif isinstance(groups, Sequence) and groups and all(isinstance(entry, Sequence) for entry in groups):
        found = _of_mapping(place, {f"group {i}": tokens for i, tokens in enumerate(groups)})
    else:
        raise BadData(
            f"groups={groups!r}: expected a grid (down, across), 'object', masks or labels [image height width], or "
            "lists of tokens."
        )
    return found


class _Place:
    """Where patches are: from maps over pixels to members."""

    def __init__(self, parts: Any, n_images: int):
        self.size, self.grid, self.patch = parts.image_size, parts.grid, parts.patch_size
        self.n_images, self.n_prefix, self.n_tokens = n_images, len(parts.prefix), parts.n_tokens

    def groups(self, names: Sequence[str], patches: Bool[Tensor, "image group patch"]) -> Groups:
        """Groups without prefix tokens."""
        return self.checked(names, torch.nn.functional.pad(patches, (self.n_prefix, 0)))

    def checked(self, names: Sequence[str], members: Bool[Tensor, "image group token"]) -> Groups:
        """Groups of tokens, of which every one must hold something."""
        per_image = len(members) > 1
        empty = [name for name, found in zip(names, members.any(2).any(0).tolist(), strict=True) if not found]
        if empty:
            raise BadData(
                f"the group {empty[0]!r} covers no patch{' of any image' if per_image else ''}: it has the most pixels "
                "of none. Leave it out, or use finer patches or coarser groups."
            )
        return Groups(names=tuple(names), members=members, grid=self.grid, n_prefix=self.n_prefix, per_image=per_image)

    def of_cells(self, down: int, across: int) -> Groups:
        """Cells of a grid, as even as it goes."""
        if not (1 <= down <= self.grid[0] and 1 <= across <= self.grid[1]):
            raise BadData(f"a grid of {down} x {across} cells does not fit {self.grid[0]} x {self.grid[1]} patches.")
        rows = torch.arange(self.grid[0]) * down // self.grid[0]
        columns = torch.arange(self.grid[1]) * across // self.grid[1]
        labels = (rows[:, None] * across + columns).flatten()
        names = [f"cell {i},{j}" for i in range(down) for j in range(across)]
        return self.groups(names, (labels == torch.arange(down * across)[:, None])[None])

    def maps(self, array: Tensor, what: str) -> Tensor:
        """A map as `[image or 1, height, width]`, over pixels or over patches."""
        array = array.cpu()
        found = array[None] if array.ndim == 2 else array
        if found.ndim != 3 or tuple(found.shape[1:]) not in (self.size, self.grid):
            raise ShapeMismatch(
                f"{what} of shape {list(array.shape)}; expected [image height width] or [height width] with "
                f"{self.size[0]} x {self.size[1]} pixels, the size that the model sees (see "
                f"model.preprocess.masks), or one entry per patch ({self.grid[0]} x {self.grid[1]})."
            )
        if array.ndim == 3 and len(found) != self.n_images:
            raise ShapeMismatch(f"{what} for {len(found)} images; there are {self.n_images}.")
        return found

    def tiles(self, maps: Int[Tensor, "image height width"]) -> Int[Tensor, "image patch pixel"]:
        """The pixels of each patch."""
        if tuple(maps.shape[1:]) == self.grid:
            return maps.flatten(1)[..., None]
        (down, across), (high, wide) = self.grid, self.patch
        used = maps[:, : down * high, : across * wide]  # pixels beyond the last whole patch are read by none
        return rearrange(used, "image (down h) (across w) -> image (down across) (h w)", h=high, w=wide)

    def winners(self, maps: Int[Tensor, "image height width"], n_labels: int) -> Int[Tensor, "image patch"]:
        """The label of each patch: that of most of its pixels, of equals the lowest; `n_labels` means none."""
        tiles = self.tiles(maps)
        best = []
        for tile in tiles:  # one image at a time: counts are patches x labels
            counts = torch.zeros(len(tile), n_labels + 1, dtype=torch.int64)
            counts.scatter_add_(1, tile, torch.ones_like(tile))
            best.append(counts.argmax(1))
        return torch.stack(best)

    def of_labels(self, maps: Int[Tensor, "image height width"], names: Sequence[str]) -> Groups:
        """Groups from labels 0, 1, ... named in that order; `len(names)` is no label."""
        winners = self.winners(maps, len(names))
        patches = winners[:, None] == torch.arange(len(names))[:, None]
        return self.groups(names, patches)


def _masks(model: Any, images: Any, word: str) -> Tensor:
    if word != "object":
        raise BadData(f"groups={word!r}: the only word is 'object' (object and background by the images' masks).")
    if not isinstance(images, ImageSet) or images.read_mask is None:
        raise BadData(
            "groups='object' needs images with object masks, and these have none. Load them with masks=, or pass "
            "masks as a bool array [image height width]."
        )
    if model.preprocess is None:
        raise BadData("this model has no image preprocessing; pass preprocess= to mechvis.load, or masks as an array.")
    lots = [images[start : start + 64] for start in range(0, len(images), 64)]
    return torch.cat([lot.masks_for(model.preprocess) for lot in lots])


def _object_labels(place: _Place, masks: Tensor) -> Tensor:
    return (~place.maps(masks, "masks")).to(torch.int64)


def _of_array(place: _Place, array: Tensor) -> Groups:
    if array.dtype == torch.bool:
        return place.of_labels(_object_labels(place, array), ("object", "background"))
    if array.is_floating_point() or array.is_complex():
        nan = " with NaN" if torch.isnan(array).any() else ""
        raise BadData(f"a label map holds whole numbers, or True and False; got {array.dtype}{nan}.")
    maps = place.maps(array.to(torch.int64), "labels").clamp(min=NO_LABEL)
    known, dense = maps.unique(return_inverse=True)
    if bool(known[0] == NO_LABEL):
        known = known[1:]
        dense = torch.where(dense == 0, len(known), dense - 1)
    # Superpixels smaller than half a patch mostly win none: they are no units, and no mistake either.
    winners = place.winners(dense, len(known))
    seen = winners.unique()
    seen = seen[seen < len(known)]
    if not len(seen):
        raise BadData("the label map covers no patch: no label has the most pixels of any.")
    if len(seen) < len(known):
        logger.info(
            "%d of %d labels have the most pixels of no patch and are left out.", len(known) - len(seen), len(known)
        )
    names = [f"label {int(label)}" for label in known[seen]]
    return place.groups(names, winners[:, None] == seen[:, None])


def _of_mapping(place: _Place, groups: Mapping[str, Any]) -> Groups:
    if not groups:
        raise BadData("groups={} names no group.")
    names = [str(name) for name in groups]
    arrays = [isinstance(entry, Tensor | np.ndarray) and np.ndim(entry) >= 2 for entry in groups.values()]
    if all(arrays):
        return _of_masks(place, names, [torch.as_tensor(entry) for entry in groups.values()])
    if any(arrays):
        raise BadData("give all groups as masks, or all as lists of tokens.")
    members = torch.zeros(1, len(names), place.n_tokens, dtype=torch.bool)
    for i, (name, tokens) in enumerate(zip(names, groups.values(), strict=True)):
        try:
            chosen = [operator.index(token) for token in tokens]
        except TypeError as error:
            raise BadData(f"the group {name!r} holds {tokens!r}: expected token indices, or a bool mask.") from error
        if outside := [token for token in chosen if not 0 <= token < place.n_tokens]:
            raise OutOfRange(
                f"the group {name!r} has token {outside[0]}: there are 0 to {place.n_tokens - 1} ({place.n_prefix} "
                "prefix, then the patches row by row)."
            )
        members[0, i, chosen] = True
    return place.checked(names, members)


def _of_masks(place: _Place, names: Sequence[str], masks: Sequence[Tensor]) -> Groups:
    for name, mask in zip(names, masks, strict=True):
        if mask.dtype != torch.bool:
            raise BadData(f"the mask of {name!r} holds {mask.dtype}; masks are bool.")
    maps = torch.broadcast_tensors(
        *(place.maps(mask, f"the mask of {name!r}") for name, mask in zip(names, masks, strict=True))
    )
    labels = torch.full(maps[0].shape, len(names))
    for i, mask in enumerate(maps):
        both = mask & (labels < len(names))
        if both.any():
            image, row, column = (int(at) for at in both.nonzero()[0])
            other = names[int(labels[image, row, column])]
            raise BadData(
                f"the masks of {other!r} and {names[i]!r} overlap in image {image} at ({row}, {column}): a patch goes "
                "to the group with most of its pixels, so masks must not overlap. Cut one, or list tokens instead."
            )
        labels[mask] = i
    return place.of_labels(labels, names)


def patch_maps(result: Result, metric: str | None = None) -> Float[np.ndarray, "image layer down across"]:
    """Effects of a sweep over patches or tokens as maps over the image.

    Args:
        result: of a sweep with `units="patches"` or `units="tokens"`.
        metric: default: the first.

    Returns:
        Float64, in the metric's unit: for each image, layer (the index is its number) and patch the effect of the group
        that holds the patch; the mean of them where several do. NaN where none does, and in layers that were not swept.
        Prefix tokens have no place in it.

    Raises:
        ResultMismatch: the result is of other units.
        UnknownName: no such metric.

    Example:
        >>> maps = patch_maps(effects)                                                             # doctest: +SKIP
        >>> mechvis.plots.patch_map(pictures, maps, label="effect on logit_diff")                  # doctest: +SKIP
    """
    rows = result.rows(metric)
    values = result.values[rows["metric"][0]]
    facts = (result.provenance.get("sweep") or {}).get("patches")
    if facts is None:
        raise ResultMismatch(f"{result.title!r} is no sweep over patches or tokens; it has no place in the image.")
    (down, across), n_prefix, n_images = facts["grid"], facts["prefix"], values.shape[1]
    total, count = np.zeros((2, n_images, facts["layers"], down * across))
    for row, effects in zip(rows.iter_rows(named=True), values, strict=True):
        mask = _holds(row, facts, result.images, n_images)
        if mask is not None:
            mask = mask[:, n_prefix:] & np.isfinite(effects)[:, None]
            total[:, row["layer"]] += np.where(mask, effects[:, None], 0)
            count[:, row["layer"]] += mask
    maps = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return rearrange(maps, "image layer (down across) -> image layer down across", down=down)


def _holds(row: dict[str, Any], facts: dict[str, Any], images: Any, n_images: int) -> np.ndarray | None:
    """Which tokens a row of the table is about, bool `[image token]`; None if it is about no tokens."""
    mask = np.zeros((n_images, facts["prefix"] + facts["grid"][0] * facts["grid"][1]), bool)
    if row.get("token") is not None:
        mask[:, row["token"]] = True
    elif row.get("group") is None:
        return None
    elif facts["groups"] is not None:
        mask[:, facts["groups"][row["group"]]] = True
    else:
        place = facts["names"].index(row["group"])
        for image, tokens in enumerate(images[COLUMN].to_list()):
            mask[image, tokens[place]] = True
    return mask


def where(units: Sequence[Unit], groups: Groups | None, parts: Any) -> dict[str, Any] | None:
    """What :func:`patch_maps` needs to know of a sweep, as JSON can hold it; None for other units."""
    if not any(unit.kind in ("tokens", "patches") for unit in units):
        return None
    fixed = {unit.group: list(unit.tokens) for unit in units if unit.kind == "patches" and unit.tokens is not None}
    per_image = groups is not None and groups.per_image
    return {
        "grid": list(parts.grid),
        "prefix": len(parts.prefix),
        "layers": len(parts.blocks),
        "groups": None if per_image else fixed,
        "names": list(groups.names) if groups is not None else [],
    }
