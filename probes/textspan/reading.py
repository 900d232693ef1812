"""What the heads of a CLIP model's image tower write into its embedding, batch by batch.

Every term of the decomposition is divided by the length of the image's embedding, so that the terms add up to the unit
embedding whose cosine with a text is what zero-shot classification reads (methods.md 2.1, **C**).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float

from mechvis.decompose import stream
from mechvis.decompose.terms import Convention
from mechvis.errors import BadData, NotFinite, unknown

LAYERS = -4
"""Layers from the end that are read by default: earlier ones hardly write to the output directly (methods.md 2.1)."""

Layers = int | Iterable[int] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a batch of images makes the parts write, in units of the embedding's length."""

    where: np.ndarray
    """Positions of the images in the set."""
    names: tuple[str, ...]
    """Name of each head: `L3H1`, or `pool H1` for a head of an attention pooling."""
    keys: tuple[tuple[int, int], ...]
    """(layer, head) of each head."""
    heads: Float[np.ndarray, "image head d_embed"]
    """What each head writes."""
    others: dict[str, Float[np.ndarray, "image d_embed"]]
    """Every other term by name: MLPs, biases, what came before the chosen layers."""
    kinds: dict[str, str]
    """Kind of each other term: `mlp`, `bias` or `embed`."""
    whole: Float[np.ndarray, "image d_embed"]
    """The unit embedding: the sum of all of them."""
    tokens: Float[np.ndarray, "image head token d_embed"] | None = None
    """What each head writes, split by the token that it read from."""

    @property
    def rest(self) -> Float[np.ndarray, "image d_embed"]:
        """Everything but the heads, added up."""
        return self.whole - self.heads.sum(1)


def tower_of(clip: Any) -> Any:
    """The image tower of a CLIP model.

    Raises:
        BadData: a model without a text tower, whose embedding no text can be compared with.
    """
    if not (hasattr(clip, "vision") and hasattr(clip, "encode_text")):
        raise BadData(
            f"{type(clip).__name__} has no text tower: texts can name what a CLIP model's heads write, such as those "
            "of mechvis.load('scenes-clip')."
        )
    return clip.vision


def read(
    clip: Any,
    images: Any,
    *,
    layers: Layers = LAYERS,
    convention: Convention = "linear",
    tokens: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[Reading]:
    """Decompose the embeddings of many images.

    Args:
        clip: a wrapped CLIP model.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        layers: see :func:`mechvis.decompose.terms`; at most as many as the model has.
        convention: what becomes of the constant terms; see there.
        tokens: split every head by source token too.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Yields:
        One :class:`Reading` per batch, in float64.

    Raises:
        BadData: no CLIP model, no images.
        NotFinite: an embedding of length zero.
    """
    tower = tower_of(clip)
    if isinstance(layers, int) and layers < 0:
        layers = max(layers, -len(tower.parts.blocks))
    settings = {"layers": layers, "convention": convention, "tokens": tokens, "batch_size": batch_size}
    for where, found in stream(tower, images, of="output", **settings, progress=progress):
        length = found.whole.double().norm(dim=1).cpu().numpy()
        if not (np.isfinite(length) & (length > 0)).all():
            raise NotFinite(f"image {int(where[~(np.isfinite(length) & (length > 0))][0])} has no finite embedding.")
        values = found.values.double().cpu().numpy() / length[:, None, None]
        places = found.heads
        outside = [i for i in range(len(found.names)) if found.kinds[i] != "head"]
        yield Reading(
            where=where,
            names=tuple(found.names[place] for place in places.values()),
            keys=tuple(places),
            heads=values[:, list(places.values())],
            others={found.names[i]: values[:, i] for i in outside},
            kinds={found.names[i]: found.kinds[i] for i in outside},
            whole=found.whole.double().cpu().numpy() / length[:, None],
            tokens=None
            if found.per_token is None
            else found.per_token.double().cpu().numpy() / rearrange(length, "image -> image 1 1 1"),
        )


def chosen(names: tuple[str, ...], heads: Iterable[str] | str | None) -> list[int]:
    """Places of some heads by name; all by default.

    Raises:
        UnknownName: no such head among those that were read.
        BadData: none, or one twice.
    """
    if heads is None:
        return list(range(len(names)))
    wanted = [heads] if isinstance(heads, str) else list(heads)
    for name in wanted:
        if name not in names:
            raise unknown("head", name, names)
    if not wanted or len(set(wanted)) != len(wanted):
        raise BadData(f"heads={wanted}: name at least one head, and each once.")
    return [names.index(name) for name in wanted]
