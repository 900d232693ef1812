"""The test kit: tiny models with known answers, and checks that a user who adds a family or a method needs too.

=====================  =============================================================================================
name                   what it is for
=====================  =============================================================================================
`tiny`                 a random, very small model of every supported family: for parity and for exactness
`rand_vit`             F1: a random ViT with every bias and gain non-trivial, in float64: for identities
`ShortcutViT`          F2: a ViT with a background shortcut in a known head, and its data: for CIGMA
`hand_wired_vit`       a Hugging Face ViT where one planted head does everything and three loud heads do nothing
`rotated_pair`         F9: a direction that is read, a copy that is not, and a dead one: for subspace methods
`PatchGame`            F10: a game over nine patches with known Shapley values and Sobol indices
`bottleneck_pool`      F11: two tokens are read, ten are not: for bottlenecks
`swap_grid`            F15: two images of nine patches, one swap turns the answer: for counterfactuals
`evidence`             a package: models with evidence whose place is known, and explainers that are wrong
`planted`              a package: wired models whose every edge is known, with certificates (import it by name)
`trained`              a package: vision transformers trained so that a planted circuit is the only one
`hier_dict`            F5: a tree of concepts whose vectors are sums of differences along a path
`planted_dict`         F6: sparse sums of known atoms, across a modality gap if wanted
`planted_pairs`        rows of two models with shared and exclusive atoms: for crosscoders
`check_family`         everything that must hold for a model family: for our maps, and for one that you write
`assert_untouched`     a context manager: the model leaves as it came, whatever happened inside
`assert_close`         equality within a stated tolerance, relative to the size of what is expected
=====================  =============================================================================================
"""

from mechvis.testing.bottleneck_pool import BottleneckPool, bottleneck_pool
from mechvis.testing.conformance import Conformance, check_family
from mechvis.testing.hand_wired import hand_wired_images, hand_wired_vit
from mechvis.testing.patch_game import PatchGame
from mechvis.testing.planted_codes import HierDict, PlantedDict, hier_dict, planted_dict
from mechvis.testing.planted_pairs import PlantedPairs, planted_pairs
from mechvis.testing.rotated_pair import RotatedImages, RotatedPair, rotated_pair
from mechvis.testing.shortcut import (
    ShortcutImages,
    ShortcutViT,
    shortcut_images,
    shortcut_parts,
    shortcut_preprocess,
    shortcut_vit,
)
from mechvis.testing.swap_grid import SwapGrid, swap_grid
from mechvis.testing.tiny import rand_vit, tiny, tiny_families, tiny_input, tiny_preprocess
from mechvis.testing.untouched import assert_close, assert_untouched
from mechvis.testing.words import Words

__all__ = [
    "BottleneckPool",
    "Conformance",
    "HierDict",
    "PatchGame",
    "PlantedDict",
    "PlantedPairs",
    "RotatedImages",
    "RotatedPair",
    "ShortcutImages",
    "ShortcutViT",
    "SwapGrid",
    "Words",
    "assert_close",
    "assert_untouched",
    "bottleneck_pool",
    "check_family",
    "hand_wired_images",
    "hand_wired_vit",
    "hier_dict",
    "planted_dict",
    "planted_pairs",
    "rand_vit",
    "rotated_pair",
    "shortcut_images",
    "shortcut_parts",
    "shortcut_preprocess",
    "shortcut_vit",
    "swap_grid",
    "tiny",
    "tiny_families",
    "tiny_input",
    "tiny_preprocess",
]
