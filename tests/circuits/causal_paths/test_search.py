"""The whole search: F16's path, controls that come out empty, stability, files."""

import json

import numpy as np
import pytest
import torch

from circuits.causal_paths import PathGraph, PathSettings, causal_paths
from circuits.causal_paths.against_random import adjusted, p_values, partners, sign_flips
from circuits.causal_paths.effects import Effect, Effects
from circuits.causal_paths.joint import Joint, connected, prune
from circuits.causal_paths.nodes import name_of, units_before
from circuits.causal_paths.runs import Runs, mean_run
from circuits.causal_paths.search import Search
from circuits.causal_paths.stability import jaccard
from circuits.causal_paths.synergy import synergies
from mechvis import metrics, stats, testing
from mechvis.errors import (
    BadData,
    OutOfRange,
    ResultMismatch,
    SplitOverlap,
    StoreCorrupt,
    UnknownName,
    UnsupportedModel,
)
from mechvis.testing.planted import PATH_KL, WiredViT, path_images, wrapped

PATH = {"L1N4->out", "L0N2->L1N4"}
SMALL = {"halves": 0, "random_graphs": 0, "pairs": 0, "progress": False}


@pytest.fixture(scope="module")
def graph(net, images):
    """F16, means over its own images as the specification has it."""
    with testing.assert_untouched(net):
        return causal_paths(net, images, reference=images, allow_overlap=True, halves=4, progress=False)


def test_the_planted_path_and_nothing_else(graph):
    assert set(graph.kept) == PATH == set(graph.edges["edge"])
    assert graph.nodes["unit"].to_list() in (["L1N4", "L0N2"], ["L0N2", "L1N4"])
    for edge in PATH:
        row = graph.edge(edge)
        assert row["kl"] == pytest.approx(PATH_KL, abs=5e-5) and row["low"] < row["kl"] < row["high"]
    assert graph.edge("L0N2->L1N4")["p"] < 0.01 and graph.node("L1N4")["p"] < 0.01
    assert graph.faithfulness["kept"] == pytest.approx(1.0, abs=1e-12)
    assert graph.flags == ()


def test_the_controls_come_out_empty(graph):
    assert graph.controls["shuffled classes"]["kept"] == [] and graph.controls["shuffled classes"]["measured"] == 9
    loud = graph.controls["loud units"][0]
    assert (loud["unit"], loud["kl"]) == ("L1N5", 0.0) and loud["activation"] == pytest.approx(11.2897, abs=5e-5)
    random = graph.controls["random graphs"]
    assert max(np.abs(random["values"])) < 1e-12 and random["p"] == pytest.approx(1 / 21)
    assert graph.stability["nodes"] == graph.stability["edges"] == 1.0 and not graph.stability["unstable"]


@pytest.mark.parametrize("target", ["a", 2])
def test_one_class(net, images, reference, target):
    found = causal_paths(net, images, reference=reference, target=target, **SMALL)
    assert set(found.kept) == PATH and found.target in ("a", "c")
    assert set(found.images["answer"]) == {found.target} and found.images.height in (159, 200)
    assert found.controls["shuffled classes"]["kept"] == [] and found.stability == {}
    assert found.node("L1N4")["logit"] > 1


def test_other_random_weights_have_the_same_path(images, reference):
    from mechvis.testing.planted import path_net

    for seed in (1, 2):
        found = causal_paths(path_net(seed), images, reference=reference, **SMALL)
        assert set(found.kept) == PATH, seed


def test_nothing_to_find_is_said(net, images, reference):
    """Neurons alone of a layer that nobody reads, and a class with too few images."""
    found = causal_paths(net, images, reference=reference, settings=PathSettings(kinds=("heads",)), **SMALL)
    assert found.kept == () and found.nodes.height == 0 and "there is no graph" in found.flags[0]
    assert "0 units" in repr(found)
    with pytest.raises(BadData, match="4 images of the task's class: with fewer than 6"):
        causal_paths(net, images[:4], reference=reference, **SMALL)


