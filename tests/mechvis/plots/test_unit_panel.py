"""The panel of a unit: one row per kind of image, one scale for all maps, any text, no trace."""

import io

import matplotlib
import numpy as np
import pytest

from mechvis.errors import BadImages, NotFinite, ShapeMismatch
from mechvis.plots.unit_panel import unit_panel

IMAGES = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(4)]
MAPS = np.arange(4 * 9.0).reshape(4, 3, 3)
HOSTILE = r"$\frac{$ _x^ \n & < > % # $$"


def test_rows_values_and_one_scale():
    figure = unit_panel(
        IMAGES, IMAGES[:2], top_values=[4, 3, 2, 1.5], ranged_values=[3, 0], top_maps=MAPS, ranged_maps=MAPS[:2] - 9
    )
    axes = [one for one in figure.axes if one.get_label() != "<colorbar>"]
    assert [one.get_ylabel() for one in axes if one.get_ylabel()] == [
        "most active",
        "where",
        "from the whole range",
        "where",
    ]
    assert [one.get_xlabel() for one in axes if one.get_xlabel()] == ["4", "3", "2", "1.5", "3", "0"]
    assert len(axes) == 4 + 4 + 2 + 2
    limits = {image.get_clim() for one in axes for image in one.images[1:]}
    assert limits == {(-9.0, 35.0)}


@pytest.mark.parametrize("text", ["plain", HOSTILE, ""])
def test_any_text_and_no_trace(text):
    before = dict(matplotlib.rcParams)
    for maps in (None, MAPS, np.ones((4, 3, 3))):
        figure = unit_panel(IMAGES, top_maps=maps, title=text, label=text)
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind)
            assert buffer.tell() > 1000
    assert dict(matplotlib.rcParams) == before


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadImages, match="no image"):
        unit_panel([])
    with pytest.raises(BadImages, match="image 0 holds float64"):
        unit_panel([np.zeros((8, 8, 3))])
    with pytest.raises(ShapeMismatch, match="top_values needs one entry per image: 4 images, 1 entries"):
        unit_panel(IMAGES, top_values=[1])
    with pytest.raises(ShapeMismatch, match="ranged_maps needs one map per image: 2 images, 4 maps"):
        unit_panel(IMAGES, IMAGES[:2], ranged_maps=MAPS)
    with pytest.raises(NotFinite, match="top_maps holds NaN"):
        unit_panel(IMAGES, top_maps=np.full((4, 3, 3), np.nan))
