"""The circuit search, on the planted two-step circuit of ShortcutViT (F2)."""

import math

import pytest

from circuits.contextual import contextual_circuit
from circuits.contextual.search import Edge, _best
from mechvis import edits, testing
from mechvis.errors import BadData, NotFinite, OutOfRange, UnknownName
from mechvis.means import means
from mechvis.metrics import classes_of, logit_diff

STEP_ONE, STEP_TWO = {"L0H0"}, {"L1H0", "L1H1"}


@pytest.fixture(scope="module")
def model():
    return testing.shortcut_vit()


@pytest.fixture(scope="module")
def images():
    return testing.shortcut_images(100).image_set()


@pytest.fixture(scope="module")
def reference():
    return testing.shortcut_images(100, seed=5).image_set()


@pytest.fixture
def search(model, images, reference):
    def run(**more):
        more = {"reference": reference, "allow_overlap": True, "progress": False, **more}
        return contextual_circuit(model, images, **more)

    return run


@pytest.mark.parametrize("rules", ["default", "published", "all_rest"])
@pytest.mark.parametrize("labels", ["given", "predicted"])
def test_the_planted_circuit(search, rules, labels):
    found = search(k=2, rules=rules, labels=labels)
    first, second = found.steps
    assert first.targets == ("out",) and set(first.chosen) == STEP_TWO
    assert set(second.targets) == {"L1H0.z", "L1H1.z"} and second.chosen[0] == "L0H0"
    assert second.scores["L0H0"] > 0.8 and second.scores["L0H1"] == second.scores["L0H2"] == 0
    assert set(search(k="elbow", rules=rules, labels="given").nodes) == STEP_ONE | STEP_TWO


def test_the_elbow_finds_exactly_the_planted_circuit(search):
    found = search(k="elbow")
    assert found.nodes == ("L1H0", "L1H1", "L0H0") and found.pruned == () and found.faithfulness == ()
    assert {(e.source, e.target, e.at) for e in found.edges} == {
        ("L1H0", "out", "logits"),
        ("L1H1", "out", "logits"),
        ("L0H0", "L1H0", "z"),
        ("L0H0", "L1H1", "z"),
    }
    inner = [edge for edge in found.edges if edge.target != "out"]
    assert all(0.5 < edge.r < 1 and 0.5 < edge.projected < 1 for edge in inner)
    assert all(edge.projected is None and edge.r > 0.5 for edge in found.edges if edge.target == "out")
    assert found.provenance["contextual"]["search"]["k"] == "elbow"


def test_what_was_found_is_a_circuit_that_can_be_judged(search, model, images):
    """The planted heads with the edges between them, fed by the embedding, carry what the heads do."""
    from circuits.task import task

    circuit = search(k="elbow").circuit(model)
    assert set(circuit.nodes) == {"embed", "L0H0", "L1H0", "L1H1"}
    assert {"L0H0->L1H0.q", "L0H0->L1H0.k", "L0H0->L1H0.v", "L1H1->out", "embed->L0H0.v"} <= set(circuit)
    assert len(circuit) == 2 * 3 + 2 + 3 and circuit.pruned().edges == circuit.edges
    assert circuit.score("L0H0->L1H1.k") == circuit.score("L0H0->L1H1.q") > 0.5
    made = task(model, images.pixels, ablation="zero")
    without_first = circuit.with_edges(circuit.kept & made.graph.without_nodes(["L0H0"]))
    kept, cut = made.faithfulness(made.measure([circuit.kept, without_first.kept]))
    assert kept > 0.8 and abs(cut) < 0.2


def test_over_all_paths_two_nodes_per_iteration_miss_half_of_the_second_step(search):
    """The first step is then credited with both halves of the second, and takes a place in iteration 0."""
    found = search(k=2, paths="all")
    assert found.steps[0].chosen[0] == "L0H0" and set(found.steps[0].chosen) < STEP_ONE | STEP_TWO
    assert not set(found.nodes) >= STEP_TWO
    assert set(search(k="elbow", paths="all").nodes) == STEP_ONE | STEP_TWO


def test_reading_by_q_k_and_v(search):
    found = search(k=2, at=("q", "k", "v"))
    edges = {(edge.target, edge.at): edge.r for edge in found.edges if edge.source == "L0H0"}
    # The second layer's heads take the evidence by their values; whom they look at does not depend on it.
    assert set(edges) == {("L1H0", "v"), ("L1H1", "v")} and min(edges.values()) > 0.5
    assert search(k=2, at=["q", "k"]).steps[1].scores["L0H0"] == 0