def test_saved_and_loaded(graph, tmp_path):
    again = PathGraph.load(graph.save(tmp_path / "g"))
    assert repr(again) == repr(graph) and again.edges.equals(graph.edges) and again.controls == graph.controls
    assert all(np.array_equal(again.values[name], graph.values[name]) for name in graph.values)
    drawn = json.loads(again.to_json())
    assert {edge["edge"] for edge in drawn["edges"]} == PATH and len(drawn["nodes"]) == 2
    assert again._repr_html_().startswith("<pre>PathGraph(")
    assert again.values["edges/kl"].mean(1) == pytest.approx(again.edges["kl"].to_numpy())
    (tmp_path / "g" / "edges.parquet").write_bytes(b"x")
    with pytest.raises(StoreCorrupt, match=r"edges\.parquet is damaged"):
        PathGraph.load(tmp_path / "g")
    manifest = json.loads((tmp_path / "g" / "paths.json").read_text())
    (tmp_path / "g" / "paths.json").write_text(json.dumps(manifest | {"format": "other"}))
    with pytest.raises(ResultMismatch, match="does not hold causal paths"):
        PathGraph.load(tmp_path / "g")
    with pytest.raises(UnknownName, match="'L0N2' is not in the graph"):
        graph.edge("L0N2")


@torch.no_grad()
def twin_net():
    """Two neurons of layer 0 both carry the input, and a saturated neuron of layer 1 reads them: each is enough."""
    model = WiredViT(
        channels=1, d_model=5, n_layers=2, n_heads=1, d_head=1, d_mlp=4, n_classes=2, activation=torch.nn.Tanh
    )
    model.embedding[0, 0] = 1.0
    first, second = model.neurons(0), model.neurons(1)
    for index in (0, 1):
        first.w_in[0, index], first.w_out[index, 1] = 5.0, 20.0
    first.w_in[0, 2], first.w_out[2, 4] = 1.0, 1.0
    second.w_in[1, 0], second.w_out[0, 2] = 1.0, 1.0
    model.readout[2] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return wrapped(model, "twins", class_names=("a", "b"))


def test_units_that_stand_in_for_each_other():
    model = twin_net()
    images = path_images(80, seed=3)[:, :1]
    means, runs = mean_run(model, path_images(200, seed=4)[:, :1]), Runs(model, images)
    effects = Effects(runs, means, runs.logits.argmax(-1))
    table = synergies(effects, ["L0N0", "L0N1", "L0N2"], seed=0)
    rows = {(row["first"], row["second"]): row for row in table.iter_rows(named=True)}
    pair = rows["L0N0", "L0N1"]
    assert pair["significant"] and pair["synergy logit"] > 0.7 * pair["joint logit"] > 0.5
    assert abs(rows["L0N0", "L0N2"]["synergy"]) < 1e-9
    single = effects.nodes(["L0N0"])["L0N0"].logit.mean()
    assert pair["joint logit"] > 5 * abs(single)
    found = causal_paths(
        model, images, reference=path_images(200, seed=4)[:, :1], settings=PathSettings(start="all", matched=2),
        halves=0, random_graphs=0, progress=False,
    )  # fmt: skip
    assert "L1N0->out" in found.edges["edge"].to_list()
    assert synergies(effects, ["L0N0"], 0).height == 0


def test_the_joint_measure_of_everything_and_nothing(net, images, reference):
    means, runs = mean_run(net, reference), Runs(net, images)
    joint = Joint(Effects(runs, means, runs.logits.argmax(-1)))
    every = tuple((name_of(unit), "out") for unit in units_before(net, "out"))
    assert joint.faithfulness(every, ()) == pytest.approx(1.0, abs=1e-12), "all units at what they do"
    assert joint.faithfulness((), ()) == 0.0
    path = (("L1N4", "out"), ("L0N2", "L1N4"))
    assert joint.faithfulness(path, {"L1N4"}) == pytest.approx(1.0, abs=1e-12)
    # Without its input the unit stands still: no credit for what was cut away.
    assert joint.faithfulness(path[:1], {"L1N4"}) == pytest.approx(0.0, abs=1e-12)
    assert joint.faithfulness(path[:1], ()) == pytest.approx(1.0, abs=1e-12)
    more = (*path, ("L1N5", "out"), ("L0N1", "L1N4"), ("L0N7", "L1N5"))
    strength = {edge: float(len(more) - place) for place, edge in enumerate(more)}
    assert prune(joint, more, {"L1N4", "L1N5"}, strength, allowed=0.005) == path
    half = joint.faithfulness(path, {"L1N4"}, np.arange(50))
    assert half == pytest.approx(1.0, abs=1e-12)


