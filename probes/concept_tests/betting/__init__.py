"""Does a concept matter for an output? Importance tested by betting (SKIT), valid whenever one stops.

* `concept_importance`: all concepts of a set, ranked, with a correction for their number.
* `local_importance`: the same for one image.
* `global_test`, `conditional_test`, `local_test`: one concept.
* `ConditionalSampler`, `sampler_check`: what the last two draw from, and whether it may be believed.
* `e_bh`, `e_bh_greedy`: many e-values at once.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "concept_importance": "probes.concept_tests.betting.importance",
        "local_importance": "probes.concept_tests.betting.importance",
        "ConceptImportance": "probes.concept_tests.betting.importance",
        "global_test": "probes.concept_tests.betting.single",
        "conditional_test": "probes.concept_tests.betting.single",
        "local_test": "probes.concept_tests.betting.single",
        "ConditionalSampler": "probes.concept_tests.betting.sampler",
        "sampler_check": "probes.concept_tests.betting.sampler",
        "e_bh": "probes.concept_tests.betting.many",
        "e_bh_greedy": "probes.concept_tests.betting.many",
        "Outcome": "probes.concept_tests.betting.wealth",
        "bet": "probes.concept_tests.betting.wealth",
        "Widths": "probes.concept_tests.betting.kernels",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concept_tests.betting.importance import ConceptImportance, concept_importance, local_importance
    from probes.concept_tests.betting.kernels import Widths
    from probes.concept_tests.betting.many import e_bh, e_bh_greedy
    from probes.concept_tests.betting.sampler import ConditionalSampler, sampler_check
    from probes.concept_tests.betting.single import conditional_test, global_test, local_test
    from probes.concept_tests.betting.wealth import Outcome, bet
