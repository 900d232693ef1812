"""Where in the image does what heads write about a text come from? (methods.md 2.3)

A head's write is a sum over the tokens that it reads. Its product with a text's unit embedding is, token by token, the
heat of the text:

    heat_i(text) = sum over heads of  a^{l,h,i} . text

in units of cosine, so that heats and what comes from the prefix tokens add up to the heads' part of the image's cosine
with the text. Maps of one head, of a few, or along a direction that TextSpan found work the same way.

What heat does not see: a token's own content was mixed in earlier layers, so that a patch may speak of its
surroundings; and what MLPs write has no place. :func:`patch_cosine` is the control that the published maps lack: the
cosine of each patch's own last token with the text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float

from mechvis.data.text_encoding import unit
from mechvis.decompose.terms import Convention
from mechvis.errors import RefusedMethod, ShapeMismatch
from mechvis.progress import track
from mechvis.record import finite
from mechvis.store.forward import reader
from probes.textspan.reading import LAYERS, Layers, chosen, read, tower_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Heat:
    """Heat of directions over images."""

    maps: Float[np.ndarray, "image direction down across"]
    """What comes from each patch."""
    prefix: Float[np.ndarray, "image direction"]
    """What comes from the tokens before the patches."""

    @property
    def total(self) -> Float[np.ndarray, "image direction"]:
        """All of it: the product of what the heads write with each direction."""
        return self.maps.sum((2, 3)) + self.prefix


def token_heat(
    clip: Any,
    images: Any,
    directions: Float[np.ndarray, "direction d_embed"],
    *,
    layers: Layers = LAYERS,
    heads: Iterable[str] | str | None = None,
    convention: Convention = "linear",
    batch_size: int = 16,
    progress: bool = True,
) -> Heat:
    """Maps of what heads write along directions, patch by patch.

    Args:
        clip: a wrapped CLIP model.
        images: an `ImageSet`, or pixels.
        directions: unit embeddings of texts (`clip.encode_text`), or the basis of a span.
        layers: whose heads are added up.
        heads: only these, by name.
        convention: what becomes of constant terms in the decomposition.
        batch_size: images per forward pass; terms of every token need memory.
        progress: show a progress bar.

    Returns:
        :class:`Heat`.

    Raises:
        UnknownName: no such head among these layers.
        ShapeMismatch: directions of another width.
        NotFinite: NaN or Inf in them.

    Example:
        >>> red = clip.encode_text(["a red shape"]).numpy()                                # doctest: +SKIP
        >>> token_heat(clip, images, red, heads="L1H0").maps.shape                         # doctest: +SKIP
        (64, 1, 8, 8)
    """
    settings = {"layers": layers, "convention": convention, "batch_size": batch_size, "progress": progress}
    return heat_of_groups(clip, images, directions, {"all": heads}, **settings)["all"]


def heat_of_groups(
    clip: Any,
    images: Any,
    directions: Float[np.ndarray, "direction d_embed"],
    groups: Mapping[str, Iterable[str] | str | None],
    **settings: Any,
) -> dict[str, Heat]:
    """:func:`token_heat` of several groups of heads in one pass; None stands for all heads of the layers."""
    tower = tower_of(clip)
    directions = _directions(directions)
    maps: dict[str, list] = {name: [] for name in groups}
    prefix: dict[str, list] = {name: [] for name in groups}
    for batch in read(clip, images, tokens=True, **settings):
        if directions.shape[1] != batch.whole.shape[1]:
            raise ShapeMismatch(f"directions of {directions.shape[1]} numbers, embeddings of {batch.whole.shape[1]}.")
        grid = _grid(tower, images)
        before = batch.tokens.shape[2] - grid[0] * grid[1]
        for name, heads in groups.items():
            tokens = batch.tokens[:, chosen(batch.names, heads)].sum(1)
            heat = np.einsum("itd,kd->ikt", tokens, directions, optimize=True)
            maps[name].append(rearrange(heat[..., before:], "i k (down across) -> i k down across", down=grid[0]))
            prefix[name].append(heat[..., :before].sum(-1))
    return {name: Heat(maps=np.concatenate(maps[name]), prefix=np.concatenate(prefix[name])) for name in groups}


def text_heat(clip: Any, images: Any, texts: Sequence[str], **settings: Any) -> Heat:
    """:func:`token_heat` of texts.

    Example:
        >>> text_heat(clip, images, ["a star", "a red shape"], layers=-2).maps.shape       # doctest: +SKIP
        (64, 2, 8, 8)
    """
    tower_of(clip)
    return token_heat(clip, images, clip.encode_text(list(texts)).double().cpu().numpy(), **settings)


def patch_cosine(
    clip: Any,
    images: Any,
    directions: Float[np.ndarray, "direction d_embed"],
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> Float[np.ndarray, "image direction down across"]:
    """The control: cosine of each patch's last token, after the last norm and the projection, with each direction.

    Raises:
        RefusedMethod: attention pooling, whose projection was never meant for single tokens.
        ShapeMismatch, NotFinite: as :func:`token_heat`.
    """
    tower = tower_of(clip)
    parts = tower.parts
    if parts.pooling is not None or parts.project is None:
        raise RefusedMethod(
            "patch_cosine projects single tokens as if they were the one that is read; this model pools by attention "
            "or has no projection, so there is no such token. Use token_heat."
        )
    directions = unit(_directions(directions))
    last, prefix = f"blocks.{len(parts.blocks) - 1}.hook_resid_post", len(parts.prefix)
    found, reads = [], reader(tower, images)
    with track(len(images), "cosine of patches", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            where = np.arange(start, min(start + batch_size, len(images)))
            with torch.no_grad():
                stream = tower.run(reads(where), capture=[last]).cache[last][:, prefix:]
                tokens = parts.project(parts.ln_final(stream)).double().cpu().numpy()
            if tokens.shape[-1] != directions.shape[1]:
                raise ShapeMismatch(f"directions of {directions.shape[1]} numbers, embeddings of {tokens.shape[-1]}.")
            cosine = np.einsum("itd,kd->ikt", unit(tokens), directions)
            grid = _grid(tower, images)
            found.append(rearrange(cosine, "i k (down across) -> i k down across", down=grid[0]))
            bar.update(len(where))
    return np.concatenate(found)


def _directions(directions: object) -> np.ndarray:
    found = finite("the directions", np.asarray(directions, dtype=float))
    if found.ndim != 2 or not len(found):
        raise ShapeMismatch(f"directions need the axes [direction d_embed], got the shape {list(found.shape)}.")
    return found


def _grid(tower: Any, images: Any) -> tuple[int, int]:
    """Patches (down, across) of these images."""
    size = tuple(images.shape[2:]) if isinstance(images, torch.Tensor) else None
    return tower._for_size(size)[0].grid
