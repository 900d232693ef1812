"""What units say of every image: one number per unit and image, by an explicit choice of how tokens become one.

A unit is a neuron, a head (the length of what it hands on), a latent of a dictionary, or a direction of any site. A
transformer's unit has a value at every token, and labels depend on how these become one number (**X**: there is no
default that is right, so `reduce` has to be given):

=========  =================================================================================================
`max`      largest over the patches: "somewhere in the image"
`mean`     mean over the patches: "how much of the image"
`cls`      the class token's value
=========  =================================================================================================

Sites without tokens (`hook_pooled`, `hook_embedding`, `hook_logits`) take `reduce="none"`. Images are streamed; only
`[image unit]` is kept. :func:`unit_maps` gives the patches' values themselves, for a few units.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.engine import free_memory
from mechvis.errors import BadData, NotFinite, OutOfMemory, OutOfRange, ShapeMismatch, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.store.forward import reader

Reduce = Literal["max", "mean", "cls", "none"]
REDUCE = ("max", "mean", "cls", "none")
BATCH = 64


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Activations:
    """Activations of units over images."""

    values: Float[np.ndarray, "image unit"]
    """One number per image and unit."""
    units: tuple[str, ...]
    """Name of each unit: `L2N37`, `L2H3`, `L2 latent 5`, or `site[7]`."""
    places: tuple[tuple[str, int], ...]
    """Site and index along its last axis (for heads: the head) of each unit."""
    reduce: str
    """How tokens became one number."""
    ids: tuple[str, ...] = ()
    """Names of the images."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, images, versions."""

    def __len__(self) -> int:
        return len(self.values)

    def of(self, unit: str) -> Float[np.ndarray, " image"]:
        """One unit's values by name.

        Raises:
            UnknownName: with the nearest names.
        """
        if unit not in self.units:
            raise unknown("unit", unit, self.units)
        return self.values[:, self.units.index(unit)]

    def __repr__(self) -> str:
        return f"Activations({len(self.units)} units, {len(self)} images, tokens: {self.reduce})"


def activations(
    model: Any,
    images: Any,
    sites: str | Sequence[str] = "blocks.*.mlp.hook_post",
    *,
    reduce: Reduce,
    units: Sequence[int] | None = None,
    dictionary: Any = None,
    batch_size: int = BATCH,
    progress: bool = True,
) -> Activations:
    """Activations of units over images.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        sites: names or patterns. `*mlp.hook_post`: neurons; `*attn.hook_z` or `*attn.hook_result`: heads, by the length
            of their vector; any other: its coordinates.
        reduce: how tokens become one number, see the module.
        units: which units of every site, by index; None: all.
        dictionary: anything with `encode(x [row d]) -> [row latent]`; its latents are the units. For one site; or a
            mapping from site to dictionary.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Returns:
        Activations: `[image unit]` with names.

    Raises:
        UnknownSite: a pattern matches nothing.
        UnknownName: no such `reduce`.
        BadData: a choice that the site or model does not have; one dictionary for several sites.
        OutOfRange: a unit that the site does not have.
        NotFinite: NaN or Inf; names site and image.

    Example:
        >>> found = activations(model, images, "blocks.*.mlp.hook_post", reduce="max")      # doctest: +SKIP
        >>> found.of("L2N37").shape                                                         # doctest: +SKIP
        (256,)
    """
    if reduce not in REDUCE:
        raise unknown("way to reduce tokens", reduce, REDUCE)
    names = model.graph.match([sites] if isinstance(sites, str) else list(sites))
    dictionaries = _dictionaries(names, dictionary)
    found: list[np.ndarray] = []
    with track(len(images), "activations", " images", show=progress) as bar:
        for cache, part in _runs(model, images, names, batch_size):
            rows = []
            for site in names:
                value = _units_of(model, site, cache[site], dictionaries.get(site), units)
                rows.append(_reduced(model, site, value, reduce).double())
            batch = torch.cat(rows, dim=1).cpu().numpy()
            if not np.isfinite(batch).all():
                raise NotFinite(f"NaN or Inf in an activation at image {int(part[~np.isfinite(batch).all(1)][0])}.")
            found.append(batch.astype(np.float32))
            bar.update(len(part))
    labels, places = _names(model, names, dictionaries, units, [row.shape[1] for row in rows])
    known = images if hasattr(images, "ids") else None
    return Activations(
        values=np.concatenate(found),
        units=labels,
        places=places,
        reduce=reduce,
        ids=tuple(f"image {i}" for i in range(len(images))) if known is None else known.ids,
        provenance=provenance(model=model, images=known, units={"sites": list(names), "reduce": reduce}),
    )


