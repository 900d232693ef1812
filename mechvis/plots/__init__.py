"""Figures from results: arrays in, a matplotlib `Figure` out.

Figures are made with matplotlib's object interface: no pyplot, no global state, no window, no changed settings. Show
one in a notebook by naming it, save it with `figure.savefig(...)`. Colours can be told apart by colour-blind readers
and in grey print; effects have a diverging map with its middle at zero; what survives the correction for many
comparisons is marked.
"""

from mechvis.plots.attention_heads import attention_heads
from mechvis.plots.bars import bars, control_strip
from mechvis.plots.circuit_curve import circuit_curve
from mechvis.plots.concept_panel import concept_panel
from mechvis.plots.curve import Line, curve
from mechvis.plots.feature_fates import feature_fates
from mechvis.plots.forest import Measure, forest
from mechvis.plots.head_map import head_map
from mechvis.plots.image_overlay import image_overlay
from mechvis.plots.image_panel import image_panel
from mechvis.plots.image_text_pairs import image_text_pairs
from mechvis.plots.latent_panel import latent_panel
from mechvis.plots.layer_curve import layer_curve
from mechvis.plots.lens_map import lens_map
from mechvis.plots.map_comparison import map_comparison
from mechvis.plots.model_diff import model_diff_histogram
from mechvis.plots.norm_histogram import norm_histogram
from mechvis.plots.null_space import null_space_plane
from mechvis.plots.patch_map import patch_map
from mechvis.plots.patch_swaps import patch_swaps
from mechvis.plots.patching_grid import patching_grid
from mechvis.plots.property_heads import property_heads
from mechvis.plots.rank_agreement import rank_agreement
from mechvis.plots.removal_curve import removal_curve
from mechvis.plots.strategy_graph import strategy_graph
from mechvis.plots.text_table import text_table
from mechvis.plots.timeline_map import timeline_map
from mechvis.plots.token_heat import token_heat
from mechvis.plots.unit_panel import unit_panel

__all__ = [
    "Line",
    "Measure",
    "attention_heads",
    "bars",
    "circuit_curve",
    "concept_panel",
    "control_strip",
    "curve",
    "feature_fates",
    "forest",
    "head_map",
    "image_overlay",
    "image_panel",
    "image_text_pairs",
    "latent_panel",
    "layer_curve",
    "lens_map",
    "map_comparison",
    "model_diff_histogram",
    "norm_histogram",
    "null_space_plane",
    "patch_map",
    "patch_swaps",
    "patching_grid",
    "property_heads",
    "rank_agreement",
    "removal_curve",
    "strategy_graph",
    "text_table",
    "timeline_map",
    "token_heat",
    "unit_panel",
]
