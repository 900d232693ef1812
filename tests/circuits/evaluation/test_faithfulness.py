"""Faithfulness and necessity where they are known: F3, gates, and both ends exactly."""

from dataclasses import replace

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import denominator, faithfulness, necessity
from circuits.evaluation.faithfulness import share
from mechvis.errors import BadData, NotFinite, OutOfRange, ResultMismatch, ShapeMismatch
from mechvis.testing.planted import SATURATION_EDGES


def test_f3(f3, core):
    """methods.md 5.7: 0.930 for the three big edges, 1 with the two small ones, and dead edges change nothing."""
    assert faithfulness(f3, core).value == pytest.approx(0.9302, abs=5e-5)
    whole = Circuit.of(f3.graph, SATURATION_EDGES)
    assert faithfulness(f3, whole).value == pytest.approx(1, abs=1e-12)
    dead = Circuit.of(f3.graph, {*SATURATION_EDGES, "L0H1->L0MLP", "L0H0->out", "embed->L0H0.q"})
    assert faithfulness(f3, dead).value == pytest.approx(1, abs=1e-12)
    assert necessity(f3, whole).value == pytest.approx(1, abs=1e-12)
    assert denominator(f3).value == pytest.approx(16 * np.tanh(6) + 1.2, abs=1e-12)


@pytest.mark.parametrize("fixture", ["f3", "cue"])
def test_all_is_one_and_nothing_is_zero_exactly(request, fixture):
    task = request.getfixturevalue(fixture)
    every = Circuit(graph=task.graph, kept=task.graph.allowed)
    none = Circuit(graph=task.graph, kept=task.graph.allowed & False)
    for measure in (faithfulness, necessity):
        full, empty = measure(task, every), measure(task, none)
        assert (full.value, full.mean_of_ratios) == (1.0, 1.0)
        assert (empty.value, empty.mean_of_ratios) == (0.0, 0.0)


def test_gates(either, both, path_through):
    """OR: one path is enough and not needed. AND: one path is not enough, and needed."""
    one, two = path_through(either, 0), path_through(either, 0, 1)
    assert faithfulness(either, one).value == pytest.approx(1, abs=1e-6)
    # The last edge is shared; without it, the path is not needed.
    branch = Circuit.of(either.graph, {"embed->L0H0.v", "L0H0->L0MLP"})
    assert necessity(either, branch).value == pytest.approx(0, abs=1e-6)
    assert faithfulness(both, one).value == pytest.approx(0, abs=1e-6)
    assert necessity(both, branch).value == pytest.approx(1, abs=1e-6)
    assert faithfulness(both, two).value == pytest.approx(1, abs=1e-6)


def test_a_random_circuit_agrees_with_the_tasks_formula(cue):
    kept = (np.random.default_rng(1).random(cue.graph.shape) < 0.7) & cue.graph.allowed
    circuit = Circuit(graph=cue.graph, kept=kept)
    found, values = faithfulness(cue, circuit), cue.measure(kept[None])
    assert found.value == pytest.approx(cue.faithfulness(values)[0], abs=1e-12)
    each = (values[0] - cue.empty) / (cue.full - cue.empty)
    assert found.mean_of_ratios == pytest.approx(each.mean(), abs=1e-12)
    assert found.low < found.value < found.high and found.n == len(cue)


def test_the_two_orders_differ_and_tiny_denominators_are_counted():
    zero, one = np.zeros(4), np.array([10.0, 1.0, 10.0, 0.01])
    found = share(np.array([10.0, 0.0, 10.0, -5.0]), zero, one)
    assert found.value == pytest.approx(15 / 21.01)
    assert found.mean_of_ratios == pytest.approx(2 / 3) and found.tiny == 1
    assert share(np.array([10.0, 0.0, 10.0, -5.0]), zero, one, tiny=0.0).mean_of_ratios == pytest.approx(
        (1 + 0 + 1 - 500) / 4
    )
    assert "1 tiny" in repr(found) and "n=4" in repr(found)


def test_no_interval_where_the_denominator_changes_its_sign():
    generator = np.random.default_rng(0)
    one = generator.normal(0.05, 1, 30)
    found = share(one / 2, np.zeros(30), one)
    assert found.value == pytest.approx(0.5) and found.low is None and "no interval" in repr(found)


def test_weak_denominators_are_said(f3, cue):
    assert denominator(cue).weak == "" and denominator(cue).reversed == 0
    near = replace(cue, metric=lambda *given: 1000 + cue.metric(*given))
    assert "the empty circuit is nearly as good" in denominator(near).weak
    upside_down = replace(f3, metric=lambda *given: -f3.metric(*given))
    assert denominator(upside_down).weak == "it is negative: cutting every edge helps"
    assert faithfulness(upside_down, Circuit.of(f3.graph, SATURATION_EDGES)).value == pytest.approx(1, abs=1e-12)
    noisy = replace(cue, metric=lambda *given: cue.metric(*given) * (-1.0) ** given[1].new_tensor(range(len(cue))))
    assert "interval over images holds 0" in denominator(noisy).weak


def test_refusals(f3, core):
    constant = replace(f3, metric=lambda logits, *rest: 3.0 + 0 * logits[..., 0])
    with pytest.raises(BadData, match=r"with every edge cut .*a constant metric, and shares of it mean nothing"):
        faithfulness(constant, core)
    with pytest.raises(ResultMismatch, match="edges have no counterpart"):
        necessity(f3, Circuit.of(EdgeGraph((2, 2)), ["L1H0->out"]))
    with pytest.raises(ShapeMismatch, match="one number per image three times"):
        share(np.ones(3), np.zeros(2), np.ones(3))
    with pytest.raises(NotFinite, match="NaN or Inf"):
        share(np.array([np.nan]), np.zeros(1), np.ones(1))
    with pytest.raises(BadData, match="no share between them"):
        share(np.ones(2), np.zeros(2), np.array([1.0, -1.0]))
    with pytest.raises(OutOfRange, match="tiny=1"):
        share(np.ones(2), np.zeros(2), np.ones(2), tiny=1)
