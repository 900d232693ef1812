"""Every figure of the package with text that nobody asked for: it is drawn as text, stays inside the figure, and the
figure saves as PNG and SVG without a warning and without a trace in matplotlib."""

import io
import re
import xml.etree.ElementTree

import matplotlib
import matplotlib._pylab_helpers
import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text

from mechvis import plots
from mechvis.plots import Line, Measure
from mechvis.plots.look import GREY, INK

TEXTS = {
    "plain": "a red star",
    "mathematics": r"$x_",
    "hostile mathematics": r"$\frac{$ _x^ \n & < > % # $$",
    "markup": "<script>alert(1)</script>",
    "long": "a very long name of a class that somebody wrote " * 12,
    "one long word": "supercalifragilistic" * 30,
    "right to left": "نص عربي طويل ושלום עברית",
    "emoji": "fox 🦊 family 👨‍👩‍👧 中文",
    "control": "a\x00b\u202ec\ud800d\te\nf",
    "empty": "",
}
IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
MAPS = np.arange(2 * 16.0).reshape(2, 4, 4) - 9
X = np.array([0.0, 0.5, 1.0])


def line(name, x=X) -> Line:
    return Line(name=name, x=x, y=X, low=X - 0.1, high=X + 0.1)


FIGURES = {
    "attention_heads": lambda t: plots.attention_heads(
        IMAGE, np.full((2, 3, 18), 1 / 18), grid=(4, 4), prefix=(t, t), query=t, title=t
    ),
    "bars": lambda t: plots.bars([t, t], np.array([1, -2.0]), significant=[1, 0], title=t, label=t, n=3),
    "forest": lambda t: plots.forest(
        [Measure(name=t, value=1.0, low=0.5, high=2, controls=[0.1], unit=t, n=3)] * 2, title=t
    ),
    "circuit_curve": lambda t: plots.circuit_curve(
        [line(t, X * 10 + 1)], controls=[line(t, X * 10 + 1)], total=11, chosen=3, title=t, x_label=t, y_label=t, n=3
    ),
    "concept_panel": lambda t: plots.concept_panel([[IMAGE] * 3], captions=[t], title=t),
    "control_strip": lambda t: plots.control_strip(X, 3.0, low=2, high=4, name=t, control_name=t, title=t, label=t),
    "curve": lambda t: plots.curve([line(t), line(t)], chosen=1, title=t, x_label=t, y_label=t, n=3),
    "feature_fates": lambda t: plots.feature_fates([t], {t: np.array([3])}, title=t),
    "head_map": lambda t: plots.head_map(MAPS[0], significant=MAPS[0] > 0, title=t, label=t, n=3),
    "image_overlay": lambda t: plots.image_overlay(
        MAPS, [IMAGE] * 2, titles=[t] * 2, prefix={t: [1, 2]}, title=t, label=t, n=3
    ),
    "image_panel": lambda t: plots.image_panel([IMAGE] * 3, overlay=[MAPS[0]] * 3, captions=[t] * 3, title=t, label=t),
    "latent_panel": lambda t: plots.latent_panel(
        [IMAGE] * 4, np.abs([MAPS[0]] * 4), np.arange(9.0), captions=[t] * 4, facts={t: t}, title=t, label=t, what=t
    ),
    "layer_curve": lambda t: plots.layer_curve([t] * 3, [line(t, np.arange(3))], levels={t: 0.2}, title=t, y_label=t),
    "lens_map": lambda t: plots.lens_map(
        [IMAGE], np.zeros((1, 2, 4, 4)), np.ones((1, 2, 4, 4)), [t], layer_names=[t, t], captions=[t], title=t
    ),
    "map_comparison": lambda t: plots.map_comparison(
        [IMAGE] * 2, {t: MAPS, "b": abs(MAPS)}, captions=[t] * 2, below={t: [t] * 2}, title=t, n=3
    ),
    "model_diff": lambda t: plots.model_diff_histogram(X, [t, t, "shared"], first=t, second=t, title=t),
    "norm_histogram": lambda t: plots.norm_histogram([t], [X + 1], [1.5], title=t),
    "null_space": lambda t: plots.null_space_plane(
        [t], pl.DataFrame({f"{a}{b}": [1.0] for a in ("IS", "AS_size") for b in ("", "_low", "_high")}), title=t
    ),
    "patch_map": lambda t: plots.patch_map([IMAGE], MAPS[None], captions=[t], title=t, label=t),
    "patching_grid": lambda t: plots.patching_grid(
        MAPS[0],
        [t] * 4,
        rows=[t] * 4,
        low=MAPS[0] - 1,
        high=MAPS[0] + 1,
        title=t,
        label=t,
        row_label=t,
        column_label=t,
        n=3,
    ),
    "property_heads": lambda t: plots.property_heads(np.eye(2), [t, t], [t, t], significant=np.eye(2), title=t),
    "rank_agreement": lambda t: plots.rank_agreement(
        np.eye(3), [t] * 3, low=np.eye(3), high=np.eye(3), title=t, label=t
    ),
    "removal_curve": lambda t: plots.removal_curve([line(t)], [line(t)], levels={t: 0.3}, title=t, y_label=t, n=3),
    "strategy_graph": lambda t: plots.strategy_graph(
        np.eye(2), np.array([0, 1]), prevalence=[0.5, 0.5], reliability=[1.0, 0.0], names=[t, t], title=t
    ),
    "text_table": lambda t: plots.text_table(
        [t] * 3, [[t or "-"] * 2] * 3, shares=[[0.5, 0.1]] * 3, notes=[t] * 3, title=t, label=t
    ),
    "timeline_map": lambda t: plots.timeline_map(
        [t] * 3, {t: X / 3}, {t: 0.5}, [line(f"{t}: right", np.arange(3))], title=t, y_label=t
    ),
    "token_heat": lambda t: plots.token_heat([IMAGE], MAPS[:1][None], [t], captions=[t], title=t, label=t),
    "unit_panel": lambda t: plots.unit_panel(
        [IMAGE] * 4, top_values=[1, 2, 3, 4], top_maps=np.ones((4, 2, 2)), title=t, label=t
    ),
}


