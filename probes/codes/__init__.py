"""Sparse text codes: an embedding as a sum of a few words, flat or along a hierarchy of concepts.

* `WordList`: texts with their directions. `omp`: matching pursuit over any dictionary, signed or non-negative, all rows
  together.
* `splice`: non-negative lasso codes of CLIP embeddings across the modality gap; `without_words`: take words out and
  classify again.
* `Hierarchy`: a tree or graph of concepts, placed by images (`place_by_images`) or texts (`place_by_texts`), checked by
  `geometry`; `hb_omp` finds a vector's path by beam search, `hcep` judges the paths beside flat pursuit.
  `scene_hierarchy` is an example.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "HcepPaths": "probes.codes.hcep",
        "Hierarchy": "probes.codes.hierarchy",
        "Paths": "probes.codes.beam",
        "Pursuit": "probes.codes.pursuit",
        "SpliceCodes": "probes.codes.splice",
        "WordList": "probes.codes.words",
        "geometry": "probes.codes.geometry",
        "hb_omp": "probes.codes.beam",
        "hcep": "probes.codes.hcep",
        "omp": "probes.codes.pursuit",
        "place_by_images": "probes.codes.placing",
        "place_by_texts": "probes.codes.placing",
        "scene_concepts": "probes.codes.scenes",
        "scene_hierarchy": "probes.codes.scenes",
        "scene_texts": "probes.codes.scenes",
        "splice": "probes.codes.splice",
        "without_words": "probes.codes.intervention",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.codes.beam import Paths, hb_omp
    from probes.codes.geometry import geometry
    from probes.codes.hcep import HcepPaths, hcep
    from probes.codes.hierarchy import Hierarchy
    from probes.codes.intervention import without_words
    from probes.codes.placing import place_by_images, place_by_texts
    from probes.codes.pursuit import Pursuit, omp
    from probes.codes.scenes import scene_concepts, scene_hierarchy, scene_texts
    from probes.codes.splice import SpliceCodes, splice
    from probes.codes.words import WordList
