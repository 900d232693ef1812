"""What a row of a store is: which sites, which axes become the vector, which tokens, in which type.

A row is one token of one image at one site: a vector of everything else that the site has. Heads are laid side by side,
`[head d_head]` flattened, since dictionaries read vectors; `SiteRows.unflatten` gives the axes back. Attention patterns
and scores have one row per query token. A site without a token axis (pooled, embedding, logits, attention pooling) has
one row per image, whatever tokens were asked for.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mechvis.errors import BadData, BadImages, unknown
from mechvis.files import canonical_json, safe_name
from mechvis.store.tokens import WHOLE_IMAGE, Tokens, select

DTYPES = {
    "float64": (torch.float64, "F64"),
    "float32": (torch.float32, "F32"),
    "float16": (torch.float16, "F16"),
    "bfloat16": (torch.bfloat16, "BF16"),
}
"""Types of a store: torch's and that of the safetensors format."""

BLOCK = 2**20
"""Bytes of a block, about: what is read at once and checked at once. Large enough that reading blocks in any order is
as fast as reading the file, small enough that a pool of some hundred MB holds hundreds of places of the data set."""
BLOCKS = 64
"""Blocks at least, if there are images enough: a small set is shuffled as well as a large one."""

_TOKEN_AXES = ("token", "query", "patch")


@dataclass(frozen=True, kw_only=True)
class SiteRows:
    """The rows of one site."""

    name: str
    """Canonical name of the site."""
    axes: tuple[str, ...]
    """The site's own axes, without the first one (the image)."""
    sizes: tuple[int, ...]
    """Their sizes."""
    dtype: str
    """Type of the numbers on disk."""
    tokens: Tokens
    """Which tokens become rows."""
    available: tuple[int, ...]
    """Token index of each entry of the site's token axis; nothing if it has none."""
    images_per_block: int
    """Images that are read and checked together: a power of two, so that blocks of sites of different width nest."""

    @property
    def token_axis(self) -> str | None:
        """The axis that rows run along, besides the images."""
        return next((axis for axis in _TOKEN_AXES if axis in self.axes), None) if self.available else None

    @property
    def kept(self) -> dict[str, int]:
        """Axes that make up a row's vector, with sizes, in order."""
        sizes = dict(zip(self.axes, self.sizes, strict=True))
        return {axis: size for axis, size in sizes.items() if axis != self.token_axis}

    @property
    def width(self) -> int:
        """Numbers per row."""
        return prod(self.kept.values())

    @property
    def per_image(self) -> int:
        """Rows per image."""
        return self.tokens.per_image

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the numbers on disk, as torch has it."""
        return DTYPES[self.dtype][0]

    @property
    def bytes_per_image(self) -> int:
        """Size on disk of one image's rows."""
        return self.per_image * self.width * self.torch_dtype.itemsize

    @property
    def folder(self) -> str:
        """Name of the site's folder in a store."""
        return safe_name(self.name)

    @property
    def fingerprint(self) -> str:
        """Hash of what a row is, apart from model and images."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()[:16]

    def rows_of(self, value: Tensor, images: np.ndarray) -> Tensor:
        """Rows `[image*row width]` of an activation `[image ...]`, in the type of the store, where the activation is.

        Args:
            value: the activation, with all axes of the site.
            images: which images these are (tokens may be drawn for each).
        """
        if self.token_axis is None:
            return value.flatten(1).to(self.torch_dtype)
        kept = " ".join(self.kept)
        value = rearrange(value, f"image {' '.join(self.axes)} -> image {self.token_axis} {kept}")
        if (fixed := self.tokens.fixed) is not None:
            value = _taken(value, self._places(fixed))
        else:
            places = torch.from_numpy(self._places(self.tokens.of(images))).to(value.device)
            value = value[torch.arange(len(value), device=value.device)[:, None], places]
        return rearrange(
            value.to(self.torch_dtype), f"image {self.token_axis} {kept} -> (image {self.token_axis}) ({kept})"
        )

    def unflatten(self, rows: Tensor) -> Tensor:
        """Rows `[row width]` with the site's own axes: `[row head d_head]` for a site that has heads."""
        return rows.reshape(*rows.shape[:-1], *self.kept.values())

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "name": self.name,
            "axes": self.axes,
            "sizes": self.sizes,
            "dtype": self.dtype,
            "available": self.available,
            "tokens": [{"of": group, "per_image": count} for group, count in self.tokens.groups],
            "seed": self.tokens.seed,
            "images_per_block": self.images_per_block,
        }

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> "SiteRows":
        """From the manifest."""
        groups = tuple((tuple(group["of"]), group["per_image"]) for group in known["tokens"])
        return cls(
            name=known["name"],
            axes=tuple(known["axes"]),
            sizes=tuple(known["sizes"]),
            dtype=known["dtype"],
            available=tuple(known["available"]),
            tokens=Tokens(groups, known["seed"]),
            images_per_block=known["images_per_block"],
        )

    def _places(self, tokens: np.ndarray) -> np.ndarray:
        """Where on the site's token axis tokens are."""
        return np.searchsorted(self.available, tokens)


