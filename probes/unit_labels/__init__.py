"""Labels of units: what goes with a neuron, head or latent being active, and how far to believe it.

* `label_units`: a label for every unit, judged on held-out images, with controls. `activations`, `unit_maps`: what
  units say. `concepts_of`, `concepts_from_texts`: what to label with.
* Methods: `clip_dissect` (five scores), `network_dissection` (masks), `linear_explanation`, `logical_explanation`.
* Judging: `measure` (all measures of the field, one convention), `meta_test`; `correlation` from few expensive answers
  (MG-IS) and `posterior` of noisy votes (BRAgg).
* `describe_latent`: what a unit does to the output beside what makes it active; `polysemantic`: several descriptions.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "label_units": "probes.unit_labels.study",
        "UnitLabels": "probes.unit_labels.record",
        "activations": "probes.unit_labels.units",
        "Activations": "probes.unit_labels.units",
        "unit_maps": "probes.unit_labels.units",
        "Concepts": "probes.unit_labels.concepts",
        "concepts_of": "probes.unit_labels.concepts",
        "concepts_from_texts": "probes.unit_labels.concepts",
        "concept_masks": "probes.unit_labels.concepts",
        "calibrate": "probes.unit_labels.concepts",
        "choose": "probes.unit_labels.choose",
        "clip_dissect": "probes.unit_labels.dissect",
        "network_dissection": "probes.unit_labels.dissection",
        "linear_explanation": "probes.unit_labels.linear",
        "LinearExplanation": "probes.unit_labels.linear",
        "logical_explanation": "probes.unit_labels.logical",
        "Formula": "probes.unit_labels.logical",
        "measure": "probes.unit_labels.measures",
        "meta_test": "probes.unit_labels.measures",
        "proposal": "probes.unit_labels.importance",
        "correlation": "probes.unit_labels.importance",
        "posterior": "probes.unit_labels.raters",
        "error_rate": "probes.unit_labels.raters",
        "pick_images": "probes.unit_labels.panels",
        "read_out": "probes.unit_labels.output_side",
        "label_change": "probes.unit_labels.output_side",
        "describe_latent": "probes.unit_labels.output_side",
        "output_score": "probes.unit_labels.output_side",
        "polysemantic": "probes.unit_labels.polysemantic",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.unit_labels.choose import choose
    from probes.unit_labels.concepts import Concepts, calibrate, concept_masks, concepts_from_texts, concepts_of
    from probes.unit_labels.dissect import clip_dissect
    from probes.unit_labels.dissection import network_dissection
    from probes.unit_labels.importance import correlation, proposal
    from probes.unit_labels.linear import LinearExplanation, linear_explanation
    from probes.unit_labels.logical import Formula, logical_explanation
    from probes.unit_labels.measures import measure, meta_test
    from probes.unit_labels.output_side import describe_latent, label_change, output_score, read_out
    from probes.unit_labels.panels import pick_images
    from probes.unit_labels.polysemantic import polysemantic
    from probes.unit_labels.raters import error_rate, posterior
    from probes.unit_labels.record import UnitLabels
    from probes.unit_labels.study import label_units
    from probes.unit_labels.units import Activations, activations, unit_maps
