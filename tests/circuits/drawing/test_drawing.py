"""Circuits as pictures and as JSON."""

import io
import json

import matplotlib
import numpy as np
import pytest
import torch

import mechvis
from circuits.circuit import Circuit
from circuits.drawing.attention import attention_pictures
from circuits.drawing.export import as_json, export_json
from circuits.drawing.figure import draw, save
from circuits.drawing.layout import layout
from circuits.edges.graph import EdgeGraph
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName

GRAPH = EdgeGraph((3, 2))
EDGES = ["embed->L0H1.v", "embed->L0H2.q", "L0H1->L0MLP", "L0H1->L1H0.k", "L0H2->L1H1.q", "L0MLP->out", "L1H0->out"]


def circuit(**more):
    scores = np.full(GRAPH.shape, np.nan)
    for value, edge in enumerate(EDGES):
        scores[GRAPH.edge(edge)] = value - 2.5
    return Circuit.of(GRAPH, EDGES, scores=scores, **more)


def test_rows_are_those_of_the_forward_pass():
    places = layout(circuit())
    assert set(places) == {"embed", "L0H1", "L0H2", "L0MLP", "L1H0", "L1H1", "out"}
    for edge in EDGES:
        writer, reader = edge.split("->")
        assert places[writer].y < places[GRAPH.node_of(reader)].y
    at = [(place.x, place.y) for place in places.values()]
    assert len(set(at)) == len(at)
    assert sorted({place.y for place in places.values()}) == list(range(5))


def test_rows_are_sorted_to_cross_less():
    """Heads that feed each other stand below each other."""
    crossing = Circuit.of(GRAPH, ["L0H0->L1H1.q", "L0H2->L1H0.q", "L1H0->out", "L1H1->out"])
    places = layout(crossing)
    assert (places["L0H0"].x < places["L0H2"].x) == (places["L1H1"].x < places["L1H0"].x)


def test_figure_has_every_component_and_edge():
    figure = draw(circuit(title="$5 <b> _x"))
    axes = figure.axes[0]
    words = [text.get_text() for text in axes.texts]
    assert {"embed", "L0H1", "L0H2", "L0MLP", "L1H0", "L1H1", "out"} <= set(words)
    assert sorted(word for word in words if word in "qkv") == ["k", "q", "q", "v"]
    arrows = [patch for patch in axes.patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(arrows) == len(EDGES)
    widths = [arrow.get_linewidth() for arrow in arrows]
    order = [circuit().edges.index(edge) for edge in EDGES]
    assert np.argmax(widths) == order[-1] and widths[order[0]] > widths[order[2]]
    colours = {tuple(np.round(arrow.get_edgecolor()[:3], 2)) for arrow in arrows}
    assert len(colours) == 2  # supports and opposes


def test_large_circuits_say_how_much_is_drawn():
    figure = draw(circuit(title="many"), max_edges=3)
    assert figure.axes[0].get_title(loc="left") == "many (3 of 7 edges drawn)"
    arrows = [patch for patch in figure.axes[0].patches if type(patch).__name__ == "FancyArrowPatch"]
    assert len(arrows) == 3


def test_pictures_stand_in_their_boxes():
    figure = draw(circuit(), pictures={"L0H1": np.zeros((4, 6, 3), np.uint8), "L1H0": np.eye(3)})
    assert [image.get_array().shape[:2] for image in figure.axes[0].images] == [(4, 6), (3, 3)]


def test_the_same_figure_is_the_same_file(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("a.svg", "b.svg"):
        draw(circuit(), path=tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"L1H0" in (tmp_path / "a.svg").read_bytes()
    save(draw(circuit()), tmp_path / "deep" / "c.png")
    assert (tmp_path / "deep" / "c.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    buffer = io.BytesIO()
    draw(circuit()).savefig(buffer, format="pdf")


def test_json(tmp_path):
    found = as_json(circuit())
    assert found["format"] == "mechvis.circuit-graph" and len(found["edges"]) == 7
    by_name = {node["name"]: node for node in found["nodes"]}
    assert by_name["out"]["in"] == pytest.approx(2.5 + 3.5) and by_name["out"]["out"] == 0
    assert (by_name["L1H0"]["kind"], by_name["L1H0"]["layer"]) == ("head", 1)
    assert by_name["L0MLP"]["kind"] == "mlp" and by_name["embed"]["layer"] is None
    written = json.loads(export_json(circuit(), tmp_path / "x" / "c.json").read_text())
    assert written == json.loads(json.dumps(found))
    unscored = as_json(Circuit.of(GRAPH, EDGES))
    assert all(edge["score"] is None for edge in unscored["edges"])


def test_attention_pictures():
    """The planted head looks at the planted patch: its picture is bright there."""
    model = mechvis.load(testing.hand_wired_vit(planted=4), preprocess=testing.tiny_preprocess())
    pixels, _ = testing.hand_wired_images(3)
    pictures = attention_pictures(model, pixels, ["embed", "L0H0", "L1MLP", "L0H1"], image=None)
    assert set(pictures) == {"L0H0", "L0H1"}
    assert pictures["L0H0"].shape == (24, 24, 3)
    bright = pictures["L0H0"].astype(int).sum(-1)
    middle = bright[8:16, 8:16]
    assert middle.min() > bright[:8].max()
    assert attention_pictures(model, pixels, ["L0H0"], image=1)["L0H0"].shape == (12, 12, 3)
    with testing.assert_untouched(model.bare):
        attention_pictures(model, pixels, ["L0H0"])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: draw(Circuit.of(GRAPH, [])), BadData, "no edge: there is nothing to draw"),
        (lambda: as_json(Circuit.of(GRAPH, [])), BadData, "no edge"),
        (lambda: draw(circuit(), max_edges=0), OutOfRange, "at least one"),
        (lambda: draw(circuit(), pictures={"L0H0": np.eye(3)}), UnknownName, "L0H0"),
        (lambda: draw(circuit(), pictures={"L0H1": np.ones(3)}), ShapeMismatch, "an image is [height width 3]"),
        (lambda: draw(circuit(), pictures={"L0H1": 2 * np.eye(3)}), BadData, "outside 0 to 1"),
        (lambda: save(draw(circuit()), "circuit.gif"), UnknownName, "gif"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_attention_of_nothing():
    model = mechvis.load(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())
    pixels, _ = testing.hand_wired_images(2)
    with pytest.raises(BadData, match="no head among these"):
        attention_pictures(model, pixels, ["embed", "L0MLP"])
    with pytest.raises(OutOfRange, match="image 5 of 2"):
        attention_pictures(model, pixels, ["L0H0"], image=5)
    with pytest.raises(BadData, match="at least one image"):
        attention_pictures(model, torch.empty(0, 3, 12, 12), ["L0H0"])