def test_elbows_by_hand():
    def best(*scores):
        return len(_best({str(i): score for i, score in enumerate(scores)}, "elbow"))

    assert best(2.0, 0.9, 0.0, -0.1) == 2 and best(0.9, 0.1, 0.0, 0.0) == 1
    assert best(3.0, 2.9, 2.8) == 3 and best(1.0) == 1 and best(0.0, -1.0) == 0


def test_tau_and_limits(search):
    assert {edge.target for edge in search(k=2, tau=0.9).edges} == {"out"}
    assert len(search(k=2, max_iter=1).steps) == 1
    assert search(k=1).nodes == ("L1H0", "L0H0")
    assert set(search(k=2, normalise=None).nodes) == {"L1H0", "L1H1", "L0H0", "L0H3"}


def test_embedding_and_mlps_are_nodes_too(search, f1):
    found = search(k=3, nodes=["embed", *(f"L{layer}H{head}" for layer in (0, 1) for head in range(4))])
    assert "embed" in found.nodes and Edge in {type(edge) for edge in found.edges}
    mixed = contextual_circuit(
        f1.model,
        f1.images,
        nodes=["embed", "L0H0", "L0H1", "L0MLP", "L1H2", "L1MLP", "L2H3", "L2MLP"],
        reference=f1.reference,
        k=3,
        progress=False,
    )
    order = ["embed", "L0H0", "L0MLP", "L1H2", "L1MLP", "L2H3", "L2MLP"]
    assert all(
        order.index(e.source) < order.index(e.target) for e in mixed.edges if e.target in order and e.source in order
    )


def faithfulness_of(model, images, reference):
    """methods.md 5.7: everything outside at its mean."""
    values = means(model, reference, "*hook_z")
    run = model.run(images)
    target, contrast = classes_of(run.output, images.label_tensor)

    def measured(kept):
        made = [
            edits.mean_positional(f"blocks.{layer}.attn.hook_z", values, heads=outside)
            for layer in (0, 1)
            if (outside := [head for head in range(4) if f"L{layer}H{head}" not in kept])
        ]
        logits = model.run(images, edits=made).output
        return float(logit_diff(logits, target, contrast, run.output).mean())

    everything = {f"L{layer}H{head}" for layer in (0, 1) for head in range(4)}
    full, empty = measured(everything), measured(set())
    return lambda kept: (measured(kept) - empty) / (full - empty)


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_pruning_drops_what_faithfulness_does_not_need(search, model, images, reference):
    found = search(k=4, faithfulness=faithfulness_of(model, images, reference), max_drop=0.02)
    assert set(found.nodes) == STEP_ONE | STEP_TWO
    assert found.pruned == ("L0H3",) and [n for n, _ in found.faithfulness] == [4, 3]
    assert found.faithfulness[-1][1] > 0.9
    assert {edge.source for edge in found.edges} | {edge.target for edge in found.edges} <= {*found.nodes, "out"}


def test_pruning_asks_for_the_last_and_weakest_first(search):
    asked = []

    def faithfulness(kept):
        asked.append(kept)
        return len(kept) / 10

    found = search(k=2, faithfulness=faithfulness)
    missing = [*map(asked[0].difference, asked[1:])]
    assert found.pruned == () and missing == [{"L0H3"}, {"L0H0"}, {"L1H1"}, {"L1H0"}]


def test_pruning_keeps_one_node(search):
    assert len(search(k=2, faithfulness=lambda kept: 1.0).nodes) == 1


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"k": 0}, OutOfRange, "k=0: give at least 1 node"),
        ({"k": "all"}, OutOfRange, "or 'elbow'"),
        ({"max_iter": 0}, OutOfRange, "max_iter=0"),
        ({"max_drop": 2}, OutOfRange, "max_drop=2"),
        ({"at": "z"}, UnknownName, "unknown activation of a head in at="),
        ({"at": ("w",)}, UnknownName, "unknown activation of a head in at="),
        ({"nodes": "tokens"}, BadData, "'L0 token 0' is no node of a circuit"),
        ({"nodes": [["L0H0", "L0H1"]]}, BadData, "'L0H0 . L0H1' is no node of a circuit"),
        ({"nodes": ["L0H1", "L0H2"]}, BadData, "no node supports the output"),
        ({"faithfulness": lambda kept: math.nan}, NotFinite, "faithfulness= returned nan"),
    ],
)
def test_arguments_that_cannot_be(search, more, error, text):
    with pytest.raises(error, match=text):
        search(**more)
