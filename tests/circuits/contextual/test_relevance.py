"""Relevance of components to components."""

import numpy as np
import pytest
import torch

from circuits.contextual import relevance_to
from circuits.contextual.relevance import by_layer
from mechvis import edits, testing
from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.results import Result


@pytest.fixture
def relevance(f1):
    def run(sources="heads", targets="heads", **more):
        more = {"reference": f1.reference, "progress": False, **more}
        return relevance_to(f1.model, f1.images, sources, targets, **more)

    return run


def test_relevance_is_what_its_formulas_say(relevance, f1):
    sites = ["blocks.2.attn.hook_z", "blocks.1.attn.hook_q", "blocks.2.mlp.hook_pre"]
    found = relevance(["L0H0", "L0H1", "L1MLP"], ["L2H1", "L1H3.q", "L2MLP.pre"])
    assert found.metrics == ["relevance", "ratio", "projected"]
    assert found.table["unit"].to_list()[:8] == [
        "L0H0->L2H1.z",
        "L0H1->L2H1.z",
        "L1MLP->L2H1.z",
        "L0H0->L1H3.q",
        "L0H1->L1H3.q",
        "L0H0->L2MLP.pre",
        "L0H1->L2MLP.pre",
        "L1MLP->L2MLP.pre",
    ]
    halves = f1.batched(["L0H0", "L0H1", "L1MLP"], "default", sites=sites)
    picks = [(sites[0], (..., 1, slice(None))), (sites[1], (..., 3, slice(None))), (sites[2], (...,))]
    row = 0
    for (site, at), n_sources in zip(picks, (3, 2, 3), strict=True):
        total = halves.total[site][at].flatten(1)
        for source in range(n_sources):
            beta = halves.beta[site][source][at].flatten(1)
            size, rest = beta.abs().mean(1), (total - beta).abs().mean(1)
            assert np.allclose(found.values["ratio"][row], size / (size + rest), atol=1e-13)
            projected = (beta * total).sum(1) / (total * total).sum(1)
            assert np.allclose(found.values["projected"][row], projected, atol=1e-13)
            row += 1
    relevance_of, ratio = found.values["relevance"], found.values["ratio"]
    assert np.allclose(relevance_of[:2], ratio[:2] / ratio[:2].sum(0)) and (relevance_of[2] == 1).all()
    assert np.allclose(relevance_of[5:7], ratio[5:7] / ratio[5:7].sum(0))


def test_all_rest_relevance_is_what_an_ablation_moves(relevance, f1):
    found = relevance(["L0H1"], ["L2H1.k"], rules="all_rest").values["projected"][0]
    edit = edits.mean_positional("blocks.0.attn.hook_z", f1.means, heads=[1])
    moved = f1.model.run(f1.images, edits=[edit], capture="blocks.2.attn.hook_k").cache["blocks.2.attn.hook_k"]
    clean = f1.run.cache["blocks.2.attn.hook_k"][:, :, 1].flatten(1)
    beta = clean - moved[:, :, 1].flatten(1)
    assert np.allclose(found, ((beta * clean).sum(1) / (clean * clean).sum(1)).numpy(), atol=1e-12)


def test_projected_shares_of_all_there_is_add_up(f1):
    """Given the patterns, without biases in the way: embedding, heads and MLPs together are the whole value."""
    more = {"edit": "zero", "paths": "direct", "rules": "published", "progress": False}
    images, model = testing.shortcut_images(10), testing.shortcut_vit()
    found = relevance_to(model, images.pixels, ["embed", *(f"L0H{h}" for h in range(4))], ["L1H0.v", "L1H1.v"], **more)
    shares = found.values["projected"].reshape(2, 5, 10).sum(1)
    assert np.allclose(shares, 1)


def test_direct_paths_leave_out_what_others_made_of_it(relevance):
    through = relevance(["L0H1"], ["L2H0"], normalise=None)
    direct = relevance(["L0H1"], ["L2H0"], normalise=None, paths="direct")
    assert through.metrics == ["ratio", "projected"]
    assert (direct.values["ratio"] > 0).all() and abs(direct.values["ratio"] - through.values["ratio"]).max() > 1e-3
    near = [relevance(["L0H1"], ["L0MLP.pre"], paths=paths, rules="all_rest") for paths in ("all", "direct")]
    assert np.allclose(near[0].values["ratio"], near[1].values["ratio"])  # nothing lies between


