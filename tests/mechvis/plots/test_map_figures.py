"""Maps over images: the values are in the picture, on the grid, on the scale that is promised."""

import numpy as np
import pytest

from mechvis.errors import BadImages, NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots import attention_heads, image_overlay, latent_panel, map_comparison
from mechvis.plots.image_overlay import limits
from mechvis.plots.look import AMOUNTS, DIVERGING

IMAGE = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
MAPS = np.array([[[1.0, -2.0], [np.nan, 0.0]], [[0.5, 0.25], [0.0, 1.0]]])


def values(axes) -> np.ndarray:
    return np.ma.filled(axes.images[-1].get_array().astype(float), np.nan)


def notes(figure) -> str:
    return figure.texts[-1].get_text().replace("\n", " ")


def test_overlay_holds_maps_titles_and_what_lies_outside():
    figure = image_overlay(
        MAPS, [IMAGE] * 2, titles=["star", "ring"], prefix={"CLS": [0.5, -3]}, title="IG", label="logit", n=64
    )
    above, below = figure.axes[:2], figure.axes[2:4]
    assert [axes.get_title() for axes in above] == ["star", "ring"]
    assert [axes.get_xlabel() for axes in below] == ["CLS +0.5", "CLS -3"]
    for axes, own in zip(below, MAPS, strict=True):
        assert np.array_equal(values(axes), own, equal_nan=True)
        assert axes.images[1].get_extent() == axes.images[0].get_extent() == [-0.5, 11.5, 7.5, -0.5]
        # One scale for all, zero in its middle, although the second map has no negative value.
        assert axes.images[1].get_clim() == (-2, 2) and axes.images[1].get_cmap().name == DIVERGING
    assert np.array_equal(above[0].images[0].get_array(), IMAGE)
    assert figure.axes[4].get_ylabel() == "logit"
    assert figure.get_suptitle() == "IG"
    assert notes(figure) == "one scale for all maps; CLS: outside of the image, value below the map; n = 64 images"


def test_overlay_of_amounts_starts_at_zero_and_needs_no_image():
    figure = image_overlay(MAPS[1:], columns=1)
    (shown,) = figure.axes[0].images
    assert shown.get_clim() == (0, 1) and shown.get_cmap().name == AMOUNTS
    assert image_overlay(MAPS[1:], signed=True).axes[0].images[0].get_clim() == (-1, 1)
    assert image_overlay(MAPS[1:], limit=4).axes[0].images[0].get_clim() == (0, 4)
    # Three maps in rows of two: the fourth place is empty.
    assert len(image_overlay(MAPS[[1, 1, 1]], [IMAGE] * 3, columns=2).axes) == 6 + 1


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"maps": []}, ShapeMismatch, "no map"),
        ({"maps": [np.ones(3)]}, ShapeMismatch, "map 0 needs 2 non-empty axes"),
        ({"maps": [np.full((2, 2), np.nan)]}, NotFinite, "NaN everywhere"),
        ({"maps": [np.full((2, 2), np.inf)]}, NotFinite, "map 0 holds Inf"),
        ({"maps": [-np.ones((2, 2))], "signed": False}, OutOfRange, "starts at 0, got -1"),
        ({"images": [IMAGE] * 2}, ShapeMismatch, "images needs one entry per map: 1 maps, 2 entries"),
        ({"images": [IMAGE / 255]}, BadImages, "float64"),
        ({"titles": ["a", "b"]}, ShapeMismatch, "titles needs one entry per map"),
        ({"prefix": {"CLS": [1, 2]}}, ShapeMismatch, "CLS needs one entry per map"),
        ({"columns": 0}, ShapeMismatch, "columns must be at least 1"),
        ({"limit": 0.0}, OutOfRange, "must be positive"),
    ],
)
def test_overlay_refuses(change, error, says):
    with pytest.raises(error, match=says):
        image_overlay(**{"maps": [np.ones((2, 2))], "images": [IMAGE], **change})


def test_limits_are_those_of_all_maps():
    assert limits([np.zeros((2, 2))], True) == (-1.0, 1.0)
    assert limits([np.array([0.5]), np.array([[3.0]])], False) == (0.0, 3.0)


def test_comparison_scales_each_method_by_itself():
    maps = {"IG": MAPS * 100, "rollout": np.abs(np.nan_to_num(MAPS)), "zeros": np.zeros((2, 3, 3))}
    figure = map_comparison([IMAGE] * 2, maps, captions=["star", "ring"], below={"IG": ["0.3", "0.4"]}, title="t", n=9)
    grid = np.array(figure.axes[:8]).reshape(2, 4)
    assert [axes.get_title() for axes in grid[0]] == ["image", "IG", "rollout", "zeros"]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["star", "ring"]
    assert [axes.get_xlabel() for axes in grid[:, 1]] == ["0.3", "0.4"] and not grid[0, 2].get_xlabel()
    for row in range(2):
        assert np.allclose(values(grid[row, 1]), MAPS[row] / 2, equal_nan=True)
        assert np.allclose(values(grid[row, 2]), maps["rollout"][row] / 2)
        assert not values(grid[row, 3]).any()
    assert [grid[0, k].images[-1].get_clim() for k in (1, 2)] == [(-1, 1), (0, 1)]
    # A colour bar for signed maps and one for amounts.
    assert len(figure.axes) == 10 and "each method on its own scale" in notes(figure)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"maps": {}}, ShapeMismatch, "at least one method"),
        ({"maps": {"a": np.ones((1, 2, 2))}}, ShapeMismatch, "2 images, 1 maps"),
        ({"maps": {"a": np.full((2, 2, 2), np.nan)}}, NotFinite, "'a' are NaN everywhere"),
        ({"captions": ["x"]}, ShapeMismatch, "captions needs one entry per image"),
        ({"below": {"b": ["x", "y"]}}, ShapeMismatch, "'b', which has no maps. Methods: a"),
    ],
)
def test_comparison_refuses(change, error, says):
    with pytest.raises(error, match=says):
        map_comparison([IMAGE] * 2, **{"maps": {"a": np.ones((2, 2, 2))}, **change})


