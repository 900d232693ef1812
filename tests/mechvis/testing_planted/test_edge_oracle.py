"""The slow evaluator of edges against the ordinary forward, against node patching by edits, and by hand."""

import copy
from dataclasses import replace

import pytest
import torch

from mechvis import edits
from mechvis.errors import BadData, BadImages, NotFinite, RefusedMethod, ShapeMismatch, UnknownName
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess
from mechvis.testing.planted import edge_effects, edge_forward, edge_gradients, edges_of, saturation_net, writes_of

FAMILIES = ["vit", "deit-distilled", "clip-vision", "beit-mean", "siglip-vision"]
FAMILIES += ["dinov2-swiglu", "dinov2-registers", "dinov3-gated"]


def load(family):
    model = wrap(tiny(family, dtype=torch.float64), preprocess=tiny_preprocess())
    clean, corrupt = tiny_input(family, n=6).double().split(3)
    return model, clean, corrupt


@pytest.fixture(scope="module")
def vit():
    model = wrap(rand_vit(), preprocess=tiny_preprocess())
    clean, corrupt = tiny_input("vit", n=6).double().split(3)
    return model, clean, corrupt


def margin(logits):
    return logits[:, 0] - logits[:, 1]


def without(model, test):
    return [edge for edge in edges_of(model) if not test(edge)]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_are_the_model_and_none_the_other_image(family):
    model, clean, corrupt = load(family)
    with torch.no_grad():
        assert_close(edge_forward(model, clean, corrupt, edges_of(model)), model(clean), 1e-12, "all")
        assert_close(edge_forward(model, clean, corrupt, []), model(corrupt), 1e-12, "none")


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_add_up_to_the_stream(family):
    model, clean, _ = load(family)
    writes = writes_of(model, clean)
    biases = sum(block.attn.b_O for block in model.blocks if block.attn.b_O is not None)
    with torch.no_grad():
        stream = model(clean, stop_at_layer=len(model.blocks))
    assert_close(sum(writes.values()) + biases, stream, 1e-12)
    assert list(writes) == [edge.partition("->")[0] for edge in edges_of(model) if edge.endswith("->out")]


def test_names_and_counts(vit):
    edges = edges_of(vit[0])
    assert edges[:3] == ("embed->L0H0.q", "embed->L0H0.k", "embed->L0H0.v") and edges[-1] == "L2MLP->out"
    per_layer = [12 * (1 + 5 * layer) + 5 + 5 * layer for layer in range(3)]
    assert len(edges) == len(set(edges)) == sum(per_layer) + 16
    assert "L0H1->L0MLP" in edges and "L0H1->L0H2.q" not in edges and "L1H1->L1H2.q" not in edges


@pytest.mark.parametrize("layer,head", [(0, 1), (2, 3)])
def test_all_edges_of_a_head_are_its_node(vit, layer, head):
    model, clean, corrupt = vit
    site = f"blocks.{layer}.attn.hook_z"
    source = model.run(corrupt, capture=site).cache
    by_edit = model.run(clean, edits=[edits.patch(site, source, heads=[head])]).logits
    kept = without(model, lambda edge: edge.startswith(f"L{layer}H{head}->"))
    assert_close(edge_forward(model, clean, corrupt, kept), by_edit, 1e-12)


def test_all_edges_of_an_mlp_are_its_node(vit):
    model, clean, corrupt = vit
    site = "blocks.1.hook_mlp_out"
    by_edit = model.run(clean, edits=[edits.patch(site, model.run(corrupt, capture=site).cache)]).logits
    kept = without(model, lambda edge: edge.startswith("L1MLP->"))
    assert_close(edge_forward(model, clean, corrupt, kept), by_edit, 1e-12)


@pytest.mark.parametrize("what", ["q", "k", "v"])
def test_all_edges_into_a_reader_are_its_input(vit, what):
    model, clean, corrupt = vit
    site = f"blocks.2.attn.hook_{what}"
    source = model.run(corrupt, capture=site).cache
    by_edit = model.run(clean, edits=[edits.patch(site, source, heads=[1])]).logits
    kept = without(model, lambda edge: edge.endswith(f"->L2H1.{what}"))
    assert_close(edge_forward(model, clean, corrupt, kept), by_edit, 1e-12)


def test_one_edge_by_hand(vit):
    """Head (0, 2) to the query of head (1, 3): the patched input, norm recomputed, everything later live."""
    model, clean, corrupt = vit
    block = model.parts.blocks[1]
    with torch.no_grad():
        ours, theirs = (writes_of(model, x)["L0H2"] for x in (clean, corrupt))
        stream = model(clean, stop_at_layer=1)
        query = block.attn.q(block.ln1(stream - ours + theirs))
    by_edit = model.run(clean, edits=[edits.patch("blocks.1.attn.hook_q", query, heads=[3])]).logits
    found = edge_effects(model, clean, corrupt, margin, ["L0H2->L1H3.q"])["L0H2->L1H3.q"]
    with torch.no_grad():
        assert_close(found, margin(model(clean)) - margin(by_edit), 1e-10)
    assert found.abs().min() > 1e-6