def rows_at(
    model: Any, image: Tensor, sites: str | Sequence[str], *, n_images: int, tokens: str | int, dtype: Any, seed: int
) -> list[SiteRows]:
    """What the rows of some sites are, found out by running one image.

    Args:
        model: a wrapped image tower.
        image: pixels `[1 channel height width]`.
        sites: names or patterns.
        n_images: images in the set.
        tokens: a selection, see `mechvis.store.tokens`.
        dtype: type on disk; None: the model's own.
        seed: of tokens that are drawn.

    Raises:
        UnknownSite: a pattern matches nothing.
        BadData: tokens that a site does not have.
        UnknownName: not a type of a store.
    """
    dtype = str(model.dtype if dtype is None else dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    names = model.graph.match(sites)
    if not names:
        raise BadData("no sites: name at least one, e.g. 'blocks.2.hook_resid_post'.")
    parts, graph = model._for_size(tuple(image.shape[2:]))
    cache = model.run(image, capture=names, stop_when_captured=True).cache
    chosen = select(tokens, prefix=parts.prefix, n_tokens=parts.n_tokens, seed=seed)
    found = []
    for name in names:
        axes, sizes = graph.sites[name].axes[1:], tuple(cache[name].shape[1:])
        available = _available(parts, dict(zip(axes, sizes, strict=True)))
        site = SiteRows(
            name=name,
            axes=axes,
            sizes=sizes,
            dtype=dtype,
            tokens=_at_site(name, chosen, tokens, available, parts.prefix),
            available=available,
            images_per_block=1,
        )
        most = max(1, min(BLOCK // site.bytes_per_image, n_images // BLOCKS))
        found.append(replace(site, images_per_block=1 << (most.bit_length() - 1)))
    return found


def one_image(model: Any, images: Any) -> Tensor:
    """The first image as the model takes it.

    Raises:
        BadData: the model is no image tower.
        BadImages: there is no image, or it does not fit.
    """
    if hasattr(model, "vision"):
        raise BadData("activations are those of one tower: give clip.vision.")
    if model.parts.modality != "image":
        raise BadData("activations are harvested from image towers, and this is a text tower.")
    if len(images) == 0:
        raise BadImages("there are no images.")
    return model.inputs(images[0:1])


def _available(parts: Any, sizes: dict[str, int]) -> tuple[int, ...]:
    """Token index of each entry of the token axis of a site with these axes; nothing for a site without one."""
    axis = next((axis for axis in _TOKEN_AXES if axis in sizes), None)
    if axis is None:
        return ()
    size = sizes[axis]
    if size == parts.n_tokens:
        return tuple(range(size))
    if axis == "patch":
        return tuple(range(parts.n_tokens - size, parts.n_tokens))
    # The last norm may see only what is read (CLIP), or what was pooled before it.
    return parts.reads if isinstance(parts.reads, tuple) and len(parts.reads) == size else ()


def _at_site(
    name: str, chosen: Tokens, tokens: str | int, available: tuple[int, ...], prefix: tuple[str, ...]
) -> Tokens:
    if not available:
        return WHOLE_IMAGE
    if str(tokens).strip() == "all":
        return Tokens(((available, len(available)),), chosen.seed)
    missing = {token for group, _ in chosen.groups for token in group} - set(available)
    if missing:
        token = min(missing)
        kind = prefix[token] if token < len(prefix) else "a patch"
        raise BadData(
            f"tokens={tokens!r} at {name}: token {token} ({kind}) does not get there; the site has token(s) "
            f"{', '.join(map(str, available[:4]))}{' ...' if len(available) > 4 else ''}. Store it apart, or use 'all'."
        )
    return chosen


def _taken(value: Tensor, places: np.ndarray) -> Tensor:
    """Entries along the second axis; a slice where they are neighbours, which copies nothing."""
    if np.array_equal(places, np.arange(places[0], places[0] + len(places))):
        return value[:, int(places[0]) : int(places[-1]) + 1]
    return value[:, torch.from_numpy(places).to(value.device)]
