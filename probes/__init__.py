"""Read-outs: what can be read from a model's activations, and how far to believe it. They look; they change nothing.

    features = probes.collect(model, images, tokens=["cls", "mean"])     # one pass, all layers
    probes.probe_layers(features, target="background")                   # linear probes with their controls
    probes.decision_timeline(model, images)                              # at which layer an image is decided
    probes.logit_lens(model, images)                                     # what the model would answer there
    probes.text_span(clip, images, bank)                                 # heads of a CLIP model in words
    mechvis.decompose(model, images)                                     # what everything writes, an exact sum

Sub-packages by question: `linear`, `timeline`, `lenses` (what is there, layer by layer); `textspan`, `second_order`,
`codes`, `unit_labels` (in words: heads, neurons, embeddings, units); `concepts`, `concept_tests`, `concept_scope`,
`surf` (concepts, and whether to believe them); `null_space`, `registers` (what hides); `bottleneck`, `repair`, `bcos`
(models that are made to be read). Every study returns a `mechvis.Record`: it prints, saves, loads and reports.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Features": "probes.features",
        "collect": "probes.features",
        "probe_model": "probes.linear.model",
        "probe_layers": "probes.linear.layers",
        "probe_patches": "probes.linear.patches",
        "erase": "probes.linear.erasing",
        "decision_timeline": "probes.timeline",
        "logit_lens": "probes.lenses",
        "lens_maps": "probes.lenses",
        "tuned_lens": "probes.lenses",
        "text_span": "probes.textspan",
        "confirm_heads": "probes.textspan",
        "splice": "probes.codes",
        "hcep": "probes.codes",
        "label_units": "probes.unit_labels",
        "sing": "probes.null_space",
        "surf_of_model": "probes.surf",
        "craft": "probes.concepts",
        "tcav": "probes.concepts",
        "disc": "probes.repair",
    },
    modules=(
        "bcos",
        "bottleneck",
        "codes",
        "concept_scope",
        "concept_tests",
        "concepts",
        "lenses",
        "linear",
        "null_space",
        "registers",
        "repair",
        "second_order",
        "surf",
        "textspan",
        "timeline",
        "unit_labels",
    ),
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.codes import hcep, splice
    from probes.concepts import craft, tcav
    from probes.features import Features, collect
    from probes.lenses import lens_maps, logit_lens, tuned_lens
    from probes.linear import erase, probe_layers, probe_model, probe_patches
    from probes.null_space import sing
    from probes.repair import disc
    from probes.surf import surf_of_model
    from probes.textspan import confirm_heads, text_span
    from probes.timeline import decision_timeline
    from probes.unit_labels import label_units
