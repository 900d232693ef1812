"""Runs with gated edges, against the oracle that makes every reader's input term by term, and against plain runs."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.edges.base import Outputs, check_base, mean_outputs, record, zeros
from circuits.edges.gated import gated
from circuits.edges.graph import EdgeGraph
from circuits.edges.wiring import wiring
from mechvis import edits, testing
from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.testing.planted import edge_forward, writes_of

FAMILIES = ("vit", "deit", "beit", "dinov2", "dinov2-registers", "dinov3", "mae", "clip-vision", "siglip-vision")
ORACLE = ("vit", "deit", "beit", "dinov2", "dinov3", "clip-vision")
"""Families that the oracle takes: no attention pooling."""


def wrapped(family, **options):
    return mechvis.load(testing.tiny(family, dtype=torch.float64, **options), preprocess=testing.tiny_preprocess())


def pixels_of(model, n=3, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *model.parts.image_size, generator=noise, dtype=torch.float64)


def some_masks(graph, n=5, seed=0):
    """All edges, none, and random halves of them."""
    drawn = np.random.default_rng(seed).random((n, *graph.shape)) < np.linspace(0.2, 0.98, n)[:, None, None]
    return torch.from_numpy(np.concatenate([graph.allowed[None], graph.allowed[None] & False, drawn & graph.allowed]))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    if request.param not in testing.tiny_families():
        pytest.fail(f"{request.param} is no tiny family: {testing.tiny_families()}")
    model = wrapped(request.param)
    return request.param, model, pixels_of(model), pixels_of(model, seed=1)


def test_all_edges_are_the_plain_run_and_none_the_base(case):
    _, model, clean, corrupt = case
    graph = EdgeGraph.of(model)
    found = gated(model, record(model, clean), record(model, corrupt), some_masks(graph)[:2])
    testing.assert_close(found[0], model.run(clean).output, 1e-12, "all edges")
    testing.assert_close(found[1], model.run(corrupt).output, 1e-12, "no edge")


def test_products_are_the_users_own_projections(case):
    """The short way to project forks, against calls of the model's own modules."""
    _, model, clean, corrupt = case
    clean, corrupt = record(model, clean), record(model, corrupt)
    masks = some_masks(EdgeGraph.of(model))
    fast = gated(model, clean, corrupt, masks, wires=wiring(model, clean))
    slow = gated(model, clean, corrupt, masks, wires=wiring(model, clean, products=False))
    testing.assert_close(fast, slow, 1e-11, "products")
    assert float((fast[2] - fast[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ORACLE)
def test_any_set_of_edges_agrees_with_the_oracle(family):
    model = wrapped(family)
    clean, corrupt = pixels_of(model), pixels_of(model, seed=1)
    graph = EdgeGraph.of(model)
    masks = some_masks(graph)
    found = gated(model, record(model, clean), record(model, corrupt), masks)
    for mask, output in zip(masks.numpy(), found, strict=True):
        expected = edge_forward(model, clean, corrupt, graph.names(mask))
        testing.assert_close(output, expected, 1e-11, f"{mask.sum()} edges")


def test_zero_and_mean_bases_agree_with_the_oracle():
    model = wrapped("vit")
    clean, reference = pixels_of(model), pixels_of(model, n=5, seed=1)
    graph, run = EdgeGraph.of(model), record(model, clean)
    mask = some_masks(graph)[4:5]
    kept = graph.names(mask[0].numpy())
    written = {name: value.mean(0, keepdim=True) for name, value in writes_of(model, reference).items()}
    for positional, base in ((True, written), (False, {k: v.mean(1, keepdim=True) for k, v in written.items()})):
        found = gated(model, run, mean_outputs(model, reference, positional=positional, batch_size=2), mask)[0]
        testing.assert_close(found, edge_forward(model, clean, base, kept), 1e-11, "means")
    nothing = {name: torch.zeros_like(value) for name, value in written.items()}
    # A value bias belongs to its head, which then writes nothing of it.
    testing.assert_close(
        gated(model, run, zeros(run), mask)[0], edge_forward(model, clean, nothing, kept), 1e-11, "zero"
    )


def test_cutting_all_edges_of_a_head_is_ablating_it():
    model = wrapped("dinov3")
    clean = pixels_of(model)
    run, graph = record(model, clean), EdgeGraph.of(model)
    masks = torch.from_numpy(np.stack([graph.without_nodes([name]) for name in ("L1H2", "L0MLP", "L2MLP")]))
    found = gated(model, run, zeros(run), masks)
    head = edits.zero("blocks.1.attn.hook_z", heads=[2])
    writes = [edits.zero(f"blocks.{layer}.hook_mlp_out") for layer in (0, 2)]
    for output, edit in zip(found, [head, *writes], strict=True):
        testing.assert_close(output, model.run(clean, edits=[edit]).output, 1e-12, repr(edit))


def test_half_open_gates_interpolate_what_is_read():
    """A gate of one half into the read-out alone: the read-out sees the mean of both writes."""
    model = wrapped("vit")
    clean, corrupt = (record(model, pixels_of(model, seed=seed)) for seed in (0, 1))
    graph = EdgeGraph.of(model)
    gates = torch.from_numpy(graph.allowed).double()
    gates[1:, -1] = 0.5
    between = clean.streams[-1] - 0.5 * sum_of(graph, model, clean, corrupt)
    expected = mechvis.block.read_out(model.parts, between, lambda x: x[:, list(model.parts.reads)])
    testing.assert_close(gated(model, clean, corrupt, gates[None])[0], expected, 1e-12, "half")


def sum_of(graph, model, clean, corrupt):
    """What all components but the embedding write more than on the corrupt image."""
    own, other = (run.streams[-1] - run.embed for run in (clean, corrupt))
    return own - other


def test_gates_carry_gradients():
    model = wrapped("vit")
    clean, corrupt = (record(model, pixels_of(model, seed=seed)) for seed in (0, 1))
    graph = EdgeGraph.of(model)
    gates = torch.rand(1, *graph.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gates.requires_grad_(True)
    (gradient,) = torch.autograd.grad(gated(model, clean, corrupt, gates)[0, :, 0].sum(), gates)
    for edge in ("embed->L0H1.q", "L0H0->L1H2.k", "L1MLP->L2H0.v", "L1H1->L2MLP", "L2MLP->out"):
        at = (0, *graph.edge(edge))
        values = []
        for step in (1e-6, -1e-6):
            moved = gates.detach().clone()
            moved[at] += step
            values.append(gated(model, clean, corrupt, moved)[0, :, 0].sum())
        expected = (values[0] - values[1]) / 2e-6
        assert abs(float(gradient[at] - expected)) <= 1e-6 * max(1, abs(float(expected))), edge


def test_nothing_is_left_on_the_model():
    model = wrapped("vit")
    clean, corrupt = pixels_of(model), pixels_of(model, seed=1)
    with testing.assert_untouched(model.bare):
        gated(model, record(model, clean), record(model, corrupt), some_masks(EdgeGraph.of(model)))


def test_another_image_size():
    model = wrapped("dinov2")
    clean, corrupt = (
        torch.randn(2, 3, 15, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    graph = EdgeGraph.of(model)
    found = gated(model, record(model, clean), record(model, corrupt), some_masks(graph)[:2])
    testing.assert_close(found[0], model.run(clean).output, 1e-12, "all edges")
    testing.assert_close(found[1], model.run(corrupt).output, 1e-12, "no edge")


def test_bad_input():
    model = wrapped("vit")
    run, graph = record(model, pixels_of(model)), EdgeGraph.of(model)
    with pytest.raises(ShapeMismatch, match=r"gates are \[circuit writer reader\] = \[n, 16, 40\], got \[1, 3, 3\]"):
        gated(model, run, zeros(run), torch.ones(1, 3, 3))
    with pytest.raises(BadData, match="at least one reference image"):
        mean_outputs(model, pixels_of(model)[:0])
    bad = pixels_of(model)
    bad[1] = float("nan")
    with pytest.raises((NotFinite, mechvis.errors.MechvisError)):
        record(model, bad)
    other = record(wrapped("vit", num_hidden_layers=2), pixels_of(model))
    with pytest.raises(ShapeMismatch, match="same model"):
        check_base(run, other)
    fewer = Outputs(run.embed[:2], tuple(z[:2] for z in run.z), tuple(m[:2] for m in run.mlp))
    with pytest.raises(ShapeMismatch, match="same model"):
        gated(model, run, fewer, torch.from_numpy(graph.allowed)[None])