def test_a_graph_measured_by_hand(tiny):
    """L0N3 -> L1N7 -> out in a ViT with norms: everything else at its mean, by plain products."""
    model = tiny("vit")
    pixels = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means, runs = mean_run(model, pixels.flip(0) * 0.5), Runs(model, pixels)
    effects = Effects(runs, means, runs.logits.argmax(-1))
    joint = Joint(effects)
    own = joint.measure((("L1N7", "out"), ("L0N3", "L1N7")), {"L1N7"})
    run, vit = next(iter(runs)).run, model.bare.vit
    stream = (
        means.mid[1] + (run.post[0][..., 3] - means.post[0][..., 3])[..., None] * vit.layers[0].mlp.fc2.weight[:, 3]
    )
    post = vit.layers[1].mlp.activation_fn(vit.layers[1].mlp.fc1(vit.layers[1].layernorm_after(stream)))[..., 7]
    final = means.final + (post - means.post[1][..., 7])[..., None] * vit.layers[1].mlp.fc2.weight[:, 7]
    logits = model.bare.classifier(vit.layernorm(final)[:, 0]).detach()
    clean = model.run(pixels).logits
    expected = metrics.logit_diff(logits, *metrics.classes_of(clean, effects.target), clean)
    assert abs(own - expected.numpy()).max() < 1e-12


def test_only_what_leads_to_the_answer():
    edges = (("L0N1", "L1N2"), ("L1N2", "L2N0"), ("L1N3", "out"), ("L0N5", "L1N3"))
    assert connected(edges) == edges[2:]
    assert connected(()) == ()


def test_sign_flips_are_those_of_the_library():
    values = np.random.default_rng(0).normal(size=(6, 40)) + 0.2
    values[2, 3] = 0.0
    plain = np.array([stats.sign_flip_p(row, seed=3)[0] for row in values])
    assert np.array_equal(sign_flips(values, 3), plain)
    few = values[:, :8]
    assert np.array_equal(sign_flips(few, 3), [stats.sign_flip_p(row)[0] for row in few])


def test_p_needs_both_more_change_and_another_logit():
    generator = np.random.default_rng(0)
    n = 30
    quiet = [Effect(abs(generator.normal(size=n)), generator.normal(size=n), np.zeros(n)) for _ in range(4)]
    strong = Effect(quiet[0].kl + 3, quiet[0].logit + 3, np.zeros(n))
    unsigned = Effect(quiet[0].kl + 3, generator.normal(size=n), np.zeros(n))
    less = Effect(quiet[0].kl * 0, quiet[0].logit + 3, np.zeros(n))
    p = p_values([strong, unsigned, less, strong], [quiet, quiet, quiet, []], seed=0)
    assert p[0] < 0.001 and p[1] > 0.05 and p[2] == 1.0 and np.isnan(p[3])
    found = adjusted({"a": 0.01, "b": float("nan"), "c": 0.04})
    assert found["a"] == 0.02 and np.isnan(found["b"]) and adjusted({}) == {}


def test_partners_are_of_the_same_layer_and_size():
    sizes = np.concatenate([np.geomspace(0.01, 100, 60), np.geomspace(1, 2, 6)])
    groups = np.array([0] * 60 + [1] * 6)
    found = partners(sizes, groups, [30, 45, 62], 5, seed=0)
    assert all(0 <= other < 60 and other not in (30, 45) for other in found[30] + found[45])
    assert max(abs(np.log(sizes[other] / sizes[45])) for other in found[45]) < 2
    assert set(found[62]) <= {60, 61, 63, 64, 65} and len(found[62]) == 5
    many = partners(sizes, groups, range(0, 60, 2), 5, seed=0)
    assert len({other for others in many.values() for other in others}) <= 30, "controls cost no more than candidates"
    everyone = partners(sizes[:6], groups[:6], range(6), 5, seed=0)
    assert all(sorted([*others, place]) == list(range(6)) for place, others in everyone.items())
    assert partners(np.ones(1), np.zeros(1, dtype=np.int64), [0], 5, seed=0) == {0: []}


def test_false_findings_are_rare(net, images, reference):
    """Classes exchanged between images, over and over: the family-wise rate of any finding stays near q."""
    means = mean_run(net, reference)
    hits = 0
    for seed in range(20):
        runs = Runs(net, images[:60])
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        search = Search(Effects(runs, means, runs.logits.argmax(-1)[order]), PathSettings(seed=seed))
        hits += bool(search.find(levels=1).nodes)
    assert hits <= 4


