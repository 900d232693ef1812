"""Random circuits of the same size and layer profile, and where a circuit stands among them."""

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import random_circuits, random_control
from circuits.evaluation.random_circuits import profile
from circuits.evaluation.random_control import RandomControl
from mechvis.errors import BadData, OutOfRange, UnknownName


def cells(graph, mask):
    return np.bincount(profile(graph)[mask], minlength=10_000)


def test_profile_by_hand():
    graph = EdgeGraph((2,))
    assert (profile(graph)[~graph.allowed] == -1).all()
    groups = {}
    for edge in graph.edges:
        groups.setdefault(int(profile(graph)[graph.edge(edge)]), set()).add(edge)
    assert sorted(map(sorted, groups.values())) == [
        ["L0H0->L0MLP", "L0H1->L0MLP"],
        ["L0H0->out", "L0H1->out"],
        ["L0MLP->out"],
        ["embed->L0H0.k", "embed->L0H1.k"],
        ["embed->L0H0.q", "embed->L0H1.q"],
        ["embed->L0H0.v", "embed->L0H1.v"],
        ["embed->L0MLP"],
        ["embed->out"],
    ]


@pytest.mark.parametrize("how", ["edges", "heads"])
def test_equal_size_and_profile_all_different(how):
    graph = EdgeGraph((4, 4, 4))
    kept = (np.random.default_rng(0).random(graph.shape) < 0.2) & graph.allowed
    masks, every = random_circuits(graph, kept, 150, how=how, seed=3)
    assert len(masks) == 150 and not every
    assert len({mask.tobytes() for mask in masks} | {kept.tobytes()}) == 151
    for mask in masks:
        assert not (mask & ~graph.allowed).any()
        np.testing.assert_array_equal(cells(graph, mask), cells(graph, kept))
    again, _ = random_circuits(graph, kept, 150, how=how, seed=3)
    other, _ = random_circuits(graph, kept, 150, how=how, seed=4)
    assert (again == masks).all() and not (other == masks).all()


def test_every_edge_of_a_cell_is_drawn_equally_often():
    graph = EdgeGraph((4, 4))
    kept = graph.mask(["embed->L1H2.q", "L0H1->L1H0.v", "L0H2->L1H0.v", "L1H0->out"])
    masks, _ = random_circuits(graph, kept, 800, seed=0)
    drawn = np.array([masks[:, *graph.edge(f"L0H{w}->L1H{r}.v")].mean() for w in range(4) for r in range(4)])
    assert abs(drawn - 2 / 16).max() < 0.04


def test_exchanged_heads_keep_the_circuits_form():
    graph = EdgeGraph((3, 3))
    kept = graph.mask(["embed->L0H0.v", "L0H0->L1H2.q", "embed->L1H2.v", "L1H2->out"])
    masks, every = random_circuits(graph, kept, 100, how="heads")
    assert every and len(masks) == 8, "one head of three in each of two layers: nine, and one of them is the circuit"
    for mask in masks:
        assert len(Circuit(graph=graph, kept=mask).pruned()) == 4, "as well connected as the circuit"
        assert len(Circuit(graph=graph, kept=mask).nodes) == 3


def test_few_circuits_are_all_tried():
    graph = EdgeGraph((2,))
    kept = graph.mask(["embed->L0H0.v", "L0H0->out", "L0MLP->out"])
    masks, every = random_circuits(graph, kept, 100)
    assert every
    assert sorted(tuple(sorted(graph.names(mask))) for mask in masks) == [
        ("L0H0->out", "L0MLP->out", "embed->L0H1.v"),
        ("L0H1->out", "L0MLP->out", "embed->L0H0.v"),
        ("L0H1->out", "L0MLP->out", "embed->L0H1.v"),
    ]
    some, every = random_circuits(graph, kept, 2)
    assert len(some) == 2 and not every


def test_f3_by_hand(f3, core):
    """The other three circuits with this profile lead through head 1, or nowhere: F = 0."""
    found = random_control(f3, core, progress=False)
    assert found.every and found.observed == pytest.approx(0.9302, abs=5e-5)
    np.testing.assert_allclose(found.values, 0, atol=1e-9)
    assert (found.percentile, found.p) == (100.0, 0.25) and "all 3 others" in repr(found)


def test_planted_circuit_against_random_ones(cue, cue_circuit):
    found = random_control(cue, cue_circuit, n=100, progress=False)
    assert found.p == pytest.approx(1 / 101) and found.percentile == 100 and found.n_edges == 7
    heads = random_control(cue, cue_circuit, n=100, how="heads", progress=False)
    assert heads.every and len(heads.values) == 15 and heads.p == pytest.approx(1 / 16)
    assert heads.plot().axes[0].get_xlabel() == "faithfulness F"


def test_a_random_circuit_is_nothing_special(cue):
    """Under the null hypothesis every rank is equally likely."""
    ranks = []
    kept = np.zeros(cue.graph.shape, dtype=bool)
    for place in cue.graph.places[::3]:
        kept[tuple(place)] = True
    masks, _ = random_circuits(cue.graph, kept, 20, seed=5)
    values = cue.faithfulness(cue.measure(masks))
    for own in range(20):
        control = RandomControl(
            how="edges", observed=values[own], values=np.delete(values, own), n_edges=0, every=False
        )
        ranks.append(control.p)
    assert np.mean(np.array(ranks) <= 0.5) == pytest.approx(0.5, abs=0.051)


def test_numbers_by_hand():
    control = RandomControl(how="edges", observed=1.2, values=np.array([0.0, 0.5, 1.2, 1.1]), n_edges=3, every=False)
    assert control.percentile == 100 * (3 + 0.5) / 4
    assert control.p == (1 + 1) / 5
    assert control.p_closer == (1 + 2) / 5, "|1 - F| of 1.2 and 1.1 is at most 0.2"
    assert control.row()["draws"] == 4


def test_bad_input(f3, core, everything, nothing):
    with pytest.raises(BadData, match="no other circuit of 13 edges with this layer profile"):
        random_control(f3, everything, progress=False)
    with pytest.raises(BadData, match="'nothing' has no edge"):
        random_control(f3, nothing, progress=False)
    with pytest.raises(OutOfRange, match="n=0: at least one random circuit"):
        random_control(f3, core, n=0, progress=False)
    with pytest.raises(UnknownName, match="unknown way to draw circuits 'nodes'"):
        random_control(f3, core, how="nodes", progress=False)
