"""Figures from results: arrays in, a matplotlib `Figure` out.

Figures are made with matplotlib's object interface: no pyplot, no global state, no window, no changed settings. Show
one in a notebook by naming it, save it with `figure.savefig(...)`. Colours can be told apart by colour-blind readers
and in grey print; effects have a diverging map with its middle at zero; what survives the correction for many
comparisons is marked.
"""

from mechvis.plots.bars import bars, control_strip
from mechvis.plots.curve import Line, curve
from mechvis.plots.head_map import head_map
from mechvis.plots.image_panel import image_panel
from mechvis.plots.patch_map import patch_map

__all__ = ["Line", "bars", "control_strip", "curve", "head_map", "image_panel", "patch_map"]
