"""How interpretable a representation is in itself: how little accuracy is lost when few concepts may speak (IIS).

* `inherent_interpretability`: accuracy retained against sparsity, its area, and the same for a random library.
* `concept_library`: concepts to read a representation with; `concept_activations`, `sparsified`, `area`: the parts.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "inherent_interpretability": "probes.concept_tests.inherent.study",
        "InherentInterpretability": "probes.concept_tests.inherent.study",
        "concept_library": "probes.concept_tests.inherent.library",
        "concept_activations": "probes.concept_tests.inherent.library",
        "sparsified": "probes.concept_tests.inherent.library",
        "area": "probes.concept_tests.inherent.study",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concept_tests.inherent.library import concept_activations, concept_library, sparsified
    from probes.concept_tests.inherent.study import InherentInterpretability, area, inherent_interpretability
