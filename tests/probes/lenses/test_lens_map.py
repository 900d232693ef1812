"""The figure of patch answers: what is drawn is what was given."""

import numpy as np
import pytest

from mechvis.errors import BadImages, OutOfRange, ShapeMismatch
from mechvis.plots.lens_map import lens_map

IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_titles_legend_and_opacity():
    answers = np.zeros((2, 3, 4, 4), int)
    answers[:, 1] = 2
    sure = np.full((2, 3, 4, 4), 0.5)
    sure[0, 0, 0, 0] = np.nan
    figure = lens_map([IMAGE] * 2, answers, sure, ["a$", "b", "c"], layers=[0, 1], captions=["x", "y"], title="t")
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "layer 0", "layer 1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r"a\$", "c"]
    drawn = figure.axes[1].get_images()[1].get_array()
    assert drawn[0, 0, 3] == 0 and drawn[1, 1, 3] == pytest.approx(0.525)


def test_rare_classes_share_grey():
    answers = np.arange(16).reshape(1, 1, 4, 4)
    figure = lens_map([IMAGE], answers, np.ones((1, 1, 4, 4)), [f"c{i}" for i in range(16)])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 9 and names[-1] == "other"


def test_refusals():
    ones = np.ones((1, 2, 4, 4))
    with pytest.raises(OutOfRange, match="class indices 0 to 0"):
        lens_map([IMAGE], ones, ones, ["a"])
    with pytest.raises(OutOfRange, match="confidence lies between 0 and 1"):
        lens_map([IMAGE], ones * 0, ones * 2, ["a"])
    with pytest.raises(ShapeMismatch, match="answers need one entry per image"):
        lens_map([IMAGE] * 2, ones * 0, ones, ["a"])
    with pytest.raises(OutOfRange, match="layer 2 has no map"):
        lens_map([IMAGE], ones * 0, ones, ["a"], layers=[2])
    with pytest.raises(BadImages):
        lens_map([IMAGE.astype(float)], ones * 0, ones, ["a"])
