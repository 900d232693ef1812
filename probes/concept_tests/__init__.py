"""Tests of concepts: whether they explain a model's answers, combine, suffice, and matter.

* `completeness` (a sub-package): how much of the answers a set of concepts carries, and each one's share (ConceptSHAP).
* `compositional`: one subspace per attribute, whose clusters are concepts that combine (CCE).
* `inherent`: how little accuracy a representation loses when few concepts may speak (IIS).
* `betting`: whether an output depends on a concept, by tests that one may stop at any time (SKIT).
* `value_concepts`: concept vectors of what is known of the images.
* `benjamini_yekutieli`, `max_statistic`: many tests at once.

Made-up representations whose answers are known are in `mechvis.testing.concept_worlds`.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "value_concepts": "probes.concept_tests.values",
        "benjamini_yekutieli": "probes.concept_tests.multiple",
        "max_statistic": "probes.concept_tests.multiple",
    },
    modules=("betting", "completeness", "compositional", "inherent"),
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concept_tests import betting, completeness, compositional, inherent
    from probes.concept_tests.multiple import benjamini_yekutieli, max_statistic
    from probes.concept_tests.values import value_concepts
