"""Circuits as values and as files."""

import json

import numpy as np
import pytest

import mechvis
from circuits.circuit import Circuit, scores_of
from circuits.edges.graph import EdgeGraph
from circuits.search.select import graph_of, ranking, select
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, ResultMismatch, ShapeMismatch, StoreCorrupt, UnknownName
from mechvis.results import Result

GRAPH = EdgeGraph((2, 2))
CHAIN = ["embed->L0H1.v", "L0H1->L1H0.q", "L1H0->out"]


def scores():
    values = np.random.default_rng(0).normal(size=GRAPH.shape)
    return np.where(GRAPH.allowed, values, np.nan)


def test_sets_of_edges():
    first, second = Circuit.of(GRAPH, CHAIN), Circuit.of(GRAPH, [CHAIN[0], "L0MLP->out"])
    assert len(first) == 3 and list(first) == list(first.edges) and CHAIN[1] in first
    assert set((first | second).edges) == {*CHAIN, "L0MLP->out"}
    assert (first & second).edges == (CHAIN[0],) and set((first - second).edges) == set(CHAIN[1:])
    assert first.overlap(second) == pytest.approx(1 / 4) and first.overlap(first) == 1.0
    assert first.nodes == ("embed", "L0H1", "L1H0")
    assert Circuit.of(GRAPH, []).overlap(Circuit.of(GRAPH, [])) == 1.0
    assert Circuit.of_nodes(GRAPH, ["L0H1"]).nodes == ("embed", "L0H1")
    assert first.share == 3 / GRAPH.n_edges


@pytest.mark.parametrize(
    ("edges", "left"),
    [
        (CHAIN, CHAIN),
        ([*CHAIN, "L0H0->L1H0.k"], CHAIN),  # nothing feeds L0H0
        ([*CHAIN, "embed->L0MLP"], CHAIN),  # nobody hears L0MLP
        ([*CHAIN, "embed->L1H1.v", "L0H1->L1H1.q"], CHAIN),  # nobody hears L1H1
        (["L0H1->L1H0.q", "L1H0->out"], []),  # cut off from the embedding
        (["embed->L0H1.v", "L0H1->L1H0.q"], []),  # cut off from the read-out
        (["embed->out"], ["embed->out"]),
        ([*CHAIN, "embed->L0H0.q", "L0H0->L0MLP", "L0MLP->L1H1.v"], CHAIN),
        (["embed->L0H0.q", "L0H0->L0MLP", "L0MLP->L1H1.v", "L1H1->L1MLP", "L1MLP->out"], ...),
    ],
)
def test_dangling_edges(edges, left):
    assert set(Circuit.of(GRAPH, edges).pruned().edges) == set(edges if left is ... else left)


