"""Figures: the numbers are in them, they leave no trace in matplotlib, and text is only text."""

import io

import matplotlib
import matplotlib._pylab_helpers
import numpy as np
import pytest

from mechvis.errors import BadImages, NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots import Line, bars, control_strip, curve, head_map, image_panel, patch_map

EFFECTS = np.array([[0.1, -0.5, 0.0], [np.nan, 1.25, -0.004]])
IMAGE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
MASK = np.zeros((8, 6), bool)
MASK[2:5, 0:3] = True
HOSTILE = r"$\frac{$ _x^ \n & < > % # $$"


def line(**change) -> Line:
    return Line(
        **{
            "name": "a",
            "x": np.arange(3),
            "y": np.array([0.1, 0.2, 0.3]),
            "low": np.array([0.0, 0.1, 0.2]),
            "high": np.array([0.2, 0.3, 0.4]),
            **change,
        }
    )


FIGURES = {
    "head_map": lambda text: head_map(EFFECTS, significant=EFFECTS > 1, title=text, label=text),
    "token map": lambda text: head_map(np.ones((2, 50)), significant=np.ones((2, 50)), title=text, column="token"),
    "curve": lambda text: curve(
        [line(name=text), line(name="_b", low=None, high=None)],
        chosen=1,
        title=text,
        x_label=text,
        y_label=text,
        percent=True,
    ),
    "image_panel": lambda text: image_panel(
        [IMAGE] * 4,
        masks=[MASK, ~MASK, MASK & False, MASK | True],
        overlay=[np.eye(3)] * 4,
        captions=[text] * 4,
        columns=3,
        title=text,
        label=text,
    ),
    "patch_map": lambda text: patch_map(
        [IMAGE] * 2, np.arange(2 * 3 * 4 * 3.0).reshape(2, 3, 4, 3) - 30, captions=[text] * 2, title=text, label=text
    ),
    "bars": lambda text: bars(
        [text, text],
        np.array([0.5, -0.1]),
        low=np.array([0.4, np.nan]),
        high=np.array([0.6, np.nan]),
        significant=np.array([True, False]),
        title=text,
        label=text,
    ),
    "control_strip": lambda text: control_strip(
        np.linspace(-1, 1, 21), 3.0, low=2.5, high=3.5, name=text, control_name=text, title=text, label=text
    ),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("text", ["plain", HOSTILE, ""])
def test_figures_draw_any_text_and_leave_no_trace(name, text):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name](text)
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        assert buffer.tell() > 1000
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_dollar_signs_are_shown_as_they_are():
    figure = head_map(EFFECTS, title="costs $5 or $6")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    # matplotlib writes each drawn string as a comment beside its outline.
    assert b"costs $5 or $6" in buffer.getvalue()


def test_head_map_holds_the_effects_around_zero():
    figure = head_map(EFFECTS, significant=np.array([[False, True, False], [False, True, False]]))
    axes = figure.axes[0]
    image = axes.images[0]
    assert np.array_equal(np.ma.filled(image.get_array(), np.nan), EFFECTS, equal_nan=True)
    assert image.get_clim() == (-1.25, 1.25)
    low, middle, high = image.cmap(image.norm([-1.25, 0.0, 1.25]))
    assert min(middle[:3]) > 0.95 and low[2] > low[0] and high[0] > high[2]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:5] == ["0.10", "−0.50", "0.00", "1.25", "0.00"]
    assert [text.get_text() for text in figure.texts] == ["framed: survives the false-discovery-rate correction"]
    frames = [patch.get_xy() for patch in axes.patches if patch.get_hatch() is None]
    assert frames == [(pytest.approx(0.56), pytest.approx(-0.44)), (pytest.approx(0.56), pytest.approx(0.56))]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_head_map_without_effects_or_marks():
    figure = head_map(np.zeros((2, 2)))
    axes = figure.axes[0]
    assert axes.images[0].get_clim() == (-1.0, 1.0) and not figure.texts
    head_map(np.full((1, 1), np.nan)).draw_without_rendering()
    assert head_map(np.full((1, 2), 4e-5)).axes[0].texts[0].get_text() == "4e−05"
    assert head_map(EFFECTS, limit=5).axes[0].images[0].get_clim() == (-5, 5)


