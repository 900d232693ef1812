"""Components that nobody hears, against the definition, and against runs in which they are cut as asked."""

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edges.graph import EdgeGraph
from circuits.search.drops import Drops
from circuits.search.unheard import heard, owners_of, with_unheard_open


def some_masks(graph, n=12, seed=0):
    drawn = np.random.default_rng(seed).random((n, *graph.shape)) < np.linspace(0.02, 0.9, n)[:, None, None]
    return drawn & graph.allowed


def reaches_out(graph, mask, node):
    """The definition: a path of kept edges from the component to the read-out."""
    written = [graph.readers[reader] for reader in np.flatnonzero(mask[graph.writer(node)])]
    return any(reader == "out" or reaches_out(graph, mask, graph.node_of(reader)) for reader in written)


def test_heard_is_a_path_to_the_read_out():
    graph = EdgeGraph((2, 3))
    masks = some_masks(graph)
    found = heard(graph, masks)
    for mask, row in zip(masks, found, strict=True):
        assert row.tolist() == [reaches_out(graph, mask, node) for node in graph.writers]
    assert 0.1 < found.mean() < 0.9
    assert heard(graph, graph.allowed[None]).all() and not heard(graph, ~graph.allowed[None] & False).any()


def test_owners():
    graph = EdgeGraph((2,))
    owners = owners_of(graph)
    assert [graph.readers[i] for i in np.flatnonzero(owners < 0)] == ["out"]
    for name, owner in zip(graph.readers[:-1], owners, strict=False):
        assert graph.writers[owner] == graph.node_of(name)


def test_only_edges_into_unheard_components_are_opened():
    graph = EdgeGraph((2, 3))
    masks = some_masks(graph)
    opened = with_unheard_open(graph, masks)
    assert (opened >= masks).all() and not (opened & ~graph.allowed).any()
    for mask, more in zip(masks, opened, strict=True):
        for edge in graph.names(more & ~mask):
            assert not reaches_out(graph, mask, graph.node_of(edge.split("->")[1]))
        # What is left when everything dangling is dropped is the same.
        same = [Circuit(graph=graph, kept=kept).pruned().kept for kept in (mask, more)]
        np.testing.assert_array_equal(*same)


@pytest.mark.parametrize("family, ablation", [("vit", "patch"), ("dinov2-classifier", "mean"), ("beit", "zero")])
def test_the_drop_is_the_same(random_task, family, ablation):
    task = random_task(family, n=2, layers=2, ablation=ablation)
    masks = some_masks(task.graph)
    lean, plain = (Drops(task, lean=lean)(masks) for lean in (True, False))
    np.testing.assert_allclose(lean, plain, atol=1e-12)
    assert np.ptp(plain) > 1e-3 and (with_unheard_open(task.graph, masks) != masks).any()
