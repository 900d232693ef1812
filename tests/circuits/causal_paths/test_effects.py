"""Effects of units and edges: F16's numbers, slow twins, other implementations."""

import pytest
import torch

from circuits.causal_paths import Effects, PathCut, Runs, mean_run, path_cut
from circuits.causal_paths.nodes import edge_ends, unit_of, units_before
from circuits.causal_paths.reading import Reader, differences
from circuits.causal_paths.runs import record
from circuits.causal_paths.screen import Screen, sizes_of
from circuits.path_patching import path_effects
from circuits.task import task
from mechvis import edits, metrics, testing
from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.testing.planted import PATH_KL, PATH_LOUD, PATH_LOUDNESS, path_connection
from mechvis.units import Unit

NORMS = ("frozen", "recomputed")
PAIRS = [("L0N3", "L1N7"), ("L0H1", "L1H2"), ("L0H1", "L0N5"), ("L0N3", "L2H0"), ("L1H1", "out"), ("L2N3", "out")]
FAMILIES = ["vit", "dinov2-classifier", "beit", "siglip-classifier"]


@pytest.fixture(scope="module")
def planted(net, images):
    """F16 with the means over its own images, as the specification measures it."""
    means, runs = mean_run(net, images), Runs(net, images)
    return {norm: Effects(runs, means, runs.logits.argmax(-1), norm) for norm in NORMS}


