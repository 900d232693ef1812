"""Second-order effects: what neurons do through the attention heads after them.

* `coefficients`: the effects, exactly, factorised; `effects_by_token` is the plain twin, `effect_of_write` the same for
  any write to the stream.
* `rank_one`, `summarise`: one direction per neuron, its top images; `in_words`: the direction as a sparse sum of words.
* `second_order`: all of it for some layers, as a record. `ablation_claim`: can small effects be left out?
* `segment`: the object of an image by the neurons that write towards its class.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "coefficients": "probes.second_order.effects",
        "Coefficients": "probes.second_order.effects",
        "contribution_maps": "probes.second_order.effects",
        "effects_by_token": "probes.second_order.effects",
        "effect_of_write": "probes.second_order.effects",
        "read_out_of": "probes.second_order.readout",
        "ReadOut": "probes.second_order.readout",
        "rank_one": "probes.second_order.rank_one",
        "RankOne": "probes.second_order.rank_one",
        "summarise": "probes.second_order.rank_one",
        "explained_elsewhere": "probes.second_order.rank_one",
        "in_words": "probes.second_order.texts",
        "SparseText": "probes.second_order.texts",
        "second_order": "probes.second_order.study",
        "SecondOrderStudy": "probes.second_order.study",
        "ablation_claim": "probes.second_order.claim",
        "AblationClaim": "probes.second_order.claim",
        "segment": "probes.second_order.segmentation",
        "neurons_for": "probes.second_order.segmentation",
        "activation_maps": "probes.second_order.segmentation",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.second_order.claim import AblationClaim, ablation_claim
    from probes.second_order.effects import (
        Coefficients,
        coefficients,
        contribution_maps,
        effect_of_write,
        effects_by_token,
    )
    from probes.second_order.rank_one import RankOne, explained_elsewhere, rank_one, summarise
    from probes.second_order.readout import ReadOut, read_out_of
    from probes.second_order.segmentation import activation_maps, neurons_for, segment
    from probes.second_order.study import SecondOrderStudy, second_order
    from probes.second_order.texts import SparseText, in_words
