"""Images to entries: which latent fires where, how strongly; batch by batch, and never all images at once.

1. The dictionary's reading sites are found in the model; their rows lie side by side if there are several.
2. A batch of images is run until the last of these sites (or to the end, where the embedding is wanted too).
3. Rows are encoded some at a time: the dense codes `[row latent]` of a few rows are the largest thing in memory. What
   is above zero is kept as a flat list of entries.

Negative codes (of PCA, or a signed dictionary) are counted and left out: "fires" means above zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, NotFinite, RefusedMethod, ShapeMismatch, UnknownSite, unknown
from sae.evaluation.place import Place, place_of

DENSE = 2**22
"""Codes that are dense at a time (16 MB as float32)."""
NO_TOKEN = -1
"""Token of a row at a site without tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """Codes above zero of a batch of images, by image, then row, then latent."""

    image: Int[np.ndarray, " entry"]
    """Position of the image in the set."""
    row: Int[np.ndarray, " entry"]
    """Row in the image: a token, or a head of a token."""
    latent: Int[np.ndarray, " entry"]
    """Position among the latents that are read."""
    value: Float[np.ndarray, " entry"]
    """Activation, float64."""
    images: range
    """The images of the batch."""
    rows: int
    """Rows of each image."""
    negative: int
    """Codes below zero, which are left out."""
    pixels: Tensor = field(repr=False)
    """What went into the model, `[image channel height width]`."""
    output: Tensor = field(repr=False)
    """What came out, where the run was not stopped."""

    def per_image(self) -> tuple[np.ndarray, ...]:
        """One entry per image and latent: image, latent, largest value, its row, sum of values, rows.

        Of equal values the first row counts.
        """
        key = self.image * (int(self.latent.max()) + 1 if len(self.latent) else 1) + self.latent
        order = np.lexsort((self.row, -self.value, key))
        key = key[order]
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        first = order[starts]
        total = np.add.reduceat(self.value[order], starts) if len(starts) else np.zeros(0)
        count = np.diff(starts, append=len(key))
        return self.image[first], self.latent[first], self.value[first], self.row[first], total, count


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """A model and the dictionary that reads it; made by :func:`reading_of`."""

    model: Any
    """The wrapped tower."""
    dictionary: Any
    """The dictionary."""
    places: dict[str, Place]
    """What is read of each site, by the dictionary's name of it."""

    @property
    def sites(self) -> list[str]:
        """Names in the model."""
        return [place.site for place in self.places.values()]

    def entries(
        self,
        pixels: Tensor,
        images: range,
        latents: Int[np.ndarray, " latent"] | None = None,
        *,
        to_the_end: bool = False,
    ) -> tuple[Entries, "Rows"]:
        """Run some images and encode what the dictionary reads.

        Args:
            pixels: what the model takes.
            images: their positions in the set.
            latents: only these, renumbered in that order; default: all.
            to_the_end: run the rest of the model as well.

        Raises:
            ShapeMismatch: sites with different numbers of rows.
            NotFinite: NaN or Inf in the codes.
        """
        run = self.model.run(pixels, capture=self.sites, stop_when_captured=not to_the_end)
        taken = {name: place.take(run.cache[place.site]) for name, place in self.places.items()}
        counts = {name: rows.shape[1] for name, rows in taken.items()}
        if len(set(counts.values())) != 1:
            told = ", ".join(f"{name} {n}" for name, n in counts.items())
            raise ShapeMismatch(f"a dictionary of several sites needs as many rows per image at each: {told}.")
        n_rows = next(iter(counts.values()))
        flat = self.dictionary.ends.read({name: rows.flatten(0, 1) for name, rows in taken.items()})
        chosen = None if latents is None else torch.as_tensor(latents, device=self.dictionary.scale_in.device)
        found, negative, done = [], 0, 0
        for part in flat.split(max(1, DENSE // self.dictionary.n_codes)):
            with torch.no_grad():
                codes = self.dictionary.encode(part)
            codes = codes if chosen is None else codes[:, chosen]
            if not torch.isfinite(codes.sum()) and not torch.isfinite(codes).all():
                bad = int((~torch.isfinite(codes)).any(1).nonzero()[0, 0]) + done
                raise NotFinite(f"NaN or Inf in the codes of image {images[bad // n_rows]}, row {bad % n_rows}.")
            row, latent = (codes > 0).nonzero(as_tuple=True)
            negative += int((codes < 0).sum())
            found.append([(row + done).cpu().numpy(), latent.cpu().numpy(), codes[row, latent].double().cpu().numpy()])
            done += len(part)
        row, latent, value = (np.concatenate(column) for column in zip(*found, strict=True))
        place = next(iter(self.places.values()))
        entries = Entries(
            image=row // n_rows + images.start, row=row % n_rows, latent=latent, value=value, images=images,
            rows=n_rows, negative=negative, pixels=pixels, output=run.output,
        )  # fmt: skip
        return entries, rows_of(place, run.cache[place.site], self.model.parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What the rows of an image are about."""

    token: Int[np.ndarray, " row"]
    """Token of each row; -1 where the site has none."""
    types: tuple[str, ...]
    """Type of each row's token: cls, register, ..., patch, or pooled."""
    patch: Int[np.ndarray, " row"]
    """Place on the grid, row-major; -1 for tokens that are not on it."""
    grid: tuple[int, int]
    """Patches down and across; (0, 0) where rows have no place in the image."""

    @classmethod
    def unknown(cls) -> "Rows":
        """Before anything was seen."""
        return cls(token=np.zeros(0, np.int64), types=(), patch=np.zeros(0, np.int64), grid=(0, 0))


def rows_of(place: Place, activation: Tensor, parts: Any) -> Rows:
    """What the rows of a place are about, seen on one activation `[image token ...]`."""
    if not place.has_tokens:
        token = np.full(_times(place), NO_TOKEN)
        return Rows(token=token, types=("pooled",) * len(token), patch=token, grid=(0, 0))
    n_tokens, n_prefix = activation.shape[1], len(place.prefix)
    down, across = parts.grid
    token = np.repeat(np.asarray(place.indices(n_tokens)), _times(place))
    # Another number of tokens than the grid has: a site that is not about patches one by one.
    on_grid = n_tokens == n_prefix + down * across
    patch = np.where((token >= n_prefix) & on_grid, token - n_prefix, NO_TOKEN)
    return Rows(
        token=token, types=tuple(place.types(n_tokens)), patch=patch, grid=(down, across) if on_grid else (0, 0)
    )


def _times(place: Place) -> int:
    return place.n_heads if place.per_head and place.head is None else 1


def reading_of(
    model: Any, dictionary: Any, site: str | Mapping[str, str] | None = None, *, tokens: Any = "all"
) -> Reading:
    """Find what a dictionary reads in a model.

    Args:
        model: a wrapped image model; of CLIP the vision tower is read.
        dictionary: of any kind.
        site: where the model's name differs from the dictionary's: a name, or names by the dictionary's names.
        tokens: which it is about: all, cls, registers, prefix, patches, or positions.

    Raises:
        RefusedMethod: a dictionary that reads two models.
        UnknownSite: no such site; says how to name it.
        UnknownName: a name that the dictionary does not read.
        BadData: one name for several sites.
        ShapeMismatch: another width.
    """
    tower = getattr(model, "vision", model)
    reads = dictionary.ends.reads
    if isinstance(site, str):
        if len(reads) != 1:
            raise BadData(
                f"site={site!r} is one name, and this dictionary reads {len(reads)} ({', '.join(reads)}): give "
                "site={its name: the model's name, ...}, or leave it out."
            )
        site = {next(iter(reads)): site}
    named = dict(site or {})
    if strange := [name for name in named if name not in reads]:
        raise unknown("site of the dictionary", strange[0], reads)
    places = {}
    for name, width in reads.items():
        own = named.get(name, name)
        if "/" in own:
            raise RefusedMethod(
                f"this dictionary reads {name!r}, a site of the model {name.split('/')[0]!r} among several. Pages are "
                "about one model in one run: find the latents that differ with sae.diffing.compare, and look at them "
                "through a dictionary of one model, or train a crosscoder over sites of one model."
            )
        try:
            places[name] = place_of(tower, own, width, tokens=tokens)
        except UnknownSite as error:
            raise UnknownSite(
                f"this dictionary reads {name!r}. {error.args[0]} Say where that is in this model: site='...'."
            ) from error
    return Reading(model=tower, dictionary=dictionary, places=places)


def batches(n: int, size: int) -> Iterator[range]:
    """Positions of images, some at a time."""
    for start in range(0, n, size):
        yield range(start, min(n, start + size))
