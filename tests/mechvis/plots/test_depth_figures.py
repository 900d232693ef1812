"""Figures over depth: scores with controls, and where images are decided."""

import numpy as np
import pytest

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots.curve import Line
from mechvis.plots.layer_curve import layer_curve
from mechvis.plots.timeline_map import timeline_map

PLACES = ["embed", "L0", "L1"]


def line(name="cls: task", **more):
    y = np.array([0.1, 0.5, 0.9])
    return Line(**{"name": name, "x": np.arange(3.0), "y": y, "low": y - 0.05, "high": y + 0.05, **more})


def test_lines_of_one_choice_share_a_colour():
    lines = [line(), line("cls: control"), line("mean: task")]
    axes = layer_curve(PLACES, lines, levels={"commonest class": 0.2, "unknown": float("nan")}, title="a $").axes[0]
    drawn = {drawn.get_label(): drawn for drawn in axes.lines}
    assert drawn["cls: task"].get_color() == drawn["cls: control"].get_color() != drawn["mean: task"].get_color()
    assert drawn["cls: task"].get_linestyle() != drawn["cls: control"].get_linestyle()
    assert "commonest class: 0.20" in drawn and not any("unknown" in label for label in drawn)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == PLACES
    np.testing.assert_array_equal(drawn["cls: task"].get_ydata(), [0.1, 0.5, 0.9])


def test_the_fallback_stands_apart():
    decided = {"consistent": np.array([0.1, 0.7, 0.0]), "conflicting": np.array([0.0, 0.2, 0.3])}
    figure = timeline_map(PLACES, decided, {"consistent": 0.2, "conflicting": 0.5}, [line("conflicting: label")])
    above, below = figure.axes
    bars = [patch for container in above.containers for patch in container]
    assert [round(bar.get_height(), 2) for bar in bars] == [0.1, 0.7, 0.0, 0.2, 0.0, 0.2, 0.3, 0.5]
    assert bars[3].get_hatch() and not bars[2].get_hatch() and bars[3].get_x() > bars[2].get_x() + 1.2
    assert [tick.get_text() for tick in above.get_xticklabels()] == [*PLACES, "never"]
    assert below.lines[0].get_color() == bars[4].get_facecolor() or below.lines[0].get_label() == "conflicting: label"


def test_bad_figures():
    with pytest.raises(ShapeMismatch, match="needs a line and a place"):
        layer_curve(PLACES, [])
    with pytest.raises(NotFinite, match="places are 0 to 1"):
        layer_curve(PLACES[:2], [line()])
    with pytest.raises(ShapeMismatch, match="one end of its interval"):
        layer_curve(PLACES, [line(high=None)])
    with pytest.raises(ShapeMismatch, match="groups decided"):
        timeline_map(PLACES, {"a": np.zeros(3)}, {"b": 0.1})
    with pytest.raises(OutOfRange, match="sum to at most 1"):
        timeline_map(PLACES, {"a": np.ones(3)}, {"a": 0.1})
    with pytest.raises(OutOfRange, match="anchors are 0 to 2"):
        timeline_map(PLACES, {"a": np.zeros(3)}, {"a": 0.1}, [line(x=np.arange(3.0) + 1)])
    with pytest.raises(ShapeMismatch, match="one end"):
        timeline_map(PLACES, {"a": np.zeros(3)}, {"a": 0.1}, [line(low=None)])