def drawn(n, seed, size=12):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(model, norm):
    pixels, means = drawn(6, 1), mean_run(model, drawn(9, 2))
    runs = Runs(model, pixels)
    return pixels, means, Effects(runs, means, runs.logits.argmax(-1), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_planted_path_has_an_effect(planted, norm):
    """methods2.md 22, F16: node 4 of layer 1 alone, edges into it from node 2 alone, the loud unit 0.000."""
    effects = planted[norm]
    nodes = effects.nodes([*(f"L1N{i}" for i in range(8)), "L1H0", "L0H0", "L0N2"])
    for name, effect in nodes.items():
        if name in ("L1N4", "L0N2"):
            assert effect.kl.mean() == pytest.approx(PATH_KL, abs=5e-5)
        else:
            assert (effect.kl == 0).all() and (effect.logit == 0).all() and (effect.flip == 0).all()
    edges = effects.edges([(f"L0N{i}", "L1N4") for i in range(8)])
    assert edges["L0N2", "L1N4"].kl.mean() == pytest.approx(PATH_KL, abs=5e-5)
    assert all((effect.kl == 0).all() for (writer, _), effect in edges.items() if writer != "L0N2")
    assert nodes["L1N4"].flip.mean() > 0.5, "the answer changes"


def test_the_loud_unit_is_the_loudest(net, images):
    run = record(net, images)[0]
    loud = run.post[1].mean((0, 1))
    assert int(loud.argmax()) == PATH_LOUD and float(loud.max()) == pytest.approx(PATH_LOUDNESS, abs=5e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_edges_are_those_of_the_oracle(planted, net, images, norm):
    clean = net.run(images).logits
    classes = clean.argmax(-1)
    for unit, reader in ((2, 4), (0, 3), (5, 1)):
        expected = path_connection(net, images, unit, reader)
        own = planted[norm].edges([(f"L0N{unit}", f"L1N{reader}")])[f"L0N{unit}", f"L1N{reader}"]
        kl = -metrics.kl(expected, classes, classes, clean)
        logit = metrics.logit(clean - expected, classes, classes, clean)
        assert abs(own.kl - kl.numpy()).max() < 1e-12 and abs(own.logit - logit.numpy()).max() < 1e-12
        cut = path_cut(net, f"L0N{unit}->L1N{reader}", planted[norm].means, norm=norm)
        testing.assert_close(cut(images), expected, 1e-12, "whole forward")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_way_agrees_with_whole_forwards(tiny, family, norm):
    model = tiny(family)
    pixels, means, effects = measured(model, norm)
    clean = model.run(pixels).logits.double()
    for pair in PAIRS:
        own = effects.edges([pair])[pair]
        cut = PathCut(model=model, edges=("->".join(pair),), means=means, norm=norm)(pixels).double()
        kl = -metrics.kl(cut, effects.target, effects.target, clean)
        assert abs(own.kl - kl.numpy()).max() < 1e-10, pair
        logit = metrics.logit(clean - cut, effects.target, effects.target, clean)
        assert abs(own.logit - logit.numpy()).max() < 1e-9, pair
        assert own.kl.max() > 0


def test_heads_agree_with_path_patching(tiny):
    model = tiny("vit")
    pixels, reference = drawn(6, 1), drawn(9, 2)
    known = task(model, pixels, ablation="mean_positional", reference=reference, metric="logit")
    effects = Effects(Runs(model, pixels), mean_run(model, reference), known.target, "recomputed")
    pairs = [("L0H1", "L1H2"), ("L0H0", "L2H3"), ("L1H1", "out")]
    expected = path_effects(known, pairs)
    for row, pair in enumerate(pairs):
        assert abs(effects.edges([pair])[pair].logit - expected[row]).max() < 1e-12


def test_a_neuron_by_hand(tiny):
    """Nothing of ours: the layers of the Hugging Face model, and LayerNorm written out."""
    model = tiny("vit")
    pixels, means, _ = measured(model, "frozen")
    layer = model.bare.vit.layers[1]
    run = record(model, pixels)[0]
    change = (run.post[0][..., 3] - means.post[0][..., 3])[..., None] * model.bare.vit.layers[0].mlp.fc2.weight[:, 3]
    clean, norm = run.mid[1], layer.layernorm_after
    centred = clean - clean.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    changed = (clean - change) - (clean - change).mean(-1, keepdim=True)
    frozen = changed / scale * norm.weight + norm.bias
    for how, normalised in (("frozen", frozen), ("recomputed", norm(clean - change))):
        expected = layer.mlp.activation_fn(layer.mlp.fc1(normalised))[..., 7]
        own = Reader(model, how).value(Unit(1, "neurons", 7), run, None, change[None])[0]
        testing.assert_close(own, expected, 1e-12, how)


@pytest.mark.parametrize("family", ["vit", "dinov2-classifier", "dinov2-swiglu", "dinov3-gated"])
def test_the_short_way_to_a_neuron(tiny, family):
    """One number per pair against changed streams; where a gate or another norm forbids it, it is not taken."""
    model = tiny(family)
    run, layout, _ = record(model, drawn(4, 1))
    means = mean_run(model, drawn(5, 2))
    node, units = Unit(2, "neurons", 5), [Unit(0, "neurons", 1), Unit(1, "heads", 2), Unit(2, "heads", 0)]
    for norm in NORMS:
        reader = Reader(model, norm)
        own = reader.without(node, run, means, units)
        assert (own is None) == (norm == "recomputed" or family in ("dinov2-swiglu", "dinov3-gated"))
        if own is not None:
            plain = reader.value(node, run, layout, differences(model, units, run, means))
            testing.assert_close(own, plain, 1e-11, family)


@pytest.mark.parametrize("family", ["dinov2-swiglu", "dinov3-gated", "deit", "siglip-headless"])
def test_a_reader_gives_the_clean_value_of_an_unchanged_stream(tiny, family):
    model = tiny(family)
    run, layout, _ = record(model, drawn(4, 1))
    nothing = torch.zeros_like(run.final)[None]
    for norm in NORMS:
        for node in (Unit(1, "neurons", 5), Unit(2, "heads", 1)):
            own = Reader(model, norm).value(node, run, layout, nothing)[0]
            testing.assert_close(own, run.value(node), 1e-11, f"{node.name}, {norm}")


def test_units_are_replaced_as_edits_replace_them(tiny):
    model = tiny("vit")
    pixels, means, effects = measured(model, "frozen")
    clean = model.run(pixels).logits
    for name in ("L1N4", "L0H2", "L2N9"):
        unit = unit_of(name)
        kept = (means.post if unit.kind == "neurons" else means.z)[unit.layer][0]
        word = {"units": [unit.index]} if unit.kind == "neurons" else {"heads": [unit.index]}
        output = model.run(pixels, edits=[edits.mean_positional(unit.site, {unit.site: kept}, **word)]).logits
        expected = metrics.logit(clean - output, effects.target, effects.target, clean)
        assert abs(effects.nodes([name])[name].logit - expected.numpy()).max() < 1e-12


def test_a_small_budget_changes_nothing(tiny):
    model = tiny("vit")
    pixels, means, effects = measured(model, "recomputed")
    small = Effects(Runs(model, pixels, budget=200_000), means, effects.target, "recomputed")
    assert small.runs.size < len(pixels)
    pairs = [(f"L0N{i}", "L1N7") for i in range(9)]
    for pair, effect in effects.edges(pairs).items():
        assert abs(effect.kl - small.edges([pair])[pair].kl).max() < 1e-12
    assert effects.rows == 9 * 6 == small.rows
    effects.edges(pairs)
    assert effects.rows == 9 * 6, "nothing is measured twice"


def test_means_over_tokens(tiny):
    model = tiny("vit")
    positional, whole = mean_run(model, drawn(5, 3), batch_size=2), mean_run(model, drawn(5, 3), positional=False)
    run = record(model, drawn(5, 3))[0]
    testing.assert_close(positional.post[1], run.post[1].mean(0, keepdim=True), 1e-12, "per token")
    testing.assert_close(whole.z[2], run.z[2].mean((0, 1), keepdim=True).expand_as(whole.z[2]), 1e-12, "over tokens")


def test_the_screen_is_the_first_order_of_the_effect(tiny):
    """Against finite differences: a thousandth of the change, a thousand times its effect."""
    model = tiny("vit")
    pixels, means, effects = measured(model, "recomputed")
    screen = Screen(effects.runs, means, effects.target, effects.reader)
    before = units_before(model, "L2N9")
    estimate = screen.into("L2N9", before)
    run, layout, _ = record(model, pixels)
    node = Unit(2, "neurons", 9)
    own = run.value(node)
    gradient = screen._gradients(next(iter(effects.runs)), [node.site])[node.site][..., 9]
    for name in ("L0N3", "L1H2", "L2H0"):
        small = 1e-5 * differences(model, [unit_of(name)], run, means)
        moved = (effects.reader.value(node, run, layout, small)[0] - own) * 1e5
        expected = (moved * gradient).sum(1).abs().detach().numpy()
        row = before.index(unit_of(name))
        assert abs(estimate[row] - expected).max() < 1e-4 * max(abs(expected).max(), 1e-12)
    units = [unit_of(name) for name in ("L2N9", "L1H1")]
    whole = screen.units(units)
    for row, unit in enumerate(units):
        step = 1e-5 * (run.value(unit) - means.value(unit))
        vector = torch.zeros_like(run.post[2] if unit.kind == "neurons" else run.z[1])
        (vector[..., 9] if unit.kind == "neurons" else vector[:, :, 1]).copy_(step)
        moved = model.run(pixels, edits=[edits.add(unit.site, vector)]).logits - model.run(pixels).logits
        expected = metrics.logit(moved, effects.target, effects.target, moved).abs().numpy() * 1e5
        assert abs(whole[row] - expected).max() < 1e-3 * max(expected.max(), 1e-12), unit.name


def test_sizes_are_those_of_what_is_written(tiny):
    model = tiny("dinov2-classifier")
    pixels, means, effects = measured(model, "frozen")
    units = [Unit(0, "neurons", 3), Unit(1, "heads", 2)]
    own = sizes_of(effects.runs, means, units)
    change = differences(model, units, record(model, pixels)[0], means)
    expected = change.square().sum(-1).mean((1, 2)).sqrt()
    testing.assert_close(torch.from_numpy(own), expected, 1e-12, "sizes")


def test_several_cuts_see_each_other(tiny):
    """Cutting a path in both places is not the sum; a cut of edges that carry their mean changes nothing."""
    model = tiny("vit")
    pixels, means, _ = measured(model, "frozen")
    two = path_cut(model, ["L0N3->L1N7", "L1N7->out"], means)
    assert two.without() is model and "L0N3->L1N7" in repr(two)
    with testing.assert_untouched(model):
        both = two(pixels)
    one = path_cut(model, "L1N7->out", means)(pixels)
    assert not torch.equal(both, one)
    still = mean_run(model, pixels[:1])
    same = path_cut(model, ["L0N3->L1N7", "L0H1->L1H2", "L1H1->out"], still)(pixels[:1])
    testing.assert_close(same, model.run(pixels[:1]).logits, 1e-12, "the mean of one image is itself")


@pytest.mark.parametrize(
    "edge,error,words",
    [
        ("L0N3-L1N7", BadData, "not the name of an edge"),
        ("L1N7->L0N3", BadData, "does not come before"),
        ("L0N3->L0H1", BadData, "does not come before"),
        ("out->L0N3", UnknownName, "'out' names no unit"),
        ("L0N99->out", OutOfRange, "does not exist"),
        ("L0MLP->out", UnknownName, "'L0MLP' names no unit"),
    ],
)
def test_edges_that_do_not_exist(tiny, edge, error, words):
    model = tiny("vit")
    with pytest.raises(error, match=words):
        edge_ends(model, edge)
    with pytest.raises(error, match=words):
        path_cut(model, edge, mean_run(model, drawn(2, 1)))
    with pytest.raises(BadData, match="no edge to cut"):
        path_cut(model, [], mean_run(model, drawn(2, 1)))