PATTERN = np.arange(2 * 3 * 5, dtype=float).reshape(2, 3, 5)
PATTERN /= PATTERN.sum(-1, keepdims=True)


def test_attention_shows_each_head_on_its_own_scale_and_what_is_outside():
    figure = attention_heads(IMAGE, PATTERN, grid=(2, 2), title="t")
    image, *cells = figure.axes[:7]
    assert np.array_equal(image.images[0].get_array(), IMAGE)
    assert [axes.get_title() for axes in cells[:3]] == ["head 0", "head 1", "head 2"]
    assert [axes.get_ylabel() for axes in cells] == ["layer 0", "", "", "layer 1", "", ""]
    for axes, own in zip(cells, PATTERN.reshape(6, 5), strict=True):
        patches = own[1:].reshape(2, 2)
        assert np.allclose(values(axes), patches / patches.max())
        assert axes.get_xlabel() == f"most {patches.max():.2f} · CLS {own[0]:.2f}"
        assert not axes.patches
    assert notes(figure).startswith("query: CLS; one image")


def test_attention_marks_the_patch_that_looks_and_can_share_a_scale():
    figure = attention_heads(IMAGE, PATTERN, grid=(2, 2), query=(1, 0), layers=[4, 7], common=True)
    image, *cells = figure.axes[:7]
    # Patch (1, 0) of a picture of 8 x 12 pixels in 2 x 2 patches: lower left, 6 wide and 4 high.
    for axes in (image, *cells):
        (frame,) = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches}
        assert frame == (-0.5, 3.5, 6.0, 4.0)
    assert np.allclose(values(cells[5]), PATTERN[1, 2, 1:].reshape(2, 2))
    assert {axes.images[-1].get_clim() for axes in cells} == {(0.0, PATTERN[..., 1:].max())}
    assert cells[3].get_ylabel() == "layer 7" and cells[0].get_xlabel() == f"CLS {PATTERN[0, 0, 0]:.2f}"
    assert "row 1, column 0" in notes(figure)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"grid": (2, 3)}, ShapeMismatch, "5 keys; 1 prefix tokens and 2 x 3 patches are 7"),
        ({"pattern": PATTERN * 9}, OutOfRange, "between 0 and 1"),
        ({"pattern": np.full((1, 1, 5), np.nan)}, NotFinite, "pattern holds NaN"),
        ({"pattern": np.eye(5)[None, :1]}, NotFinite, "no head attends to any patch"),
        ({"query": (2, 0)}, OutOfRange, "outside of 2 x 2"),
        ({"layers": [0]}, ShapeMismatch, "2 layers, 1 are named"),
        ({"image": IMAGE.astype(float)}, BadImages, "float64"),
    ],
)
def test_attention_refuses(change, error, says):
    with pytest.raises(error, match=says):
        attention_heads(**{"image": IMAGE, "pattern": PATTERN, "grid": (2, 2), **change})


def test_latent_panel_shows_top_images_and_the_whole_distribution():
    maps = np.array([[[3.0, 0.0]], [[0.0, 2.5]]])
    seen = np.array([0.0] * 6 + [0.5, 1.0, 2.5, 3.0])
    figure = latent_panel([IMAGE] * 2, maps, seen, captions=["star", "ring"], facts={"k": 8}, bins=3, what="patches")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["star", "ring"]
    assert [axes.get_xlabel() for axes in figure.axes[2:4]] == ["3", "2.5"]
    assert {axes.images[-1].get_clim() for axes in figure.axes[2:4]} == {(0.0, 3.0)}
    histogram = next(axes for axes in figure.axes if axes.get_ylabel() == "patches")
    # Four of ten are active; counts of the three bins.
    assert [int(bar.get_height()) for bar in histogram.patches[:3]] == [2, 0, 2]
    assert histogram.get_title(loc="left") == "active on 0.4 of all patches"
    assert [text.get_text() for text in figure.axes[-1].texts] == ["k", "8"]
    assert "n = 10 patches" in notes(figure)
    dead = latent_panel([IMAGE], np.zeros((1, 2, 2)), np.zeros(5))
    assert any(text.get_text() == "never active" for axes in dead.axes for text in axes.texts)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"maps": np.ones((2, 2, 2))}, ShapeMismatch, "1 images, 2 maps"),
        ({"values": [1, 2]}, ShapeMismatch, "values need one entry per image"),
        ({"activations": np.array([np.nan])}, NotFinite, "activations holds NaN"),
        ({"activations": np.array([-1.0])}, OutOfRange, "0 or more, got -1"),
        ({"maps": -np.ones((1, 2, 2))}, OutOfRange, "starts at 0"),
    ],
)
def test_latent_panel_refuses(change, error, says):
    with pytest.raises(error, match=says):
        latent_panel(**{"top": [IMAGE], "maps": np.ones((1, 2, 2)), "activations": np.ones(3), **change})
