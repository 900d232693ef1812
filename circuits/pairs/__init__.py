"""Clean and corrupt images that differ in one thing: what patching and edge attribution compare (methods.md 5.8).

=====================  =============================================================================================
constructor            what the corrupt half is
=====================  =============================================================================================
`scene_swap`           a bundled scene drawn again with another object, background or colour: exact to the pixel
`object_swap`          an object of another class in the same place of the same picture (needs masks, labels)
`background_swap`      the same object before another picture's background (needs masks)
`hue_rotation`         the object's hues turned
`grey`                 the object without colour
`patch_shuffle`        the object's patches in another order: its parts stay, its shape goes
`blur`                 the object (or the background) blurred: its outline stays, its texture goes
`token_swap`           the contents of two sets of patches exchanged
`nearest_other_class`  the most similar image of another class, by features of an early layer
`stress`               nothing, grey, or noise: a stress test only
`aligned`              two aligned sets of images of your own
=====================  =============================================================================================

From most to least specific; the further down, the more things change at once. `make_pairs` makes any of them by name.
:func:`check_pairs` says whether the model tells the halves apart, and `mechvis.sweep` knows mean ablation for questions
without pairs.

Where an edit acts. What changes colours (swaps, hue, grey, blur) acts on the raw images, and the model's preprocessing
makes both halves: resizing with its rounding and clipping, and normalisation, then treat an edited image as they treat
any image. What moves patches (shuffle, token swap) acts on preprocessed pixels, because patches exist only there; a
permutation of pixels commutes with any normalisation. Where preprocessing resizes, pixels within a filter's width of an
edit change a little too; where it does not (the bundled scenes), pixels outside the edit are equal bit by bit.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Pairs": "circuits.pairs.pairs",
        "aligned": "circuits.pairs.aligned",
        "scene_swap": "circuits.pairs.scene_swap",
        "object_swap": "circuits.pairs.object_swap",
        "background_swap": "circuits.pairs.background_swap",
        "hue_rotation": "circuits.pairs.colour",
        "grey": "circuits.pairs.colour",
        "patch_shuffle": "circuits.pairs.shape",
        "blur": "circuits.pairs.texture",
        "token_swap": "circuits.pairs.token_swap",
        "nearest_other_class": "circuits.pairs.nearest",
        "stress": "circuits.pairs.stress",
        "make_pairs": "circuits.pairs.make",
        "check_pairs": "circuits.pairs.check",
        "PairCheck": "circuits.pairs.check",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.pairs.aligned import aligned
    from circuits.pairs.background_swap import background_swap
    from circuits.pairs.check import PairCheck, check_pairs
    from circuits.pairs.colour import grey, hue_rotation
    from circuits.pairs.make import make_pairs
    from circuits.pairs.nearest import nearest_other_class
    from circuits.pairs.object_swap import object_swap
    from circuits.pairs.pairs import Pairs
    from circuits.pairs.scene_swap import scene_swap
    from circuits.pairs.shape import patch_shuffle
    from circuits.pairs.stress import stress
    from circuits.pairs.texture import blur
    from circuits.pairs.token_swap import token_swap