def test_given_writes_take_the_place(vit):
    model, clean, corrupt = vit
    base = writes_of(model, corrupt)
    kept = edges_of(model)[::3]
    assert_close(edge_forward(model, clean, base, kept), edge_forward(model, clean, corrupt, kept), 0)
    zeros = {writer: torch.zeros(1, 1, 16, dtype=torch.float64) for writer in base}
    by_edit = model.run(clean, edits=[edits.zero("blocks.1.attn.hook_z", heads=[0])]).logits
    gone = without(model, lambda edge: edge.startswith("L1H0->"))
    assert_close(edge_forward(model, clean, zeros, gone), by_edit, 1e-12)


def test_gradients_are_derivatives_of_gates(vit):
    """A small step: only a share h of the difference is replaced."""
    model, clean, corrupt = vit
    first = edge_gradients(model, clean, corrupt, margin)
    ours, theirs, h = writes_of(model, clean), writes_of(model, corrupt), 1e-5
    near = {writer: ours[writer] + h * (theirs[writer] - ours[writer]) for writer in ours}
    for edge in ("embed->L0H0.k", "L0H1->L1H2.q", "L0MLP->L2H0.v", "L1H3->L2MLP", "L2H2->out"):
        numeric = edge_effects(model, clean, near, margin, [edge])[edge] / h
        assert_close(first[edge], numeric, 1e-3, edge)


def test_gradients_into_the_output_add_up(vit):
    """At the output with a linear metric and no norm left (one point): sum over edges = gradient times difference."""
    model, clean, corrupt = vit
    scores = edge_gradients(model, clean, corrupt, margin)
    stream = model(clean, stop_at_layer=3).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(margin(model(stream, start_at_layer=3)).sum(), stream)
    with torch.no_grad():
        total = ((stream - model(corrupt, stop_at_layer=3)) * gradient).sum((1, 2))
    assert_close(sum(score for edge, score in scores.items() if edge.endswith("->out")), total, 1e-10)


def test_the_model_is_left_as_found(vit):
    model, clean, corrupt = vit
    with assert_untouched(model):
        edge_gradients(model, clean, corrupt, margin)
        edge_effects(model, clean, corrupt, margin, ["L0H0->out"])


def test_nothing_asks_for_gradients(vit):
    model, clean, corrupt = vit
    assert not edge_forward(model, clean, corrupt, []).requires_grad
    assert not any(score.requires_grad for score in edge_gradients(model, clean, corrupt, margin).values())
    assert not any(write.requires_grad for write in writes_of(model, clean).values())


def bad_metric(logits):
    return logits[:, 0] / 0 * 0


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda m, a, b: edge_forward(m, a, b, ["L0H1->L0H2.q"]), UnknownName, "unknown edge 'L0H1->L0H2.q'"),
        (lambda m, a, b: edge_effects(m, a, b, margin, ["out"]), UnknownName, "unknown edge 'out'"),
        (lambda m, a, b: edge_effects(m, a, b, margin, []), BadData, "asks for no edge"),
        (lambda m, a, b: edge_effects(m, a, b, bad_metric, ["L0H0->out"]), NotFinite, "replacing L0H0->out alone"),
        (lambda m, a, b: edge_gradients(m, a, b, margin, []), BadData, "averages over no run"),
        (lambda m, a, b: edge_forward(m, a, b[:1], []), ShapeMismatch, "edges need aligned pairs"),
        (lambda m, a, b: edge_forward(m, a, {"embed": a}, []), BadData, r"write of L0H0 \(15 of 16\)"),
        (
            lambda m, a, b: edge_forward(m, a, writes_of(m, b) | {"L9H0": a}, []),
            UnknownName,
            "unknown writer 'L9H0'",
        ),
        (lambda m, a, b: edge_forward(m, a * float("nan"), b, []), BadImages, "NaN or Inf in the pixels"),
        (lambda m, a, b: edge_forward(m, a, b * float("nan"), []), BadImages, "NaN or Inf in the pixels"),
    ],
)
def test_refusals(vit, call, error, words):
    with pytest.raises(error, match=words):
        call(*vit)


def test_models_it_does_not_know():
    model = copy.copy(saturation_net())
    normed = (replace(model.parts.blocks[0], linear_writes=False),)
    model.__dict__["parts"] = replace(model.parts, blocks=normed)
    with pytest.raises(RefusedMethod, match="no sum of heads and MLPs"):
        writes_of(model, torch.ones(1, 2, 1, 1, dtype=torch.float64))
    with pytest.raises(RefusedMethod, match="text tower"):
        writes_of(wrap(tiny("clip-text")), tiny_input("clip-text"))


def test_a_wrong_evaluator_would_be_seen():
    """The comparison with the forward can fail: a bias that the parts forget to mention."""
    model = copy.copy(saturation_net())
    block = model.parts.blocks[0]
    wrong = replace(block, attn=replace(block.attn, out_bias=lambda: torch.ones(5, dtype=torch.float64)))
    model.__dict__["parts"] = replace(model.parts, blocks=(wrong,))
    x = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    with torch.no_grad(), pytest.raises(AssertionError, match="largest difference"):
        assert_close(edge_forward(model, x, -x, edges_of(model)), model(x), 1e-12)
