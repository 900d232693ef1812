"""Text spans: what the heads of a CLIP model write into its embedding, in words, and how far to believe the words.

* `text_span`: the texts that span each head, heads named by properties, with controls. `span_direct` and
  `span_covariance` are the algorithm on matrices.
* `confirm_span`: its named heads ablated in the forward pass, on other images, against random heads; `confirm_heads`:
  any groups of heads. `remove_cue`: a spurious cue taken out.
* `replaced_accuracy`, `term_shares`: how much of the model is in the texts, and in the heads at all.
* `token_heat`, `text_heat`, `patch_cosine`: where in the image it comes from. `localisation`, `segmentation`: maps
  against masks. `retrieval`: images that are alike by a head.
* `sith`, `rescaled`: what heads can write, from their weights alone, and edits of single directions;
  `property_directions`, `direction_edits`: the directions about a property taken out.
* `property_tasks`: zero-shot questions whose answers are known. `compare_forms`, `compare_on_model`: the two forms of
  the algorithm, timed.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "text_span": "probes.textspan.span",
        "TextSpan": "probes.textspan.record",
        "Span": "probes.textspan.greedy",
        "span_direct": "probes.textspan.direct",
        "span_covariance": "probes.textspan.greedy",
        "head_properties": "probes.textspan.labels",
        "inside": "probes.textspan.inside",
        "subspace": "probes.textspan.inside",
        "confirm_heads": "probes.textspan.confirm",
        "confirm_span": "probes.textspan.confirm_span",
        "remove_cue": "probes.textspan.cues",
        "replaced_accuracy": "probes.textspan.replaced",
        "term_shares": "probes.textspan.shares",
        "Heat": "probes.textspan.heat",
        "token_heat": "probes.textspan.heat",
        "text_heat": "probes.textspan.heat",
        "patch_cosine": "probes.textspan.heat",
        "localisation": "probes.textspan.localise",
        "segmentation": "probes.textspan.segment",
        "retrieval": "probes.textspan.retrieval",
        "sith": "probes.textspan.sith",
        "head_map": "probes.textspan.sith",
        "rescaled": "probes.textspan.sith",
        "property_directions": "probes.textspan.sith_edit",
        "random_directions": "probes.textspan.sith_edit",
        "direction_edits": "probes.textspan.sith_edit",
        "coherent_omp": "probes.textspan.coherent",
        "Task": "probes.textspan.tasks",
        "property_tasks": "probes.textspan.tasks",
        "class_task": "probes.textspan.tasks",
        "compare_forms": "probes.textspan.speed",
        "compare_on_model": "probes.textspan.speed",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.textspan.coherent import coherent_omp
    from probes.textspan.confirm import confirm_heads
    from probes.textspan.confirm_span import confirm_span
    from probes.textspan.cues import remove_cue
    from probes.textspan.direct import span_direct
    from probes.textspan.greedy import Span, span_covariance
    from probes.textspan.heat import Heat, patch_cosine, text_heat, token_heat
    from probes.textspan.inside import inside, subspace
    from probes.textspan.labels import head_properties
    from probes.textspan.localise import localisation
    from probes.textspan.record import TextSpan
    from probes.textspan.replaced import replaced_accuracy
    from probes.textspan.retrieval import retrieval
    from probes.textspan.segment import segmentation
    from probes.textspan.shares import term_shares
    from probes.textspan.sith import head_map, rescaled, sith
    from probes.textspan.sith_edit import direction_edits, property_directions, random_directions
    from probes.textspan.span import text_span
    from probes.textspan.speed import compare_forms, compare_on_model
    from probes.textspan.tasks import Task, class_task, property_tasks
