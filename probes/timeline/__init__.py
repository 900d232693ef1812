"""When a model decides: running predictions over depth, where they settle, and what they are until then.

* `decision_timeline`: a model on images, by group, with everything below.
* `decision_layer` (`l*`), `fell_back`, `settle`, `settle_conf`: the definitions, on tables of predictions.
* `dip_test`: one peak or several? Hartigan's dip, for whole numbers too.
* `exit_curve`, `exits`: accuracy against compute when images leave as soon as their prediction is stable.
* `mildly_corrupted`: noise, blur and brightness of small size.
* `partner_of_background`: what the shortcut of the bundled scenes suggests, to follow it.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "decision_timeline": "probes.timeline.decide",
        "partner_of_background": "probes.timeline.decide",
        "Timeline": "probes.timeline.record",
        "decision_layer": "probes.timeline.settle",
        "fell_back": "probes.timeline.settle",
        "settle": "probes.timeline.settle",
        "settle_conf": "probes.timeline.settle",
        "summary_of": "probes.timeline.depth",
        "by_anchor": "probes.timeline.depth",
        "shuffled_anchors": "probes.timeline.depth",
        "Dip": "probes.timeline.dip",
        "dip": "probes.timeline.dip",
        "dip_test": "probes.timeline.dip",
        "exits": "probes.timeline.early_exit",
        "exit_curve": "probes.timeline.early_exit",
        "mildly_corrupted": "probes.timeline.corrupt",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.timeline.corrupt import mildly_corrupted
    from probes.timeline.decide import decision_timeline, partner_of_background
    from probes.timeline.depth import by_anchor, shuffled_anchors, summary_of
    from probes.timeline.dip import Dip, dip, dip_test
    from probes.timeline.early_exit import exit_curve, exits
    from probes.timeline.record import Timeline
    from probes.timeline.settle import decision_layer, fell_back, settle, settle_conf
