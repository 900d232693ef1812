"""Cards of circuits: a planted one passes every gate, a shuffled one and everything do not."""

import numpy as np
import pytest

from circuits.attribution.eap import eap
from circuits.card import circuit_card
from circuits.circuit import Circuit
from circuits.planted import METHODS, method_of, recover
from circuits.search.select import select
from circuits.task import task
from mechvis.cards import CardData
from mechvis.errors import BadData, SplitOverlap, UnknownName
from mechvis.testing.planted import cue_pairs


@pytest.fixture(scope="module")
def circuit(cue_model, pairs_of):
    first = task(cue_model, pairs_of(cue_pairs("all", 8, seed=1)))
    return select(eap(first, verify=0, progress=False), 7)


@pytest.fixture(scope="module")
def card(circuit, cue):
    return circuit.card(cue)


def test_the_planted_circuit_passes(card, cue_model):
    assert not card.failed, card
    assert card.measure("faithfulness").value == pytest.approx(1, abs=0.02)
    assert card.measure("faithfulness").n == 12 and card.measure("necessity").value > 0.9
    assert card.table("random circuits").height == 2 and card.table("planted")["auroc"][0] > 0.9
    assert card.verify(cue_model) is card and "a circuit of" in card.scope


def test_twice_is_the_same_and_data_may_hold_the_task(card, circuit, cue):
    class Images(list):
        fingerprint = ""

    data = CardData(model=cue.model, images=[0], extra=cue)
    assert circuit_card(circuit, data).sha256 == card.sha256


def test_random_edges_and_everything_are_caught(cue):
    generator = np.random.default_rng(0)
    places = np.argwhere(cue.graph.allowed)
    kept = np.zeros_like(cue.graph.allowed)
    kept[tuple(places[generator.choice(len(places), 60, replace=False)].T)] = True
    found = {gate.id for gate in Circuit(graph=cue.graph, kept=kept, title="random").card(cue).failed}
    assert {"G6", "G9"} & found
    whole = Circuit(graph=cue.graph, kept=cue.graph.allowed, title="everything").card(cue)
    assert "G8" in {gate.id for gate in whole.failed}


def test_no_task_and_the_same_images_are_refused(circuit, cue_model, pairs_of, cue):
    with pytest.raises(BadData, match="judged on a task"):
        circuit.card(CardData(model=cue_model, images=[0]))
    with pytest.raises(SplitOverlap):
        circuit.card(task(cue_model, pairs_of(cue_pairs("all", 8, seed=1))))
    with pytest.raises(UnknownName, match="smoke"):
        circuit.card(cue, level="huge")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("eap", "exact", "acdc")])
def test_methods_are_repeated_on_the_planted_model(name):
    assert recover(name, n=4).auroc > 0.9


def test_the_method_is_read_from_where_a_circuit_comes_from():
    assert method_of({"attribution": {"method": "ig"}}) == "ig" and method_of({"acdc": {}}) == "acdc"
    assert method_of({}) == "" == method_of({"attribution": {"method": "guess"}})
    with pytest.raises(UnknownName):
        recover("guess")
