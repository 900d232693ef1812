"""Path patching against three runs with everything else frozen, by edits that know nothing of edges."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.edge_patching import patch_edges
from circuits.pairs.pairs import Pairs
from circuits.path_patching import path_effects, path_patch
from circuits.task import task
from mechvis import edits, testing
from mechvis.errors import BadData, UnknownName
from mechvis.testing import planted

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")


def noise_task(family="vit", n=3):
    model = mechvis.load(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = torch.randn(2 * n, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = tuple(map(str, range(n)))
    pairs = Pairs(name="noise", clean=pixels[:n], corrupt=pixels[n:], ids=ids)
    metric = lambda out, target, contrast, clean: out[..., 0] - out[..., 1].square()  # noqa: E731
    return task(model, pairs, metric=metric, max_undistinguished=1.0)


def site_of(node):
    layer, head = node[1:].split("H") if "H" in node else (node[1:].removesuffix("MLP"), None)
    return (
        (int(layer), f"blocks.{layer}.attn.hook_z", int(head))
        if head
        else (int(layer), f"blocks.{layer}.hook_mlp_out", None)
    )


def put(node, cache):
    """The edit that gives a component the write it has in another run."""
    if node == "embed":
        return edits.patch("hook_embed", cache)
    _, site, head = site_of(node)
    return edits.patch(site, cache) if head is None else edits.patch(site, cache, heads=[head])


def by_runs(made, path, direct_only):
    """The output along a path: one run per step, with every component that the path does not name frozen."""
    model, graph = made.model, made.graph
    every = ["hook_embed", "blocks.*.attn.hook_[qkvz]", "blocks.*.hook_mlp_out", "blocks.*.hook_resid_*"]
    sites = [
        name for name in model.graph.names if any(__import__("fnmatch").fnmatch(name, pattern) for pattern in every)
    ]
    clean = model.run(made.clean, capture=sites).cache
    source, sender = model.run(made.corrupt, capture=sites).cache, path[0]
    for step in path[1:]:
        # In this run the sender's write is the patched one, and all later components but MLPs (or all) are frozen.
        node = graph.node_of(step)
        between = [
            name
            for name in graph.writers[1:]
            if graph.depth(sender) < graph.depth(name) or (graph.depth(sender) == graph.depth(name) and name != sender)
        ]
        frozen = [name for name in between if direct_only or not name.endswith("MLP")]
        held = [put(sender, source), *(put(name, clean) for name in frozen)]
        if step == "out":
            return model.run(made.clean, edits=held).output
        # What the step would read is seen at its own inputs: run without freezing them, and put them into a clean run.
        layer, site, head = site_of(node)
        kinds = [step.split(".")[1]] if "." in step else "qkv"
        if head is None:
            read = model.run(
                made.clean, edits=[e for e in held if e.site != site], capture=[f"blocks.{layer}.hook_resid_mid"]
            )
            mid = read.cache[f"blocks.{layer}.hook_resid_mid"]
            wrote = mechvis.block.mlp(model.parts.blocks[layer], mid)
            answer = [edits.patch(site, {site: wrote})]
        else:
            inputs = [f"blocks.{layer}.attn.hook_{kind}" for kind in kinds]
            seen = model.run(made.clean, edits=held, capture=inputs).cache
            answer = [edits.patch(name, seen, heads=[head]) for name in inputs]
        if step == path[-1]:
            return model.run(made.clean, edits=answer).output
        source, sender = model.run(made.clean, edits=answer, capture=sites).cache, node
    raise AssertionError


PATHS = [
    ("embed", "L0H1.q"),
    ("L0H1", "L2H3.k"),
    ("L0MLP", "L2H0"),
    ("L0H2", "out"),
    ("L0H1", "L1H2.q", "out"),
    ("embed", "L0H3.v", "L1MLP", "L2H1.q"),
    ("L0H0", "L1H1", "L2H2.v", "out"),
    ("L1H0", "L2MLP"),
]


@pytest.mark.parametrize("family", ["vit", "dinov3"])
@pytest.mark.parametrize("direct_only", [True, False])
def test_three_runs(family, direct_only):
    made = noise_task(family)
    found = path_effects(made, PATHS, direct_only=direct_only)
    clean = made.model.run(made.clean).output
    before = made.metric(clean, None, None, clean)
    for path, values in zip(PATHS, found, strict=True):
        expected = (before - made.metric(by_runs(made, path, direct_only), None, None, clean)).numpy()
        np.testing.assert_allclose(values, expected, atol=1e-10, err_msg="->".join(path))
        assert np.abs(values).max() > 1e-6, path


def test_mlps_matter_between():
    made = noise_task()
    direct, through = (path_effects(made, [("L0H1", "L2H3.k"), ("L0H2", "out")], direct_only=d) for d in (True, False))
    assert np.abs(direct - through).max() > 1e-4


def test_one_step_is_an_edge():
    made = noise_task()
    edges = [edge for edge in made.graph.edges if "L1H2" in edge or edge.endswith("->out")]
    expected = patch_edges(made, edges, progress=False)
    found = path_patch(made, [edge.split("->") for edge in edges], progress=False)
    assert found.table["unit"].to_list() == edges
    np.testing.assert_allclose(found.values["<lambda>"], expected.values["<lambda>"], atol=1e-12)


def test_the_two_hops_of_cue_lookup():
    """The cue goes through head (0,1) into the queries of the second head, and through nothing else."""
    model, pairs = planted.cue_lookup(), planted.cue_pairs("cue", n=16)
    made = task(
        model,
        Pairs(name="cue", clean=pairs.clean, corrupt=pairs.corrupt, ids=tuple(map(str, range(16))),
              clean_labels=pairs.clean_labels, corrupt_labels=pairs.corrupt_labels),
        max_undistinguished=1.0,
    )  # fmt: skip
    hops = sorted(pairs.active)
    (first,) = [edge for edge in hops if edge.startswith("embed->L0")]
    (second,) = [edge for edge in hops if edge.endswith(".q") and edge.startswith("L0")]
    chain = (*first.split("->"), second.split("->")[1], "out")
    found = path_effects(made, [chain, (chain[0], chain[1], "out"), ("embed", "out")])
    drop = (made.full - made.empty).mean()
    assert found[0].mean() == pytest.approx(drop, rel=0.02)
    assert np.abs(found[1:]).mean() < 0.02 * drop


def test_all_senders_into_a_receiver():
    made = noise_task()
    found = path_patch(made, receivers=["L1H2.q", "L1MLP"], progress=False)
    n = made.graph.n_before
    assert found.table.height == n[made.graph.reader("L1H2.q")] + n[made.graph.reader("L1MLP")]
    assert set(found.table["receiver"]) == {"L1H2.q", "L1MLP"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"paths": [["L0H1"]]}, BadData, "needs a sender and a receiver"),
        ({"paths": [["L1H1", "L0H2.q"]]}, BadData, "L1H1 does not come before L0H2.q"),
        ({"paths": [["L0H1", "L0H2.q"]]}, BadData, "L0H1 does not come before L0H2.q"),
        ({"paths": [["L0H1", "L1H2.q", "L1H3.q"]]}, BadData, "L1H2.q does not come before L1H3.q"),
        ({"paths": [["L0H9", "out"]]}, UnknownName, "L0H9"),
        ({"paths": [["L0H1", "L1H2.z"]]}, UnknownName, "L1H2.z"),
        ({"paths": [["L0H1", "out"]] * 2}, BadData, "listed twice"),
        ({"paths": []}, BadData, "no path"),
        ({"paths": [["L0H1", "out"]], "senders": ["L0H1"]}, BadData, "not both"),
        ({"senders": ["L2MLP"], "receivers": ["L0H1.q"]}, BadData, "no path"),
    ],
)
def test_bad_input(options, error, words):
    with pytest.raises(error) as caught:
        path_patch(noise_task(), progress=False, **options)
    assert words in str(caught.value)
