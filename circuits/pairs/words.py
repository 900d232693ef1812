"""Pairs from the words of a command line: what the images are, and what becomes of them."""

from typing import Any

from circuits.pairs.aligned import aligned
from circuits.pairs.make import make_pairs
from circuits.pairs.pairs import Pairs
from circuits.pairs.scene_swap import scene_swap
from mechvis.commands import SCENES_N, SCENES_SEED, read_images
from mechvis.errors import BadData


def read_pairs(
    model: Any, spec: str, images: Any, change: str, *, corrupt: str | None = None, seed: int = 0, **options: Any
) -> Pairs:
    """The pairs that the words mean; bundled scenes are drawn again where that is exact.

    Args:
        model: a wrapped model.
        spec: the words that the images were read from, e.g. `scenes:64`.
        images: the clean images.
        change: what becomes of them: a word of `make_pairs`, or `colour` for bundled scenes.
        corrupt: instead of a change: the words of a folder of images aligned with them.
        seed: of whatever is drawn.
        options: for reading a folder (`mechvis.commands.read_images`).

    Raises:
        BadData: both a change and a corrupt half; a change that only bundled scenes have.
    """
    if corrupt is not None:
        if change != "object":
            raise BadData("--corrupt gives the corrupt half and --change makes it; leave one of them out.")
        return aligned(model, images, read_images(corrupt, **options), name=f"{spec} and {corrupt}")
    name, *numbers = spec.split(":")
    if name == "scenes" and change in ("object", "background", "colour"):
        n, number = [*map(int, numbers), *(SCENES_N, SCENES_SEED)[len(numbers) :]]
        return scene_swap(model, n, change=change, seed=number)
    if change == "colour":
        raise BadData("--change colour draws bundled scenes again; for a folder use --change hue or grey.")
    return make_pairs(model, images, change, seed=seed)