def unit_maps(
    model: Any,
    images: Any,
    places: Sequence[tuple[str, int]],
    *,
    dictionary: Any = None,
    batch_size: int = BATCH,
) -> Float[np.ndarray, "image unit down across"]:
    """Values of a few units on every patch.

    Args:
        places: site and index of each unit, e.g. `Activations.places`.
        dictionary: as in :func:`activations`.

    Raises:
        BadData: no unit, or a site without patches.
        OutOfMemory: the maps do not fit.
    """
    if not len(places):
        raise BadData("no unit is named; maps of nothing.")
    names = list(dict.fromkeys(site for site, _ in places))
    dictionaries = _dictionaries(names, dictionary)
    parts = model.parts
    needed = len(images) * len(places) * parts.grid[0] * parts.grid[1] * 4
    if needed > 0.7 * free_memory():
        raise OutOfMemory(
            f"maps of {len(places)} units on {len(images)} images need {needed / 1e9:.1f} GB, "
            f"{free_memory() / 1e9:.1f} GB are free. Take fewer units (units=), or fewer images."
        )
    found = []
    for cache, _ in _runs(model, images, names, batch_size):
        maps = []
        for site, index in places:
            value = _units_of(model, site, cache[site], dictionaries.get(site), [index])[..., 0]
            if value.ndim != 2 or value.shape[1] != parts.n_tokens:
                raise BadData(f"{site} has no value per patch; a map needs a site of the stream's tokens.")
            maps.append(value[:, len(parts.prefix) :].unflatten(1, parts.grid))
        found.append(torch.stack(maps, dim=1).float().cpu().numpy())
    return np.concatenate(found)


def _runs(model: Any, images: Any, names: Sequence[str], batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
    if batch_size < 1:
        raise OutOfRange(f"batch_size={batch_size}: give at least 1.")
    read = reader(model, images)
    for start in range(0, len(images), batch_size):
        part = np.arange(start, min(start + batch_size, len(images)))
        pixels = read(part).to(model.device, model.dtype)
        yield model.run(pixels, capture=list(names), stop_when_captured=True).cache, part


def is_heads(site: str) -> bool:
    """Is a unit of this site a whole head?"""
    return site.endswith(("hook_z", "hook_result", "hook_mix"))


def _units_of(
    model: Any, site: str, value: Tensor, dictionary: Any, units: Sequence[int] | None
) -> Float[Tensor, "image *token unit"]:
    """Values of a site as units along the last axis."""
    if dictionary is not None:
        tokens = value.shape[: 1 if model.graph[site].token_axis is None else 2]
        value = dictionary.encode(value.reshape(*tokens, -1).flatten(0, -2)).detach()
        if value.ndim != 2:
            raise ShapeMismatch(f"the dictionary's encode gave {list(value.shape)}, it should give [row latent].")
        value = value.unflatten(0, tokens)
    elif is_heads(site):
        value = value.norm(dim=-1)
    if units is None:
        return value
    if not len(units) or min(units) < 0 or max(units) >= value.shape[-1]:
        raise OutOfRange(f"units {list(units)[:5]} of {site}: it has units 0 to {value.shape[-1] - 1}.")
    return value[..., torch.as_tensor(list(units), device=value.device)]


def _reduced(model: Any, site: str, value: Tensor, reduce: str) -> Float[Tensor, "image unit"]:
    parts = model.parts
    if (value.ndim == 2) != (reduce == "none"):
        have = (
            "has no tokens: use reduce='none'" if value.ndim == 2 else "has tokens: use reduce='max', 'mean' or 'cls'"
        )
        raise BadData(f"{site} {have}.")
    if reduce == "none":
        return value
    if value.ndim != 3 or value.shape[1] != parts.n_tokens:
        raise BadData(f"{site} is {list(value.shape)}; units have one value per token of the stream.")
    if reduce == "cls":
        if not parts.prefix:
            raise BadData("this model has no class token: use reduce='max' or 'mean'.")
        return value[:, 0]
    patches = value[:, len(parts.prefix) :]
    return patches.amax(1) if reduce == "max" else patches.mean(1)


def _dictionaries(names: Sequence[str], dictionary: Any) -> dict[str, Any]:
    if dictionary is None:
        return {}
    if isinstance(dictionary, Mapping):
        if strange := [site for site in dictionary if site not in names]:
            raise unknown("site of a dictionary", strange[0], names)
        return dict(dictionary)
    if len(names) > 1:
        raise BadData(f"one dictionary and {len(names)} sites: name one site, or give a mapping site -> dictionary.")
    if not hasattr(dictionary, "encode"):
        raise BadData(f"a dictionary has encode(x [row d]); {type(dictionary).__name__} has not.")
    return {names[0]: dictionary}


def _names(
    model: Any, names: Sequence[str], dictionaries: Mapping[str, Any], units: Sequence[int] | None, widths: list[int]
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    labels, places = [], []
    for site, width in zip(names, widths, strict=True):
        layer = model.graph[site].layer
        inside = site.startswith("blocks.")
        for index in range(width) if units is None else units:
            if site in dictionaries:
                label = f"{f'L{layer}' if inside else site} latent {index}"
            elif inside and is_heads(site):
                label = f"L{layer}H{index}"
            elif inside and site.endswith("mlp.hook_post"):
                label = f"L{layer}N{index}"
            else:
                label = f"{site}[{index}]"
            labels.append(label)
            places.append((site, int(index)))
    if len(set(labels)) != len(labels):  # two kinds of site of one layer
        labels = [f"{site}[{index}]" for site, index in places]
    return tuple(labels), tuple(places)
