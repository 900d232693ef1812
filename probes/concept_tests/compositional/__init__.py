"""Concepts that can be combined (CCE): one subspace per attribute, found one after the other.

* `compositional_concepts`: subspaces, clusters in them, and which image has which.
* `compositionality`, `compositional_ap`: whether images are sums of their concepts, and whether combinations of
  concepts can be read from them.
* `learn_rotation`, `silhouette`, `purity`: the parts.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "compositional_concepts": "probes.concept_tests.compositional.study",
        "CompositionalConcepts": "probes.concept_tests.compositional.study",
        "learn_rotation": "probes.concept_tests.compositional.rotation",
        "silhouette": "probes.concept_tests.compositional.rotation",
        "compositionality": "probes.concept_tests.compositional.scores",
        "compositional_ap": "probes.concept_tests.compositional.scores",
        "purity": "probes.concept_tests.compositional.scores",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concept_tests.compositional.rotation import learn_rotation, silhouette
    from probes.concept_tests.compositional.scores import compositional_ap, compositionality, purity
    from probes.concept_tests.compositional.study import CompositionalConcepts, compositional_concepts
