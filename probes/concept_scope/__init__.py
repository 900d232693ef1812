"""Audits by concepts: what a class needs, where it fails, and for whom explanations are worse.

* `concept_scope`: concepts with masks, sorted into target, context and bias (ConceptScope; methods.md 12).
  `scope_of_dictionary`: the same for the latents of any dictionary. `sort_concepts`, `ratios`: the rule.
* `failure_modes_of_model`: minimal sets of tags under which a class is often wrong (methods2.md 17.9); tags from
  `column_tags` or `clip_tags`. `failure_modes` from arrays.
* `explanation_disparity`: quality of explanations between two groups, raw and matched (methods2.md 17.10).
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "concept_scope": "probes.concept_scope.scope",
        "ConceptScope": "probes.concept_scope.scope",
        "scope_of_dictionary": "probes.concept_scope.dictionary",
        "sort_concepts": "probes.concept_scope.sorting",
        "ratios": "probes.concept_scope.sorting",
        "Ratios": "probes.concept_scope.sorting",
        "failure_modes": "probes.concept_scope.failure_modes",
        "failure_modes_of_model": "probes.concept_scope.model_failures",
        "FailureModes": "probes.concept_scope.failure_modes",
        "Tags": "probes.concept_scope.tags",
        "column_tags": "probes.concept_scope.tags",
        "clip_tags": "probes.concept_scope.tags",
        "explanation_disparity": "probes.concept_scope.disparity",
        "Disparity": "probes.concept_scope.disparity",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concept_scope.dictionary import scope_of_dictionary
    from probes.concept_scope.disparity import Disparity, explanation_disparity
    from probes.concept_scope.failure_modes import FailureModes, failure_modes
    from probes.concept_scope.model_failures import failure_modes_of_model
    from probes.concept_scope.scope import ConceptScope, concept_scope
    from probes.concept_scope.sorting import Ratios, ratios, sort_concepts
    from probes.concept_scope.tags import Tags, clip_tags, column_tags
