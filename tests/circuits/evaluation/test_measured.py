"""Many circuits at once, and the two ends exactly."""

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.evaluation.measured import Cost, check, measured, without
from mechvis.errors import BadData, ResultMismatch, ShapeMismatch
from mechvis.testing.planted import edge_forward, saturation_net, saturation_pairs


def some_masks(task, n, seed=0):
    return (np.random.default_rng(seed).random((n, *task.graph.shape)) < 0.5) & task.graph.allowed


def test_equals_the_slow_truth(f3):
    model, pairs = saturation_net(), saturation_pairs()
    masks = some_masks(f3, 12)
    found = measured(f3, masks)
    for mask, values in zip(masks, found, strict=True):
        logits = edge_forward(model, pairs.clean, pairs.corrupt, f3.graph.names(mask))
        np.testing.assert_allclose(values, pairs.metric(logits).numpy(), atol=1e-12)


def test_each_different_circuit_runs_once_and_the_ends_not_at_all(cue):
    masks, cost = some_masks(cue, 3), Cost()
    allowed = cue.graph.allowed
    listed = [masks[0], masks[1], masks[0], allowed, ~allowed & False, masks[2], allowed]
    values = measured(cue, listed, cost=cost)
    assert cost.rows == 3 * len(cue)
    assert (values[0] == values[2]).all()
    assert (values[3] == cue.full).all() and (values[6] == cue.full).all() and (values[4] == cue.empty).all()
    np.testing.assert_allclose(values[[0, 1, 5]], cue.measure(masks), atol=1e-12)


def test_places_without_an_edge_do_not_count(f3):
    masks = some_masks(f3, 2)
    np.testing.assert_array_equal(measured(f3, masks | ~f3.graph.allowed), measured(f3, masks))
    assert (measured(f3, [np.ones(f3.graph.shape, bool)])[0] == f3.full).all()


def test_without(f3, core):
    rest = without(f3.graph, core.kept)
    assert rest.sum() == 10 and not (rest & core.kept).any() and not rest[~f3.graph.allowed].any()


def test_bad_input(f3, nothing):
    with pytest.raises(ShapeMismatch, match=r"\[n, 4, 8\], got \[4, 8\]"):
        measured(f3, f3.graph.allowed)
    with pytest.raises(BadData, match="masks of circuits are bool, got float64"):
        measured(f3, f3.graph.allowed[None].astype(float))
    other = Circuit.of(EdgeGraph((3,)), ["L0H2->out"])
    with pytest.raises(ResultMismatch, match="edges have no counterpart there"):
        check(f3, other)
    check(f3, nothing)
    with pytest.raises(BadData, match="'nothing' has no edge: its faithfulness is 0 by definition"):
        check(f3, nothing, empty=False)
