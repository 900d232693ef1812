"""Figures from results: arrays in, a matplotlib `Figure` out.

Figures are made with matplotlib's object interface: no pyplot, no global state, no window, no changed settings. Show
one in a notebook by naming it, save it with `figure.savefig(...)`. Colours can be told apart by colour-blind readers
and in grey print; effects have a diverging map with its middle at zero; what survives the correction for many
comparisons is marked.
"""

from mechvis.plots.bars import bars, control_strip
from mechvis.plots.concept_panel import concept_panel
from mechvis.plots.curve import Line, curve
from mechvis.plots.feature_fates import feature_fates
from mechvis.plots.head_map import head_map
from mechvis.plots.image_panel import image_panel
from mechvis.plots.layer_curve import layer_curve
from mechvis.plots.lens_map import lens_map
from mechvis.plots.model_diff import model_diff_histogram
from mechvis.plots.norm_histogram import norm_histogram
from mechvis.plots.null_space import null_space_plane
from mechvis.plots.patch_map import patch_map
from mechvis.plots.property_heads import property_heads
from mechvis.plots.strategy_graph import strategy_graph
from mechvis.plots.timeline_map import timeline_map
from mechvis.plots.token_heat import token_heat
from mechvis.plots.unit_panel import unit_panel

__all__ = [
    "Line",
    "bars",
    "concept_panel",
    "control_strip",
    "curve",
    "feature_fates",
    "head_map",
    "image_panel",
    "layer_curve",
    "lens_map",
    "model_diff_histogram",
    "norm_histogram",
    "null_space_plane",
    "patch_map",
    "property_heads",
    "strategy_graph",
    "timeline_map",
    "token_heat",
    "unit_panel",
]
