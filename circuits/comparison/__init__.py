"""Circuits compared: across models, to rank them before labels exist, and across data, to see a shift (Inside-Out).

* `compare_models`: dependency depth bias (DDB) of several models on one set, beside baselines. `ddb` from edge scores.
* `compare_data`: circuit shift score (CSS) of one model over sets, with its noise floor. `css` from edge scores.
* `data_graph`: the scores themselves, of all edges on a set of images.
* `ladder`, `corrupted`: known shifts; `alarm_threshold`: an alarm set by them.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "compare_models": "circuits.comparison.models",
        "compare_data": "circuits.comparison.data",
        "data_graph": "circuits.comparison.graphs",
        "ddb": "circuits.comparison.ddb",
        "DepthBias": "circuits.comparison.ddb",
        "layer_dependency": "circuits.comparison.depth",
        "LayerDependency": "circuits.comparison.depth",
        "css": "circuits.comparison.css",
        "CircuitShift": "circuits.comparison.css",
        "distance": "circuits.comparison.distances",
        "corrupted": "circuits.comparison.corruptions",
        "ladder": "circuits.comparison.corruptions",
        "alarm_threshold": "circuits.comparison.alarm",
        "Alarm": "circuits.comparison.alarm",
        "Comparison": "circuits.comparison.record",
        "load_comparison": "circuits.comparison.record",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.comparison.alarm import Alarm, alarm_threshold
    from circuits.comparison.corruptions import corrupted, ladder
    from circuits.comparison.css import CircuitShift, css
    from circuits.comparison.data import compare_data
    from circuits.comparison.ddb import DepthBias, ddb
    from circuits.comparison.depth import LayerDependency, layer_dependency
    from circuits.comparison.distances import distance
    from circuits.comparison.graphs import data_graph
    from circuits.comparison.models import compare_models
    from circuits.comparison.record import Comparison, load_comparison
