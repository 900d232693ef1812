"""Any constructor of this package by name: for command lines, and for studies that try several kinds of pairs."""

from collections.abc import Callable
from typing import Any, Literal

from circuits.pairs.background_swap import background_swap
from circuits.pairs.colour import grey, hue_rotation
from circuits.pairs.nearest import nearest_other_class
from circuits.pairs.object_swap import object_swap
from circuits.pairs.pairs import Pairs
from circuits.pairs.shape import patch_shuffle
from circuits.pairs.stress import stress
from circuits.pairs.texture import blur
from circuits.pairs.token_swap import token_swap
from mechvis.data.images import ImageSet
from mechvis.errors import unknown

Change = Literal["object", "background", "hue", "grey", "shape", "texture", "tokens", "nearest", "zero", "noise"]

_MAKERS: dict[str, Callable[[Any, ImageSet, int], Pairs]] = {
    "object": lambda model, images, seed: object_swap(model, images, seed=seed),
    "background": lambda model, images, seed: background_swap(model, images, seed=seed),
    "hue": lambda model, images, seed: hue_rotation(model, images),
    "grey": lambda model, images, seed: grey(model, images),
    "shape": lambda model, images, seed: patch_shuffle(model, images, seed=seed),
    "texture": lambda model, images, seed: blur(model, images),
    "tokens": lambda model, images, seed: token_swap(model, images, seed=seed),
    "nearest": lambda model, images, seed: nearest_other_class(model, images),
    "zero": lambda model, images, seed: stress(model, images, kind="zero"),
    "noise": lambda model, images, seed: stress(model, images, kind="noise", seed=seed),
}
CHANGES = tuple(_MAKERS)


def make_pairs(model: Any, images: ImageSet, change: Change = "object", *, seed: int = 0) -> Pairs:
    """Pairs of images and what becomes of them by one change, with the defaults of its constructor.

    Args:
        model: a wrapped model.
        images: the clean half; most changes need object masks.
        change: `object` (swap), `background` (swap), `hue`, `grey`, `shape` (patch shuffle), `texture` (blur),
            `tokens` (object and background exchanged), `nearest` (image of another class), `zero`, `noise`.
        seed: of whatever is drawn.

    Raises:
        UnknownName: no such change.
        BadData, BadImages: what the constructor needs.

    Example:
        >>> pairs = make_pairs(model, images, "background", seed=1)                                # doctest: +SKIP
    """
    if change not in _MAKERS:
        raise unknown("change", change, CHANGES)
    return _MAKERS[change](model, images, seed)
