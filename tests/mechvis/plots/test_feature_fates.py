"""Stacked bars of what becomes of latents."""

import numpy as np
import pytest

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.plots.feature_fates import feature_fates


def test_bars_are_stacked_one_per_step():
    figure = feature_fates(
        ["0 to 1", "1 to 2"], {"persists": np.array([15, 12]), "born": np.array([5, 8])}, title="Fates"
    )
    axes = figure.axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [15, 12, 5, 8] and [patch.get_x() for patch in axes.patches] == [0, 0, 15, 12]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0 to 1", "1 to 2"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "first on top"
    assert len({patch.get_hatch() for patch in axes.patches}) == 2


def test_what_cannot_be_drawn():
    with pytest.raises(ShapeMismatch, match="at least one step and one fate"):
        feature_fates([], {})
    with pytest.raises(ShapeMismatch, match="2 steps, and counts of 'born' are"):
        feature_fates(["a", "b"], {"born": np.array([1])})
    with pytest.raises(NotFinite):
        feature_fates(["a"], {"born": np.array([np.nan])})
