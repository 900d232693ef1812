"""Placements and the grades that follow from them."""

import pytest

from mechvis.errors import BadData, UnknownName
from mechvis.testing.trained import GRADES, TASKS, Placement, area_under_curve, promoted, task_of
from mechvis.testing.trained.places import check_place
from mechvis.testing.trained.truth import truth_of

BOTH = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
GROUPS = {"colour-if-shape": ("cls", "patch"), "same-different": ("cls", "register", "patch")}


def truth(task, *changed, seed=0):
    return truth_of(task.placement(seed), changed, GROUPS[task.name])


@BOTH
def test_heads_are_drawn_by_the_seed_and_survive_storage(task):
    first, again = task.placement(3), task.placement(3)
    assert first == again and first.planted != task.placement(4).planted
    assert len({tuple(task.placement(seed).planted) for seed in range(12)}) > 6
    assert Placement.of_json(first.to_json()) == first


@BOTH
def test_every_place_is_planted_free_or_outside(task):
    placement = task.placement(5)
    everything = {f"{node}@{group}" for node in truth(task, seed=5).nodes for group in GROUPS[task.name]}
    everything = {unit for unit in everything if unit.startswith("L")}
    outside = set()
    for place in placement.outside_places:
        if place.startswith("L"):
            node, _, group = place.partition("@")
            outside |= {f"{node}@{g}" for g in GROUPS[task.name] if group in ("all", g)}
    named = set(placement.planted) | set(placement.free) | outside
    assert len(named) == len(set(placement.planted)) + len(set(placement.free)) + len(outside)
    # What the last layer does at tokens that nobody reads cannot matter.
    left = everything - named
    assert all(unit.startswith("L1") and not unit.endswith("@cls") for unit in left)
    assert set(placement.decoys) == set(placement.outside_heads) and len(placement.decoys) == 4
    assert set(placement.quiet) < set(placement.decoys) and len(placement.quiet) == 2


def test_a_colour_pair_activates_the_colour_path_only():
    task = task_of("colour-if-shape")
    placement, found = task.placement(0), truth(task, "colour", "label")
    colour, shape, texture = placement.carrier["colour"], placement.carrier["shape"], placement.carrier["texture"]
    assert found.nodes[colour] == found.nodes["L1MLP"] == "active"
    assert found.nodes[shape] == found.nodes[texture] == "structural"
    assert found.nodes["L0MLP"] == found.nodes["embed"] == "free"
    assert {name for name, grade in found.edges.items() if grade == "active"} == {f"{colour}->L1MLP", "L1MLP->out"}
    assert found.edges[f"{shape}->L1MLP"] == "structural" and found.edges[f"{colour}->out"] == "out"
    assert found.edges[f"{colour}->{shape}"] == "out" and found.edges[f"L0MLP->{shape}"] == "free"
    assert found.units[f"{colour}@cls"] == "active" and found.units[f"{colour}@patch"] == "out"
    assert found.edge(f"L0MLP->{shape}.k") == "free" and found.edge(f"{colour}->L1MLP") == "active"


def test_the_chain_of_same_different():
    task = task_of("same-different")
    placement, found = task.placement(0), truth(task, "left", "label")
    (gather, second), right = placement.flows[0], placement.carrier["right"]
    assert placement.carrier["left"] == second
    active = {name for name, grade in found.edges.items() if grade == "active"}
    assert active == {f"{gather}->{second}", f"{second}->L1MLP", "L1MLP->out"}
    assert found.edges[f"{gather}->{right}"] == found.edges[f"L0MLP->{second}"] == "out"
    assert found.edges[f"L0MLP->{right}"] == "free" and found.edges[f"embed->{second}"] == "structural"
    both = truth(task, "left", "right")
    assert both.nodes[gather] == both.nodes[right] == "active" and both.nodes["L1MLP"] == "structural"


@BOTH
def test_nothing_is_active_in_nuisance_pairs_and_every_node_has_a_grade(task):
    found = truth(task)
    for grades in (found.nodes, found.units, found.edges):
        assert "active" not in grades.values() and set(grades.values()) <= set(GRADES)
    assert len(found.nodes) == 11 and len(found.edges) == 11 + 28 + 6 + 8 + 1


@BOTH
def test_every_place_exists_in_the_model(task):
    from mechvis.models.load import find
    from mechvis.testing.trained.training.model import new_model

    model = new_model(task, seed=0)
    parts = find(model)(model)
    placement = task.placement(1)
    for place in (*placement.planted, *placement.free, *placement.outside_places):
        check_place(place, parts)


def test_a_finding_about_one_input_counts_for_the_head():
    scores = {"L0H0->L1H1.q": 0.1, "L0H0->L1H1.k": -3.0, "L0H0->L1H1.v": 2.0, "embed->L0MLP": 1.0}
    assert promoted(scores) == {"L0H0->L1H1": -3.0, "embed->L0MLP": 1.0}
    # A score that is no number must not vanish behind one that is.
    found = promoted({"L0H0->L1H1.q": float("nan"), "L0H0->L1H1.k": 1.0})
    assert found["L0H0->L1H1"] != found["L0H0->L1H1"]


def test_area_under_curve():
    grades = {"a": "active", "b": "out", "c": "active", "d": "out", "e": "free"}
    assert area_under_curve({"a": 3, "b": 1, "c": 2, "d": 0, "e": 9}, grades) == 1.0
    assert area_under_curve({"a": 1, "b": 1, "c": 1, "d": 1}, grades) == 0.5
    assert area_under_curve({"a": 0, "b": 1, "c": 2, "d": 3}, grades) == 0.25
    with pytest.raises(BadData, match=r"AUROC needs both grades; of 2 scores, 2 are active and\s+0 out"):
        area_under_curve({"a": 1, "c": 2}, grades)
    with pytest.raises(BadData, match="NaN"):
        area_under_curve({"a": float("nan"), "b": 2}, grades)


def test_bad_input():
    task = task_of("colour-if-shape")
    with pytest.raises(UnknownName, match=r"'L1MLP->L0H0' is no edge of this model\. Edges are called like"):
        truth(task).edge("L1MLP->L0H0")
    stored = task.placement(0).to_json()
    with pytest.raises(BadData, match=r"not a placement: it needs the fields task, seed, planted.*found planted"):
        Placement.of_json({"planted": stored["planted"]})
