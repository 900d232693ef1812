"""Circuits found on two halves of the images."""

import numpy as np
import pytest

from circuits.circuit import Circuit
from circuits.edge_patching import patch_edges
from circuits.edges.graph import EdgeGraph
from circuits.evaluation import stability
from circuits.evaluation.stability import chance_jaccard
from mechvis.errors import BadData, OutOfRange, ResultMismatch


def test_exact_patching_is_stable_on_a_planted_circuit(cue):
    found = stability(cue, lambda half: patch_edges(half, progress=False), n_edges=6, n_splits=2)
    assert found.jaccard == 1.0 and found.table["chance"][0] < 0.05
    assert found.mean("first on second") == pytest.approx(1, abs=1e-3)
    assert found.spearman > 0 and found.table.height == 2
    assert "2 split(s) of 12 images: Jaccard 1.000" in repr(found)


def test_random_scores_are_not(cue):
    generator = np.random.default_rng(0)

    def guess(half):
        scores = np.where(half.graph.allowed, generator.normal(size=half.graph.shape), np.nan)
        from circuits.search.select import select

        return select(scores, 30, graph=half.graph, prune=False)

    found = stability(cue, guess, n_splits=8)
    assert found.jaccard == pytest.approx(chance_jaccard(30, 30, 110), abs=0.06)
    assert abs(found.spearman) < 0.1
    assert found.mean("first on second") < 0.5


def test_each_half_is_seen_once_and_they_share_no_image(cue):
    seen = []

    def finder(half):
        seen.append(set(half.ids))
        return Circuit.of(half.graph, ["embed->L0H1.v"] if len(seen) == 1 else ["embed->L0H1.v", "L1H2->out"])

    found = stability(cue, finder, seed=5)
    assert len(seen) == 2 and not seen[0] & seen[1] and seen[0] | seen[1] == set(cue.ids)
    row = found.table.row(0, named=True)
    assert (row["jaccard"], row["edges first"], row["edges second"], row["spearman"]) == (0.5, 1, 2, None)
    assert found.spearman is None and "Spearman" not in repr(found)
    assert row["chance"] == pytest.approx(chance_jaccard(1, 2, 110))


def test_empty_circuits_agree(cue):
    found = stability(cue, lambda half: Circuit.of(half.graph, []))
    assert found.jaccard == 1.0 and found.mean("first on second") == 0.0


def test_bad_input(cue, f3):
    with pytest.raises(OutOfRange, match="n_splits=0"):
        stability(cue, lambda half: None, n_splits=0)
    with pytest.raises(BadData, match="the finder gave a NoneType"):
        stability(cue, lambda half: None)
    with pytest.raises(BadData, match=r"say how many of the best edges make a circuit: n_edges="):
        stability(cue, lambda half: patch_edges(half, ["L1H2->out"], progress=False))
    with pytest.raises(ResultMismatch, match="edges have no counterpart"):
        stability(cue, lambda half: Circuit.of(EdgeGraph((2,)), []))
    with pytest.raises(BadData, match="1 image cannot be split"):
        stability(f3, lambda half: None)
