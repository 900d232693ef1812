"""Figures of measures (curves of removal and of circuits, forest plots, agreement, patching grids, tables of texts):
what is drawn is what was given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch
from mechvis.plots import (
    Line,
    Measure,
    circuit_curve,
    forest,
    patching_grid,
    rank_agreement,
    removal_curve,
    text_table,
)
from mechvis.plots.look import GREY

X = np.array([0.0, 0.5, 1.0])


def line(name="IG", x=X, y=X, **more) -> Line:
    return Line(name=name, x=x, y=y, **more)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def note(figure) -> str:
    return figure.texts[-1].get_text()


# -- removal --


def test_removal_curve_has_a_panel_each_and_the_areas():
    # Points out of order: the area is that of the curve, not of the order of its points.
    shuffled = line("IG", np.array([1.0, 0.0, 0.5]), np.array([0.0, 1.0, 0.25]), low=X * 0, high=X * 0 + 1)
    figure = removal_curve(
        [shuffled, line("random", X, 1 - X)], [line("random")], levels={"chance": 0.125}, y_label="probability", n=128
    )
    deletion, insertion = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["patches removed", "patches shown"]
    assert deletion.get_ylabel() == "probability"
    legend = [text.get_text() for text in deletion.get_legend().get_texts()]
    # By hand: trapezes of width 0.5 with mean heights 0.625 and 0.125.
    assert legend == ["IG (area 0.375)", "random (area 0.500)"]
    drawn = {entry.get_label(): entry for entry in deletion.lines}
    assert drawn["IG (area 0.375)"].get_ydata().tolist() == [1.0, 0.25, 0.0]
    # The same method looks alike in both panels.
    first, second = drawn["random (area 0.500)"], insertion.lines[-1]
    for look in ("color", "linestyle", "marker"):
        assert getattr(first, f"get_{look}")() == getattr(second, f"get_{look}")()
    assert len(deletion.collections) == 1 and not insertion.collections
    assert texts(deletion) == ["chance"] and note(figure) == "band: 95 % interval; n = 128 images"


def test_removal_curve_refuses():
    with pytest.raises(ShapeMismatch, match="at least one line"):
        removal_curve()
    with pytest.raises(OutOfRange, match="'IG' lie between 0 and 1, got 0 to 2"):
        removal_curve([line(x=X * 2)])
    with pytest.raises(ShapeMismatch, match="one end of its interval"):
        removal_curve([line(low=X)])
    with pytest.raises(NotFinite, match="x of 'IG' holds NaN"):
        removal_curve([line(x=X * np.nan)])
    gap = removal_curve([line(y=np.array([1, np.nan, 0]))])
    assert "area nan" in gap.axes[0].get_legend().get_texts()[0].get_text()


# -- circuits --


def test_circuit_curve_is_logarithmic_with_levels_and_controls():
    sizes = np.array([1, 10, 100])
    figure = circuit_curve(
        [line("EAP", sizes, low=X - 0.1, high=X + 0.1)],
        controls=[line("random", sizes, X / 2)],
        total=200,
        chosen=10,
        y_label="faithfulness",
        n=64,
    )
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "faithfulness"
    levels = [entry.get_ydata()[0] for entry in axes.lines[:2]]
    assert levels == [1.0, 0.0]
    drawn = {entry.get_label(): entry for entry in axes.lines}
    assert drawn["EAP"].get_xdata().tolist() == [1, 10, 100] and drawn["random"].get_color() == GREY
    (share,) = axes.child_axes
    assert np.allclose(share.get_xlim(), np.array(axes.get_xlim()) / 200) or share.get_xlabel() == "share of all 200"
    assert "chosen: 10" in texts(axes) and note(figure) == "band: 95 % interval; n = 64 images"


def test_circuit_curve_refuses():
    with pytest.raises(ShapeMismatch, match="at least one line"):
        circuit_curve([])
    with pytest.raises(OutOfRange, match="are 0 to 1; they should lie between 1 and"):
        circuit_curve([line()])
    with pytest.raises(OutOfRange, match="between 1 and 50"):
        circuit_curve([line(x=np.array([1, 10, 100]))], total=50)


# -- forest --

ROWS = [
    Measure(name="deletion", value=0.4, low=0.3, high=0.5, controls=[0.1, -0.1], unit="area", passed=True, n=64),
    Measure(name="sensitivity", value=0.1, low=-0.1, high=0.3, unit="correlation", passed=False),
    Measure(name="insertion", value=float("nan"), unit="area"),
]


def test_forest_has_a_panel_per_unit_and_every_control():
    figure = forest(ROWS, title="card")
    area, correlation = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["area", "correlation"]
    assert [label.get_text() for label in area.get_yticklabels()] == ["deletion", "insertion"]
    by_marker = {entry.get_marker(): entry for entry in area.lines if len(entry.get_xdata())}
    assert sorted(by_marker["o"].get_xdata()) == [-0.1, 0.1]
    assert list(by_marker["D"].get_xdata()) == [0.4]
    bar = next(e for e in area.lines if list(e.get_xdata()) == [0.3, 0.5])
    assert list(bar.get_ydata()) == [0, 0]
    assert texts(area) == ["0.4 [0.3, 0.5]  n = 64", "not defined"]
    assert texts(correlation) == ["0.1 [−0.1, 0.3]"]
    hollow = next(entry for entry in correlation.lines if entry.get_marker() == "D")
    assert to_hex(hollow.get_markerfacecolor()) == "#ffffff"
    assert note(figure) == "bar: 95 % interval; grey dots: the same measure on controls; hollow: gate not passed"


def test_forest_refuses():
    with pytest.raises(ShapeMismatch, match="at least one measure"):
        forest([])
    with pytest.raises(ShapeMismatch, match="'a' has one end"):
        forest([Measure(name="a", value=1.0, low=0.0)])
    with pytest.raises(OutOfRange, match="upside down: 2 to 1"):
        forest([Measure(name="a", value=1.0, low=2, high=1)])
    with pytest.raises(NotFinite, match="controls of 'a' holds NaN"):
        forest([Measure(name="a", value=1.0, controls=[np.nan])])
    with pytest.raises(NotFinite, match="'a' holds Inf"):
        forest([Measure(name="a", value=np.inf)])


# -- agreement --

TAU = np.array([[1, 0.6, -0.2], [0.6, 1, np.nan], [-0.2, np.nan, 1]])


def test_agreement_is_written_once_and_intervals_once():
    figure = rank_agreement(TAU, ["a", "b", "c"], low=TAU - 0.3, high=TAU + 0.3, n=20)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown.mask.tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert axes.images[0].get_clim() == (-1, 1)
    said = {(t.get_position()): (t.get_text(), t.get_weight()) for t in axes.texts}
    assert said[0, 1] == ("0.60", "bold") and said[0, 2] == ("−0.20", "normal")
    assert said[1, 0] == ("0.30\nto 0.90", "normal") and said[1, 2][0] == "–"
    assert note(figure).endswith("n = 20 images")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_agreement_refuses():
    with pytest.raises(ShapeMismatch, match="two methods or more"):
        rank_agreement(np.ones((1, 1)), ["a"])
    with pytest.raises(ShapeMismatch, match="one name each"):
        rank_agreement(np.ones((2, 2)), ["a"])
    with pytest.raises(OutOfRange, match="not symmetric"):
        rank_agreement(np.array([[1, 0.5], [0.4, 1]]), ["a", "b"])
    with pytest.raises(OutOfRange, match="between -1 and 1, got"):
        rank_agreement(np.array([[1, 2.0], [2.0, 1]]), ["a", "b"])
    with pytest.raises(ShapeMismatch, match="one end"):
        rank_agreement(np.eye(2), ["a", "b"], low=np.eye(2))


# -- patching grid --

EFFECTS = np.array([[0.5, -0.2], [np.nan, 0.05]])


def test_patching_grid_frames_what_excludes_zero():
    figure = patching_grid(EFFECTS, ["CLS", "object"], low=EFFECTS - 0.1, high=EFFECTS + 0.1, label="nats", n=32)
    axes = figure.axes[0]
    assert np.array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), EFFECTS, equal_nan=True)
    assert texts(axes) == ["0.50\n[0.40, 0.60]", "−0.20\n[−0.30, −0.10]", "–", "0.05\n[−0.05, 0.15]"]
    frames = {(round(p.get_x() + p.get_width() / 2), round(p.get_y() + p.get_height() / 2)) for p in axes.patches}
    assert frames == {(0, 0), (1, 0)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens", "layer") and figure.axes[1].get_ylabel() == "nats"
    assert note(figure) == "framed: 95 % interval excludes zero; n = 32 images"
    given = patching_grid(EFFECTS, ["CLS", "object"], significant=np.array([[0, 0], [0, 1]]))
    assert len(given.axes[0].patches) == 1 and "correction" in note(given)
    # Two hundred columns: no numbers, a tick in sixteen.
    wide = patching_grid(np.ones((1, 200)), [f"t{i}" for i in range(200)]).axes[0]
    assert not wide.texts and len(wide.get_xticks()) <= 17


def test_patching_grid_refuses():
    with pytest.raises(ShapeMismatch, match="one name per row and column: 2 and 1"):
        patching_grid(EFFECTS, ["CLS"])
    with pytest.raises(ShapeMismatch, match="one end"):
        patching_grid(EFFECTS, ["a", "b"], low=EFFECTS)
    with pytest.raises(ShapeMismatch, match=r"significant has the shape \[1, 2\]"):
        patching_grid(EFFECTS, ["a", "b"], significant=np.ones((1, 2)))
    with pytest.raises(NotFinite, match="effects holds Inf"):
        patching_grid(np.full((1, 1), np.inf), ["a"])


# -- texts --


def test_text_table_lists_texts_with_their_shares():
    figure = text_table(
        ["L3H1", "L2H0"], [["red", "a star"], ["blue"]], shares=[[0.5, 0.1], [0.9]], notes=["colour", "shape"], n=9
    )
    first, second = figure.axes
    assert texts(first) == ["L3H1", "colour", "50 %", "red", "10 %", "a star"]
    assert texts(second) == ["L2H0", "shape", "90 %", "blue"]
    widths = [bar.get_width() for bar in first.patches]
    assert widths[0] == pytest.approx(5 * widths[1])
    # Best first: further down the axis, further down the page.
    places = [t.get_position()[1] for t in first.texts]
    assert first.get_ylim()[0] > first.get_ylim()[1] and places[2] < places[4]
    assert len(text_table(["a", "b", "c"], [["x"]] * 3, per_row=2).axes) == 4
    assert note(figure) == "bar: share of the head's variance; n = 9 images"


def test_text_table_refuses():
    with pytest.raises(ShapeMismatch, match="1 heads, 0 lists"):
        text_table(["a"], [])
    with pytest.raises(ShapeMismatch, match="a head and a text for each"):
        text_table(["a"], [[]])
    with pytest.raises(ShapeMismatch, match="shares need one entry per text"):
        text_table(["a"], [["x"]], shares=[[0.1, 0.2]])
    with pytest.raises(OutOfRange, match="shares of 'a' lie between 0 and 1"):
        text_table(["a"], [["x"]], shares=[[1.5]])
    with pytest.raises(ShapeMismatch, match="notes need one entry per head"):
        text_table(["a"], [["x"]], notes=[])