MIXED = "<script>alert(1)</script> $x_ 🦊 \u202e שלום \x00 " + TEXTS["long"]


@pytest.mark.parametrize("name", FIGURES)
def test_any_text_is_drawn_as_text_inside_the_figure(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name](MIXED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    elements = xml.etree.ElementTree.fromstring(buffer.getvalue()).iter()
    tags = {element.tag.split("}")[-1] for element in elements}
    assert "path" in tags and "script" not in tags
    assert not clipped(figure)
    # The inks of the package, whose contrast is measured in test_look, or what stands on a coloured cell.
    colours = {matplotlib.colors.to_hex(text.get_color()) for text in figure.findobj(Text) if text.get_text()}
    assert colours <= {INK, GREY, "#000000", "#ffffff"}, colours
    assert dict(matplotlib.rcParams) == before
    assert not matplotlib._pylab_helpers.Gcf.figs


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", FIGURES)
def test_every_text_stays_inside(name, text):
    figure = FIGURES[name](TEXTS[text])
    assert not clipped(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def clipped(figure) -> list[str]:
    """Texts that are drawn but end outside of the figure."""
    figure.draw_without_rendering()
    frame = figure.bbox.padded(2)
    every = [part for axes in figure.axes for part in (axes, *axes.child_axes)]
    idle = set().union(*(map(id, idle_labels(axis)) for axes in every for axis in (axes.xaxis, axes.yaxis)))
    found = []
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip() or id(text) in idle:
            continue
        box = text.get_window_extent()
        if box.x0 < frame.x0 or box.y0 < frame.y0 or box.x1 > frame.x1 or box.y1 > frame.y1:
            found.append(f"{text.get_text()[:40]!r} at {np.round(box.extents).tolist()} of {frame.extents.tolist()}")
    return found


def idle_labels(axis) -> list[Text]:
    """Labels of ticks that exist but are not drawn: outside of the axes, or kept for later, or of axes switched off."""
    drawn = set(map(id, axis._update_ticks())) if axis.axes.axison and axis.get_visible() else set()
    ticks = [tick for tick in (*axis.majorTicks, *axis.minorTicks) if id(tick) not in drawn]
    return [label for tick in ticks for label in (tick.label1, tick.label2)]


def test_the_check_sees_a_clipped_text():
    figure = plots.curve([line("a")])
    figure.text(0.9, 0.5, "this runs out of the figure")
    assert [said for said in clipped(figure) if re.match("'this runs out", said)]