def test_curve_holds_lines_bands_and_the_choice():
    axes = curve([line(), line(name="b", y=np.array([0.5, np.nan, 0.7]), low=None, high=None)], chosen=2).axes[0]
    drawn = {entry.get_label(): entry for entry in axes.lines}
    assert drawn["a"].get_ydata().tolist() == [0.1, 0.2, 0.3]
    assert len(axes.collections) == 1
    assert axes.lines[2].get_xdata() == [2, 2]
    # Told apart without colour as well.
    assert drawn["a"].get_linestyle() != drawn["b"].get_linestyle()
    assert drawn["a"].get_marker() != drawn["b"].get_marker()
    assert "chosen: 2" in [text.get_text() for text in axes.texts]


def test_image_panel_shows_images_masks_and_captions():
    figure = image_panel([IMAGE, IMAGE[..., :1]], masks=[MASK, MASK & False], captions=["first", "second"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["first", "second"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), IMAGE)
    assert len(figure.axes[0].collections) == 1 and not figure.axes[1].collections
    # The outline of an object at the left border is closed, and lies half a pixel around it.
    points = np.concatenate([path.vertices for path in figure.axes[0].collections[0].get_paths()])
    assert points.min(0).tolist() == [-0.5, 1.5] and points.max(0).tolist() == [2.5, 4.5]
    assert figure.axes[0].get_xlim() == (-0.5, 5.5) and figure.axes[0].get_ylim() == (7.5, -0.5)


def test_overlay_covers_the_image_on_its_patch_grid():
    figure = image_panel([IMAGE], overlay=[np.array([[1.0, -2.0], [np.nan, 0.0]])])
    image, overlay = figure.axes[0].images
    assert overlay.get_extent() == image.get_extent() and overlay.get_clim() == (-2, 2)


def test_bars_are_in_order_with_intervals():
    axes = bars(["x", "y"], np.array([0.5, -0.1]), low=np.array([0.4, -0.3]), high=np.array([0.6, 0.1])).axes[0]
    assert [patch.get_width() for patch in axes.patches] == [0.5, -0.1]
    assert [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()] == [[0.4, 0.6], [-0.3, 0.1]]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()


def test_bars_that_do_not_survive_are_pale_and_the_figure_says_so():
    figure = bars(["x", "y"], np.array([0.5, 0.4]), significant=np.array([True, False]), n=12)
    axes = figure.axes[0]
    assert axes.patches[0].get_alpha() > 2 * axes.patches[1].get_alpha()
    (note,) = (text.get_text() for text in figure.texts)
    assert note == "pale: does not survive the false-discovery-rate correction; n = 12 images"
    assert not bars(["x"], np.array([0.5]), significant=np.array([True])).texts


def test_control_strip_shows_every_draw():
    controls = np.random.default_rng(0).normal(size=30)
    axes = control_strip(controls, 4.0, control_name="random heads").axes[0]
    dots = next(entry for entry in axes.lines if entry.get_marker() == "o")
    assert dots.get_xdata().tolist() == sorted(controls)
    assert axes.lines[-1].get_xdata() == [4.0, 4.0]
    assert "random heads, 30 draws" in [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: head_map(np.zeros(3)), ShapeMismatch, r"effects needs 2 non-empty axes, got the shape \[3\]"),
        (lambda: head_map(np.zeros((0, 3))), ShapeMismatch, "non-empty"),
        (lambda: head_map(np.array([[np.inf]])), NotFinite, "effects holds Inf"),
        (lambda: head_map(EFFECTS, significant=np.zeros((3, 2))), ShapeMismatch, r"significant has the shape \[3, 2\]"),
        (lambda: curve([]), ShapeMismatch, "at least one line"),
        (lambda: curve([line(y=np.zeros(4))]), ShapeMismatch, r"y of 'a' has the shape \[4\], it should be \[3\]"),
        (lambda: curve([line(low=None)]), ShapeMismatch, "'a' has one end"),
        (lambda: curve([line(x=np.array([0, 1, np.nan]))]), NotFinite, "x of 'a' holds NaN"),
        (lambda: image_panel([]), BadImages, "no image"),
        (lambda: image_panel([IMAGE / 255]), BadImages, "image 0 holds float64, it should be uint8"),
        (lambda: image_panel([IMAGE, IMAGE.transpose(2, 0, 1)]), BadImages, r"image 1 has the shape \[3, 8, 6\]"),
        (
            lambda: image_panel([IMAGE], captions=["a", "b"]),
            ShapeMismatch,
            "captions needs one entry per image: 1 images, 2",
        ),
        (
            lambda: image_panel([IMAGE], masks=[MASK.T]),
            ShapeMismatch,
            r"mask 0 has the shape \[6, 8\], its image \[8, 6\]",
        ),
        (lambda: image_panel([IMAGE], overlay=[np.zeros(4)]), ShapeMismatch, "overlay 0 needs 2"),
        (lambda: image_panel([IMAGE], columns=0), ShapeMismatch, "columns must be at least 1"),
        (lambda: bars(["a"], np.zeros(2)), ShapeMismatch, "1 names, 2 effects"),
        (lambda: bars(["a"], np.array([np.nan])), NotFinite, "effects holds NaN"),
        (lambda: bars(["a"], np.zeros(1), low=np.zeros(1)), ShapeMismatch, "give low and high"),
        (lambda: control_strip(np.zeros(0), 1.0), ShapeMismatch, "controls needs 1 non-empty"),
        (lambda: control_strip(np.zeros(3), float("nan")), NotFinite, "observed holds NaN"),
        (lambda: control_strip(np.zeros(3), 1.0, low=0.0), ShapeMismatch, "give low and high"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_patch_maps_lie_over_the_image_in_one_scale():
    maps = np.full((2, 20, 4, 3), np.nan)
    maps[:, ::2] = np.linspace(-1, 2, 2 * 10 * 12).reshape(2, 10, 4, 3)
    figure = patch_map([IMAGE] * 2, maps, label="logits")
    titles = [axes.get_title() for axes in figure.axes[:9]]
    assert titles == ["image", *(f"layer {layer}" for layer in (0, 2, 6, 8, 10, 12, 16, 18))]
    over = [axes.images[1] for axes in figure.axes[:18] if len(axes.images) == 2]
    assert len(over) == 16 and {image.get_clim() for image in over} == {(-2.0, 2.0)}
    assert np.array_equal(over[1].get_array(), maps[0, 2])
    assert {tuple(axes.images[0].get_extent()) for axes in figure.axes[:18]} == {(-0.5, 5.5, 7.5, -0.5)}
    assert figure.axes[-1].get_ylabel() == "logits"
    assert [a.get_title() for a in patch_map([IMAGE] * 2, maps, layers=[4]).axes[:2]] == ["image", "layer 4"]


def test_patch_maps_that_do_not_fit():
    maps = np.zeros((2, 3, 4, 3))
    for arguments, more, error, text in (
        (([IMAGE], maps), {}, ShapeMismatch, "1 images, 2 maps"),
        (([IMAGE] * 2, maps[0]), {}, ShapeMismatch, "4 non-empty axes"),
        (([IMAGE] * 2, maps), {"layers": [3]}, OutOfRange, "layer 3 has no map"),
        (([IMAGE] * 2, maps), {"layers": []}, ShapeMismatch, "shows nothing"),
        (([IMAGE] * 2, maps), {"captions": ["a"]}, ShapeMismatch, "captions"),
        (([IMAGE] * 2, maps * np.nan), {}, NotFinite, "nothing to show"),
        (([IMAGE] * 2, maps + np.inf), {}, NotFinite, "Inf"),
    ):
        with pytest.raises(error, match=text):
            patch_map(*arguments, **more)
