"""Edges as repairs: the one that makes the mistakes is offered, and taking it back is using the model again."""

import pytest
import torch

from circuits.causal_paths import causal_paths, mean_run, path_cut, repairs
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, SplitOverlap, UnknownName
from mechvis.testing.planted import path_images

EDGE = "L0N2->L1N4"
EDGES = (EDGE, "L0N1->L1N4", "L1N5->out")


def drawn(n, seed):
    """Images for F16 that bytes can hold."""
    return (path_images(n, seed=seed) * 32).round().clamp(-127, 127) / 32


@pytest.fixture(scope="module")
def sets(net, image_set):
    """Labels as the model gives them without the edge: every error is the edge's."""
    pixels, reference = drawn(200, 5), drawn(200, 6)
    labels = path_cut(net, EDGE, mean_run(net, reference))(pixels).argmax(-1)
    wrong = net.run(pixels).logits.argmax(-1) != labels
    first, second = wrong.nonzero()[:40, 0], wrong.nonzero()[40:80, 0]
    right = (~wrong).nonzero()[:, 0]
    return {
        "wrong": image_set(pixels[first], labels[first], "wrong"),
        "confirm": image_set(pixels[second], labels[second], "confirm"),
        "validation": image_set(pixels[right], labels[right], "validation"),
        "reference": image_set(reference, torch.zeros(200, dtype=torch.int64), "reference"),
    }


def tried(model, sets, edges=EDGES, **more):
    asked = {"reference": sets["reference"], "progress": False, **more}
    return repairs(model, edges, asked.pop("wrong", sets["wrong"]), sets["validation"], **asked)


def test_the_edge_that_makes_the_mistakes(seeing_net, sets):
    with testing.assert_untouched(seeing_net):
        found = tried(seeing_net, sets, confirm=sets["confirm"])
    assert found.offered == (EDGE,)
    rows = {row["edge"]: row for row in found.table.iter_rows(named=True)}
    assert rows[EDGE]["fixed"] == rows[EDGE]["confirmed"] == 1.0 and rows[EDGE]["cost"] == 0.0
    assert rows["L1N5->out"]["fixed"] == 0.0 and rows["L1N5->out"]["cost"] == 0.0
    assert f"* {EDGE}: mends 1.000" in repr(found)
    mended = found.cut()
    assert mended.edges == (EDGE,) and mended.without() is seeing_net
    pixels = sets["wrong"].pixels
    assert (mended(pixels).argmax(-1) == sets["wrong"].label_tensor).all()
    assert (mended.without()(pixels).argmax(-1) != sets["wrong"].label_tensor).all()


def test_a_graph_is_tried_edge_by_edge(seeing_net, sets):
    graph = causal_paths(
        seeing_net, sets["wrong"], reference=sets["reference"], halves=0, random_graphs=0, pairs=0, progress=False
    )
    assert set(graph.title.split()) >= {"(wrong)"} and graph.images["id"][0] == "wrong/0"
    found = tried(seeing_net, sets, graph)
    assert found.offered and found.table["confirmed"].null_count() == found.table.height
    assert found.table["n wrong"][0] == 40 and found.table["n validation"][0] == len(sets["validation"])


def test_a_costly_repair_is_not_offered(seeing_net, sets, image_set):
    """The same edge where the model is right: cutting it costs what it used to give."""
    pixels = drawn(200, 7)
    labels = seeing_net.run(pixels).logits.argmax(-1)
    needed = {**sets, "validation": image_set(pixels, labels, "needed")}
    found = tried(seeing_net, needed, (EDGE,))
    assert found.offered == () and found.table["cost"][0] > 0.3
    with pytest.raises(BadData, match="nothing to apply"):
        found.cut()
    assert found.cut(EDGE).edges == (EDGE,)
    with pytest.raises(UnknownName, match="'L1N4->out' was not tried"):
        found.cut("L1N4->out")
    assert tried(seeing_net, needed, (EDGE,), cost=1.0).offered == (EDGE,)


def test_what_is_refused(seeing_net, sets):
    with pytest.raises(OutOfRange, match="shares from 0 to 1"):
        tried(seeing_net, sets, mend=2.0)
    with pytest.raises(BadData, match="no edge to try"):
        tried(seeing_net, sets, ())
    with pytest.raises(BadData, match="all of the wrong images right"):
        tried(seeing_net, {**sets, "validation": sets["confirm"]}, wrong=sets["validation"])
    with pytest.raises(BadData, match="the wrong images must be an ImageSet with labels"):
        tried(seeing_net, sets, wrong=sets["wrong"].pixels)
    with pytest.raises(SplitOverlap, match="the wrong and the confirm images"):
        tried(seeing_net, sets, confirm=sets["wrong"])
