"""Repair of a shortcut that a classifier has learned, and what it costs.

* `environments`: clusters inside every class, in which a shortcut shows itself by changing.
* `concept_vectors`: what to look for, as directions in feature space, from images with and without a concept.
* `instability`: which concepts the head leans on in one environment and not in another (DISC).
* `cure`: the head learned again on features that were moved along unstable concepts.
* `disc`: all of it, with random concepts beside; a `Repair` record.
* `with_head`: a wrapped model that answers with a repaired head.
* `compare_repairs`: DISC beside the removal of heads, on images of consistent and conflicting groups.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "environments": "probes.repair.environments",
        "concept_vectors": "probes.repair.vectors",
        "random_vectors": "probes.repair.vectors",
        "Vectors": "probes.repair.vectors",
        "instability": "probes.repair.instability",
        "tendencies": "probes.repair.instability",
        "cure": "probes.repair.cure",
        "disc": "probes.repair.disc",
        "Repair": "probes.repair.disc",
        "compare_repairs": "probes.repair.compare",
        "with_head": "probes.repair.attach",
        "head_of": "probes.repair.disc",
        "LinearHead": "probes.repair.linear_head",
        "fit_head": "probes.repair.linear_head",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.repair.attach import with_head
    from probes.repair.compare import compare_repairs
    from probes.repair.cure import cure
    from probes.repair.disc import Repair, disc, head_of
    from probes.repair.environments import environments
    from probes.repair.instability import instability, tendencies
    from probes.repair.linear_head import LinearHead, fit_head
    from probes.repair.vectors import Vectors, concept_vectors, random_vectors