def test_tokens_of_targets(relevance, f1):
    found = relevance(["L0H1"], ["L2H1"], tokens="cls").values["ratio"][0]
    halves = f1.batched(["L0H1"], "default", sites=["blocks.2.attn.hook_z"])
    total, beta = (x[..., 0, 1, :] for x in (halves.total["blocks.2.attn.hook_z"], halves.beta["blocks.2.attn.hook_z"]))
    size, rest = beta[0].abs().mean(1), (total - beta[0]).abs().mean(1)
    assert np.allclose(found, size / (size + rest))
    assert np.allclose(
        relevance(["L0H1"], ["L2H1"], tokens=range(10)).values["ratio"], relevance(["L0H1"], ["L2H1"]).values["ratio"]
    )


def test_a_site_as_a_whole_beside_one_of_its_heads(relevance, f1):
    found = relevance(["L0H1"], ["L1H2", "blocks.1.attn.hook_z", "hook_pooled"])
    halves = f1.batched(["L0H1"], "default", sites=["blocks.1.attn.hook_z"])
    beta = halves.beta["blocks.1.attn.hook_z"][0].flatten(1)
    size, rest = beta.abs().mean(1), halves.gamma("blocks.1.attn.hook_z")[0].flatten(1).abs().mean(1)
    assert np.allclose(found.values["ratio"][1], size / (size + rest))
    assert found.table["target"].to_list()[:3] == ["L1H2", "blocks.1.attn.hook_z", "hook_pooled"]


def test_pooling_heads_and_a_model_without_a_head(bench, tmp_path):
    at = bench("siglip-vision")
    more = {"reference": at.reference, "progress": False}
    found = relevance_to(at.model, at.images, "heads", "pool_heads", **more)
    assert found.rows("ratio").height == 12 * 4 and (found.values["ratio"] > 0).all()
    assert Result.load(found.save(tmp_path / "r")).table.equals(found.table)
    grouped = relevance_to(at.model, at.images, ["L0H1"], ["L1H0"], groups=(1, 3), **more)
    assert grouped.rows().get_column("source_group").to_list() == ["cell 0,0", "cell 0,1", "cell 0,2"]


def test_sums_by_layer():
    ratio = np.array([[[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]]])
    assert by_layer(ratio, [0, 0, 1], np.ones((1, 3), bool))[0].tolist() == [[0.25, 0.0], [0.75, 0.0], [1.0, 0.0]]
    assert by_layer(ratio, [0, 0, 0], np.array([[True, False, True]]))[0, 0, 0] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"targets": ["L0H1"]}, BadData, "no source comes before the target 'L0H1.z'"),
        ({"targets": ["L2H0", "L0H1.q"]}, BadData, "no source comes before the target 'L0H1.q'"),
        ({"targets": ["L1H0"], "normalise": "sum"}, UnknownName, "unknown way to normalise 'sum'"),
        ({"targets": ["L1H0"], "at": "w"}, UnknownName, "unknown activation of a head 'w'"),
        ({"targets": ["L1H0"], "tokens": [99]}, OutOfRange, "tokens 0 to 9"),
        ({"targets": ["L1H0"], "tokens": "registers"}, BadData, "selects no token"),
        ({"targets": ["hook_logits"], "tokens": "cls"}, BadData, "'hook_logits' comes after it"),
    ],
)
def test_arguments_that_cannot_be(relevance, more, error, text):
    with pytest.raises(error, match=text):
        relevance("heads", **more)


def test_random_weights_say_nothing_about_other_random_weights():
    """The control of methods2.md 15.5 (e): divided by layer, relevances rank heads in no order that the architecture
    alone would explain. Undivided they do: the nearer block wins."""
    from scipy.stats import spearmanr

    from mechvis.models.load import wrap

    images = testing.tiny_input("vit", n=24, dtype=torch.float64)
    found, n_models, n_layers = [], 6, 5
    for seed in range(n_models):
        bare = testing.tiny("vit", seed=seed, dtype=torch.float64, num_hidden_layers=n_layers)
        model = wrap(bare, preprocess=testing.tiny_preprocess())
        targets = [f"L{n_layers - 1}H{head}" for head in range(4)]
        result = relevance_to(model, images[16:], "heads", targets, reference=images[:16], progress=False)
        found.append({name: result.values[name].reshape(4, 16, 8).mean((0, 2)) for name in ("relevance", "ratio")})

    def agreement(name):
        pairs = [(i, j) for i in range(n_models) for j in range(i)]
        return np.mean([spearmanr(found[i][name], found[j][name]).statistic for i, j in pairs])

    assert abs(agreement("relevance")) < 0.3
    assert agreement("ratio") > 0.35
