"""Concept bottlenecks on frozen features: a classifier that must speak through named concepts, and what it hides.

* `Concepts`: named directions (texts of a CLIP model, or given), `concepts_of_texts`, `random_concepts`.
* `precheck`: what the concepts know of the classes, `H(Y|C)`, beside random words and the features themselves.
* `bypass`: can a linear chain undo the concepts, so that any vocabulary would do?
* `bottleneck`: the head with its elementwise non-linear layer, distillation and sparse weights; a `Bottleneck` record.
* `intervene`, `leakage`: what correcting a concept does; what the scores tell beyond the concepts' presence.
* `label_free`: concepts learned from CLIP's opinion of the images instead of labels.
* `with_bottleneck`: the head on a wrapped model, the concept layer a site that can be read and edited.
* `elastic_net`, `elastic_net_path`: the sparse final layer.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Concepts": "probes.bottleneck.concepts",
        "concepts_of_texts": "probes.bottleneck.concepts",
        "random_concepts": "probes.bottleneck.concepts",
        "precheck": "probes.bottleneck.entropy",
        "bypass": "probes.bottleneck.bypass",
        "elastic_net": "probes.bottleneck.elastic_net",
        "elastic_net_path": "probes.bottleneck.elastic_net",
        "bottleneck": "probes.bottleneck.head",
        "Bottleneck": "probes.bottleneck.record",
        "intervene": "probes.bottleneck.intervene",
        "Interventions": "probes.bottleneck.intervene",
        "leakage": "probes.bottleneck.leakage",
        "label_free": "probes.bottleneck.label_free",
        "filter_texts": "probes.bottleneck.label_free",
        "learn_projection": "probes.bottleneck.label_free",
        "with_bottleneck": "probes.bottleneck.attach",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.bottleneck.attach import with_bottleneck
    from probes.bottleneck.bypass import bypass
    from probes.bottleneck.concepts import Concepts, concepts_of_texts, random_concepts
    from probes.bottleneck.elastic_net import elastic_net, elastic_net_path
    from probes.bottleneck.entropy import precheck
    from probes.bottleneck.head import bottleneck
    from probes.bottleneck.intervene import Interventions, intervene
    from probes.bottleneck.label_free import filter_texts, label_free, learn_projection
    from probes.bottleneck.leakage import leakage
    from probes.bottleneck.record import Bottleneck