def test_pruning_changes_nothing_that_is_computed():
    """Of a circuit in a run with a fixed base, edges on no path do not matter where the ends agree with the base."""
    from circuits.task import task

    model = testing.shortcut_vit()
    images = testing.shortcut_images(12)
    made = task(model, images.pixels, ablation="zero", metric="logit_diff")
    drawn = np.random.default_rng(3).random(made.graph.shape) < 0.4
    circuit = Circuit(graph=made.graph, kept=drawn & made.graph.allowed)
    pruned = circuit.pruned()
    assert len(pruned) < len(circuit)
    # A head that nothing feeds still writes its answer to nothing; here that answer is zero, since v has no bias.
    found = made.measure(np.stack([circuit.kept, pruned.kept]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)


def test_files(tmp_path):
    circuit = Circuit.of(
        GRAPH, CHAIN, scores=scores(), title="chain", model={"name": "m", "fingerprint": "f"}, provenance={"n": 3}
    )
    again = Circuit.load(circuit.save(tmp_path / "c"))
    assert again.edges == circuit.edges and again.title == "chain" and again.graph == GRAPH
    np.testing.assert_array_equal(again.scores, circuit.scores)
    assert dict(again.model) == {"name": "m", "fingerprint": "f"} and dict(again.provenance) == {"n": 3}
    unscored = Circuit.load(Circuit.of(GRAPH, CHAIN).save(tmp_path / "u"))
    assert unscored.scores is None and np.isnan(unscored.score(CHAIN[0]))
    empty = Circuit.load(Circuit.of(GRAPH, []).save(tmp_path / "e"))
    assert len(empty) == 0


def test_golden_file():
    """A circuit that was written in format version 1."""
    from pathlib import Path

    circuit = Circuit.load(Path(__file__).parent / "golden" / "circuit-v1")
    assert circuit.edges == tuple(GRAPH.names(GRAPH.mask(CHAIN))) and circuit.title == "golden"
    assert circuit.score("L1H0->out") == 2.0


def test_damaged_files(tmp_path):
    folder = Circuit.of(GRAPH, CHAIN).save(tmp_path / "c")
    content = (folder / "edges.parquet").read_bytes()
    (folder / "edges.parquet").write_bytes(content[:-1] + b"x")
    with pytest.raises(StoreCorrupt, match=r"edges\.parquet"):
        Circuit.load(folder)
    Circuit.of(GRAPH, CHAIN).save(folder)
    manifest = json.loads((folder / "circuit.json").read_text())
    for change, error, words in (
        ({"format": "mechvis.result"}, ResultMismatch, "does not hold a circuit"),
        ({"version": 99}, ResultMismatch, "format version 99"),
    ):
        other = tmp_path / f"other-{len(words)}"
        other.mkdir()
        from mechvis import files

        plain = {key: value for key, value in manifest.items() if key not in ("files", "checksum")}
        files.write_together(other, {"edges.parquet": content}, "circuit.json", {**plain, **change})
        with pytest.raises(error, match=words):
            Circuit.load(other)


def test_another_architecture(tmp_path):
    folder = Circuit.of(GRAPH, CHAIN).save(tmp_path)
    model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    with pytest.raises(ResultMismatch, match=r"2 layers x 2 heads.*3 layers x 4 heads.*no counterpart"):
        Circuit.load(folder, model)
    with pytest.raises(ResultMismatch, match="two architectures"):
        Circuit.of(GRAPH, CHAIN) | Circuit.of(EdgeGraph((2,)), [])


def test_words():
    circuit = Circuit.of(GRAPH, CHAIN, scores=scores(), title="chain <b>")
    assert repr(circuit).startswith(f"Circuit[chain <b>](3 of {GRAPH.n_edges} edges, 3 of 7 components: embed, L0H1")
    assert len(str(circuit).splitlines()) == 4 and "L1H0->out" in str(circuit)
    assert "&lt;b&gt;" in circuit._repr_html_()


def test_select():
    values = scores()
    order = ranking(values, GRAPH)
    sizes = np.abs(values[order[:, 0], order[:, 1]])
    assert len(order) == GRAPH.n_edges and (np.diff(sizes) <= 0).all()
    top = select(values, 5, graph=GRAPH, prune=False)
    assert set(top.edges) == {GRAPH.names(one_edge(place))[0] for place in order[:5]}
    signed = select(values, 5, graph=GRAPH, signed=True, prune=False)
    assert min(signed.score(edge) for edge in signed) >= np.sort(values[GRAPH.allowed])[-5]
    above = select(values, threshold=1.0, graph=GRAPH, prune=False)
    assert len(above) == (np.abs(values[GRAPH.allowed]) >= 1).sum()
    assert len(select(values, GRAPH.n_edges, graph=GRAPH)) == GRAPH.n_edges
    assert len(select(values, 0, graph=GRAPH)) == 0


def one_edge(place):
    mask = np.zeros(GRAPH.shape, bool)
    mask[tuple(place)] = True
    return mask


def test_greedy_grows_from_the_read_out():
    values = np.where(GRAPH.allowed, 0.01, np.nan)
    for edge, value in {"embed->L0H0.q": 9, "L1H0->out": 3, "L0H1->L1H0.q": 2, "embed->L0H1.v": 1}.items():
        values[GRAPH.edge(edge)] = value
    grown = select(values, 3, graph=GRAPH, how="greedy")
    assert grown.edges == Circuit.of(GRAPH, CHAIN).edges
    # By size alone the loud edge that nobody hears takes a place, and what is left hangs in the air.
    assert len(select(values, 3, graph=GRAPH)) == 0


def test_scores_of_a_result():
    values = np.random.default_rng(0).normal(size=(2, 6))
    units = [{"unit": edge, "writer": edge.split("->")[0], "reader": edge.split("->")[1]} for edge in CHAIN[:2]]
    result = Result.from_values("edge_patching", "two", units, {"logit_diff": values})
    matrix = scores_of(result, GRAPH)
    assert matrix[GRAPH.edge(CHAIN[0])] == pytest.approx(values[0].mean()) and np.isnan(matrix).sum() == matrix.size - 2
    assert select(result, 1, graph=GRAPH, prune=False).share == 1 / GRAPH.n_edges
    with pytest.raises(BadData, match="pass graph="):
        graph_of(result)
    with pytest.raises(ResultMismatch, match="is none of"):
        scores_of(result, EdgeGraph((2,)))
    heads = Result.from_values("sweep", "heads", [{"layer": 0, "head": 0}], {"m": values[:1]})
    with pytest.raises(BadData, match="has no edges"):
        scores_of(heads, GRAPH)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Circuit(graph=GRAPH, kept=np.ones((2, 2), bool)), ShapeMismatch, "needs [7, 15]"),
        (lambda: Circuit(graph=GRAPH, kept=np.ones(GRAPH.shape, bool)), ShapeMismatch, "which is no edge"),
        (lambda: Circuit.of(GRAPH, CHAIN, scores=np.full(GRAPH.shape, np.inf)), NotFinite, "hold Inf"),
        (lambda: Circuit.of(GRAPH, ["L0H1->L0H1.q"]), BadData, "does not come before"),
        (lambda: select(scores(), graph=GRAPH), BadData, "one of the two"),
        (lambda: select(scores(), 3, threshold=1.0, graph=GRAPH), BadData, "one of the two"),
        (lambda: select(scores(), 10_000, graph=GRAPH), OutOfRange, "edges with a score"),
        (lambda: select(scores(), threshold=1e9, graph=GRAPH), BadData, "no edge scores"),
        (lambda: select(scores(), 3), BadData, "need graph="),
        (lambda: select(scores(), 3, graph=GRAPH, how="best"), UnknownName, "way to select"),
        (lambda: select(np.full(GRAPH.shape, np.nan), 1, graph=GRAPH), NotFinite, "every score is NaN"),
        (lambda: select(np.full(GRAPH.shape, np.inf), 1, graph=GRAPH), NotFinite, "hold Inf"),
        (lambda: select(np.ones((2, 2)), 1, graph=GRAPH), ShapeMismatch, "needs [7, 15]"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