def test_jaccard_of_sets():
    assert jaccard(set(), set()) == 1.0 and jaccard({1}, set()) == 0.0


def test_tokens_layers_and_levels(tiny):
    model = tiny("vit")
    pixels = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = torch.randn(9, 3, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    more = {"reference": other, "mean": "all", "aggregate": "mean", **SMALL}
    settings = PathSettings(start="all", q=0.9, depth=3, keep=2, parents=1, screen=12, screen_edges=6, matched=2)
    found = causal_paths(model, pixels, settings=settings, **more)
    assert found.tested[0]["candidates"] == 3 * (4 + 32) and found.tested[0]["measured"] == 12
    assert found.nodes.filter(found.nodes["level"] == 0).height <= 2
    readers = [edge for edge in found.edges["reader"] if edge != "out"]
    assert max((readers.count(reader) for reader in readers), default=0) <= 1
    with testing.assert_untouched(model):
        again = causal_paths(model, pixels, settings=settings, **more)
    assert again.edges.equals(found.edges), "the same seed, the same graph"


@pytest.mark.parametrize(
    "more,error,words",
    [
        ({"target": "d"}, UnknownName, "unknown class 'd'"),
        ({"target": 7}, OutOfRange, "class 7 does not exist"),
        ({"mean": "median"}, UnknownName, "unknown mean"),
        ({"aggregate": "sum"}, UnknownName, "unknown way to sum up"),
        ({"prune_below": 1.5}, OutOfRange, "prune_below=1.5"),
        ({"halves": 1}, OutOfRange, "at least 2 half-samples or 0"),
    ],
)
def test_what_is_refused(net, images, reference, more, error, words):
    with pytest.raises(error, match=words):
        causal_paths(net, images, reference=reference, **{**SMALL, **more})


@pytest.mark.parametrize(
    "setting,error,words",
    [
        ({"kinds": ("patches",)}, UnknownName, "unknown kinds of units"),
        ({"start": "first"}, UnknownName, "unknown start"),
        ({"norm": "live"}, UnknownName, "unknown treatment of norms"),
        ({"depth": 0}, OutOfRange, "depth=0: a whole number"),
        ({"q": 1.0}, OutOfRange, "a rate between 0 and 1"),
    ],
)
def test_settings_out_of_range(setting, error, words):
    with pytest.raises(error, match=words):
        PathSettings(**setting)


def test_images_that_cannot_be_used(net, images, reference, tiny):
    with pytest.raises(SplitOverlap, match="400 of the reference images are measured too"):
        causal_paths(net, images, reference=images, **SMALL)
    with pytest.raises(BadData, match="gives none of the 3 images the class"):
        answers = net.run(images).logits.argmax(-1)
        causal_paths(net, images[answers == 0][:3], reference=reference, target="b", **SMALL)
    with pytest.raises(BadData, match="this model has no head"):
        pixels = torch.randn(8, 3, 12, 12, dtype=torch.float64)
        causal_paths(tiny("vit-base"), pixels, reference=pixels + 1, **SMALL)
    still = torch.zeros_like(images[:8])
    with pytest.raises(BadData, match="there is nothing to explain"):
        causal_paths(net, still, reference=still + 0.0, allow_overlap=True, **SMALL)


def test_one_class_only_needs_other_images_for_the_shuffle(net, images, reference):
    answers = net.run(images).logits.argmax(-1)
    own = images[answers == 0]
    found = causal_paths(net, own, reference=reference, target="a", **SMALL)
    assert "all of one class" in found.controls["shuffled classes"]["not run"]
    found = causal_paths(net, own, reference=reference, target="a", others=images, **SMALL)
    assert found.controls["shuffled classes"]["kept"] == []


def test_a_stream_that_is_no_sum(reference):
    from mechvis.models.load import wrap
    from mechvis.testing.planted import path_net, wired_parts

    def normed(model):
        from dataclasses import replace

        parts = wired_parts(model)
        return replace(parts, blocks=tuple(replace(block, linear_writes=False) for block in parts.blocks))

    model = wrap(path_net().bare, family=normed, title="normed")
    with pytest.raises(UnsupportedModel, match="there are no edges"):
        causal_paths(model, reference, reference=reference, **SMALL)
