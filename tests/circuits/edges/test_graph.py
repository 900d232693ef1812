"""The graph of writers and readers: counted, named, and refused where there is none."""

import numpy as np
import pytest

import mechvis
from circuits.edges.graph import EdgeGraph
from mechvis import testing
from mechvis.errors import BadData, UnknownName, UnsupportedModel
from mechvis.testing.planted import edges_of, saturation_net

GRAPH = EdgeGraph((2, 2))


def test_a_vit_b_has_the_published_number_of_edges():
    graph = EdgeGraph((12,) * 12)
    assert (*graph.shape, graph.n_edges) == (157, 445, 32_491)
    assert int(graph.allowed.sum()) == graph.n_edges == len(graph.edges)


def test_edges_are_those_of_the_oracle():
    model = saturation_net()
    assert set(EdgeGraph.of(model).edges) == set(edges_of(model))


def test_order_is_that_of_the_forward_pass():
    assert GRAPH.writers == ("embed", "L0H0", "L0H1", "L0MLP", "L1H0", "L1H1", "L1MLP")
    first = ("L0H0.q", "L0H1.q", "L0H0.k", "L0H1.k", "L0H0.v", "L0H1.v", "L0MLP")
    assert GRAPH.readers == (*first, *(name.replace("L0", "L1") for name in first), "out")
    assert [GRAPH.writers[i] for i in range(7)[GRAPH.writers_of(1)]] == ["L1H0", "L1H1"]
    assert [GRAPH.readers[i] for i in range(15)[GRAPH.readers_of(1)]] == list(GRAPH.readers[7:13])
    for writer, reader in GRAPH.places:
        assert GRAPH.depth(GRAPH.writers[writer]) < GRAPH.depth(GRAPH.node_of(GRAPH.readers[reader]))


def test_masks_and_names_are_inverse():
    names = GRAPH.edges[3], GRAPH.edges[-1]
    assert GRAPH.names(GRAPH.mask(names)) == names
    assert GRAPH.edge("L0H1->L1MLP") == (2, GRAPH.readers.index("L1MLP"))
    for (writer, reader), name in zip(GRAPH.places, GRAPH.edges, strict=True):
        assert GRAPH.edge(name) == (writer, reader)


def test_node_masks():
    without = GRAPH.without_nodes(["L0H0"])
    assert GRAPH.allowed.sum() - without.sum() == GRAPH.allowed[1].sum() and not without[1].any()
    inner = GRAPH.names(GRAPH.inner_edges(["L0H1"]))
    assert set(inner) == {"embed->L0H1.q", "embed->L0H1.k", "embed->L0H1.v", "embed->out", "L0H1->out"}
    assert np.array_equal(GRAPH.inner_edges(GRAPH.writers), GRAPH.allowed)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: GRAPH.edge("L0H7->out"), UnknownName, "no component that writes is called 'L0H7'. Nearest: L0H"),
        (lambda: GRAPH.edge("L0H1->L1H1.x"), UnknownName, "no input that reads is called 'L1H1.x'. Nearest: L1H1"),
        (lambda: GRAPH.edge("L1H0->L0MLP"), BadData, "no edge 'L1H0->L0MLP': L1H0 does not come before L0MLP"),
        (lambda: GRAPH.edge("L0MLP->L0H1.q"), BadData, "does not come before"),
        (lambda: GRAPH.edge("L0H1"), BadData, "write for example 'L0H1->L1H2.q'"),
        (lambda: GRAPH.mask(["embed->outt"]), UnknownName, "Nearest: out"),
        (lambda: GRAPH.inner_edges(["L5H0"]), UnknownName, "L5H0"),
        (lambda: GRAPH.without_nodes(["out"]), UnknownName, "'out'"),
    ],
)
def test_names_that_match_nothing(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_text_towers_are_refused():
    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    with pytest.raises(UnsupportedModel, match="text tower"):
        EdgeGraph.of(clip.text)
