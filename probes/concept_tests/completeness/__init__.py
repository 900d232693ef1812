"""Do these concepts explain the answers? Completeness and its Shapley shares (ConceptSHAP).

* `completeness`: eta of a set of concepts, with random and linear controls and each concept's Shapley value.
* `located`, `vit_located`: representations with the model behind them, of your own or of a vision transformer.
* `discover_concepts`, `merge_concepts`: concepts learnt to be complete.
* `concept_scores`; `exact_shapley`, `permutation_shapley`, `kernel_shapley`: the parts.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "completeness": "probes.concept_tests.completeness.study",
        "Completeness": "probes.concept_tests.completeness.study",
        "Decoder": "probes.concept_tests.completeness.decoder",
        "concept_scores": "probes.concept_tests.completeness.scores",
        "Located": "probes.concept_tests.completeness.located",
        "located": "probes.concept_tests.completeness.located",
        "vit_located": "probes.concept_tests.completeness.vit_tail",
        "discover_concepts": "probes.concept_tests.completeness.discover",
        "merge_concepts": "probes.concept_tests.completeness.discover",
        "exact_shapley": "probes.concept_tests.completeness.shapley",
        "permutation_shapley": "probes.concept_tests.completeness.shapley",
        "kernel_shapley": "probes.concept_tests.completeness.shapley",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concept_tests.completeness.decoder import Decoder
    from probes.concept_tests.completeness.discover import discover_concepts, merge_concepts
    from probes.concept_tests.completeness.located import Located, located
    from probes.concept_tests.completeness.scores import concept_scores
    from probes.concept_tests.completeness.shapley import exact_shapley, kernel_shapley, permutation_shapley
    from probes.concept_tests.completeness.study import Completeness, completeness
    from probes.concept_tests.completeness.vit_tail import vit_located
