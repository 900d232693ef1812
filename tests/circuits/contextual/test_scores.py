"""Scores of sources in the output: targets, references, pairs, groups, interactions, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from circuits.contextual import PRESETS, contextual, decompose, interaction
from circuits.pairs.pairs import Pairs
from mechvis import testing
from mechvis.clip import ZeroShotHead
from mechvis.errors import (
    BadData,
    BadImages,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    SplitOverlap,
    TrainMode,
    UnknownName,
    UnknownSite,
)
from mechvis.hooked import HookedViT
from mechvis.results import Result


@pytest.fixture
def score(f1):
    def run(sources="heads", **more):
        more = {"reference": f1.reference, "progress": False, **more}
        return contextual(f1.model, f1.images, sources=sources, **more)

    return run


def test_a_result_with_everything_that_results_have(score, f1, tmp_path):
    found = score()
    assert found.metrics == ["logit_diff"] and found.kind == "contextual"
    assert found.cube("layer", "head").shape == (3, 4) and found.values["logit_diff"].shape == (12, 3)
    facts = found.provenance["contextual"]
    assert facts["rules"]["pattern"] == "total" and facts["reference_images"] == 4 and facts["paths"] == "all"
    assert facts["target"] == "logit_diff" and facts["edit"] == "mean_positional"
    again = Result.load(found.save(tmp_path / "found"))
    assert again.table.equals(found.table) and np.array_equal(again.values["logit_diff"], found.values["logit_diff"])
    logits = f1.run.cache["hook_logits"].topk(2).values
    assert found.baseline["logit_diff"] == pytest.approx(float((logits[:, 0] - logits[:, 1]).mean()))


def test_scores_are_beta_of_the_logits(score, f1):
    beta = f1.batched(["L0H1", "L1MLP", ["L0H0", "L2H3"]], "default").beta["hook_logits"]
    logits = f1.run.cache["hook_logits"]
    best = logits.argsort(descending=True)
    sources = ["L0H1", "L1MLP", ["L0H0", "L2H3"]]

    def at(classes):
        return beta.gather(-1, classes.expand(3, 3)[..., None])[..., 0].numpy()

    assert np.allclose(score(sources).values["logit_diff"], at(best[:, 0]) - at(best[:, 1]), atol=1e-14)
    assert np.allclose(score(sources, target="logit").values["logit"], at(best[:, 0]), atol=1e-14)
    third = score(sources, target=3)
    assert third.metrics == ["logit[LABEL_3]"]
    assert np.allclose(third.values["logit[LABEL_3]"], beta[..., 3].numpy(), atol=1e-14)
    pair = score(sources, target=("LABEL_3", 5)).values["logit_diff[LABEL_3 vs LABEL_5]"]
    assert np.allclose(pair, (beta[..., 3] - beta[..., 5]).numpy(), atol=1e-14)


def test_given_labels_count(f1):
    scenes = mechvis.data.scenes(n=24, seed=3)
    model = mechvis.load("scenes-vit")
    given = contextual(model, scenes, sources=["L0H1"], labels="given", progress=False)
    swept = mechvis.sweep(model, scenes, edit="mean_positional", labels="given", layers=[0], progress=False)
    assert given.images.equals(swept.images) and given.images.height == 16  # a third is set aside, the same one
    exact = contextual(model, scenes, sources=["L0H1"], labels="given", rules="all_rest", progress=False)
    assert np.allclose(exact.values["logit_diff"][0], swept.values["logit_diff"][1], atol=1e-4)


def zero_shot(f1, bias=None):
    clip = f1.model.bare  # any model will do: the embedding is what its last norm gives at CLS
    generator = torch.Generator().manual_seed(2)
    prompts = torch.nn.functional.normalize(torch.randn(3, 16, generator=generator).double(), dim=-1)
    head = ZeroShotHead(prompts, torch.tensor(20.0).double(), bias)
    parts = replace(f1.model.parts, head=head, class_names=("a", "b", "c"))
    return HookedViT(clip, parts, preprocess=f1.model.preprocess), prompts


@pytest.mark.parametrize("bias", [None, torch.tensor(-3.0).double()])
def test_the_length_of_a_zero_shot_embedding_is_held(f1, bias):
    model, prompts = zero_shot(f1, bias)
    more = {"reference": f1.reference, "progress": False}
    pooled = f1.batched(["L0H1", "L2H0"], "default", sites=["hook_pooled"])
    total, beta = pooled.total["hook_pooled"], pooled.beta["hook_pooled"]
    expected = 20 * (beta @ prompts.T) / total.norm(dim=-1, keepdim=True)
    mine = contextual(model, f1.images, sources=["L0H1", "L2H0"], target="b", **more).values["logit[b]"]
    assert np.allclose(mine, expected[..., 1].numpy(), atol=1e-13)
    # Both halves add up to the logits; all-rest is ablation, which changes the length.
    halves = decompose(model, f1.images, ["L0H1"], "hook_logits", rules="published", reference=f1.reference)
    shares = (halves.beta["hook_logits"] + halves.gamma("hook_logits"))[0]
    assert torch.allclose(shares, model.run(f1.images).output)
    exact = contextual(model, f1.images, sources=["L0H1"], rules="all_rest", **more).values["logit_diff"]
    swept = mechvis.sweep(model, f1.images, edit="mean_positional", layers=[0], **more).values["logit_diff"]
    assert np.allclose(exact[0], swept[1], atol=1e-12)
    assert not np.allclose(
        contextual(model, f1.images, sources=["L0H1"], **more).values["logit_diff"], exact, atol=1e-3
    )


def test_a_direction_is_a_target_for_a_model_without_a_head(bench):
    at = bench("clip-vision")
    direction = torch.randn(8, generator=torch.Generator().manual_seed(4)).double()
    more = {"reference": at.reference, "progress": False}
    found = contextual(at.model, at.images, sources=["L0H1", "L2H3"], target=direction, **more)
    halves = at.batched(["L0H1", "L2H3"], "default", sites=["hook_embedding"])
    unit = direction / direction.norm()
    length = halves.total["hook_embedding"].norm(dim=-1)
    assert np.allclose(found.values["cosine"], (halves.beta["hook_embedding"] @ unit / length).numpy(), atol=1e-14)
    assert found.baseline["cosine"] == pytest.approx(float((halves.total["hook_embedding"] @ unit / length).mean()))
    with pytest.raises(BadData, match=r"this model has no head, so it has no logits: give target=, a direction"):
        contextual(at.model, at.images, **more)
    for wrong in (torch.zeros(8), torch.ones(2, 8), torch.full((8,), torch.nan)):
        with pytest.raises(ShapeMismatch, match="a direction is finite, non-zero"):
            contextual(at.model, at.images, target=wrong, **more)


def test_pairs_bring_the_other_run_and_both_classes(f1):
    clean, corrupt = f1.images, f1.reference[:3]
    labels, others = torch.tensor([1, 2, 3]), torch.tensor([4, 2, 0])
    pairs = Pairs(
        name="made", clean=clean, corrupt=corrupt, ids=("a", "b", "c"), clean_labels=labels, corrupt_labels=others
    )
    found = contextual(f1.model, pairs, edit="patch", rules="all_rest", progress=False).values["logit_diff"]
    run = f1.model.run(corrupt, capture="*hook_z")
    best_other = f1.run.cache["hook_logits"][1].clone()
    best_other[2] = -torch.inf
    contrast = [4, int(best_other.argmax()), 0]  # pairs of one class are told from the best other one
    for row, (layer, head) in enumerate(np.ndindex(3, 4)):
        edit = mechvis.edits.patch(f"blocks.{layer}.attn.hook_z", run.cache, heads=[head])
        moved = f1.run.cache["hook_logits"] - f1.model.run(clean, edits=[edit]).output
        expected = moved[range(3), labels] - moved[range(3), contrast]
        assert np.allclose(found[row], expected.numpy(), atol=1e-12)
    means = contextual(f1.model, pairs, rules="default", progress=False)
    same = contextual(f1.model, clean, reference=corrupt, target=(1, 4), progress=False)
    assert np.allclose(means.values["logit_diff"][:, 0], next(iter(same.values.values()))[:, 0], atol=1e-13)


def test_labels_of_pairs(f1):
    logits = f1.run.cache["hook_logits"]
    pairs = Pairs(name="made", clean=f1.images, corrupt=f1.reference[:3], ids=("a", "b", "c"))
    more = {"sources": ["L0H1"], "progress": False}
    predicted = contextual(f1.model, pairs, **more)
    own = replace(pairs, clean_labels=logits.argmax(1))
    for labels in (None, "given"):
        assert np.allclose(
            contextual(f1.model, own, labels=labels, **more).values["logit_diff"], predicted.values["logit_diff"]
        )
    other = replace(pairs, clean_labels=logits.argmin(1))
    given = contextual(f1.model, other, **more).values["logit_diff"]
    assert not np.allclose(given, predicted.values["logit_diff"])
    again = contextual(f1.model, other, labels="predicted", **more).values["logit_diff"]
    assert np.allclose(again, predicted.values["logit_diff"])
    with pytest.raises(BadData, match="the images have no labels"):
        contextual(f1.model, pairs, labels="given", **more)


def test_groups_of_tokens_are_sources_of_their_own(score, f1):
    found = score(["L0H1"], groups={"left": [1, 4, 7], "right": [2, 3, 5, 6, 8, 9]}, rules="all_rest")
    assert found.table["unit"].to_list() == ["L0H1 left", "L0H1 right", "L0H1 cls"]
    assert found.table["group"].to_list() == ["left", "right", "cls"]
    edit = mechvis.edits.mean_positional("blocks.0.attn.hook_z", f1.means, heads=[1], tokens=[1, 4, 7])
    moved = f1.run.cache["hook_logits"] - f1.model.run(f1.images, edits=[edit]).output
    best = f1.run.cache["hook_logits"].argsort(descending=True)
    expected = moved[range(3), best[:, 0]] - moved[range(3), best[:, 1]]
    assert np.allclose(found.values["logit_diff"][0], expected.numpy(), atol=1e-12)


def test_groups_of_masks():
    images = testing.shortcut_images(8).image_set()
    model = testing.shortcut_vit()
    found = contextual(model, images, sources=["L0H0"], groups="object", edit="zero", progress=False)
    assert found.table["unit"].to_list() == ["L0H0 object", "L0H0 background", "L0H0 cls"]
    # Linear given the patterns: the groups add up to the whole head.
    whole = contextual(model, images, sources=["L0H0"], edit="zero", progress=False)
    assert np.allclose(found.values["logit_diff"].sum(0), whole.values["logit_diff"][0])
    assert abs(found.values["logit_diff"][0]).min() > 0.1


def test_interaction(f1):
    more = {"reference": f1.reference, "progress": False}
    found = interaction(f1.model, f1.images, ["L0H0", "L0H1", "L1MLP"], **more)
    values = found.values["logit_diff"]
    assert found.table["unit"].to_list() == ["joint", "sum", "interaction", "L0H0", "L0H1", "L1MLP"]
    assert np.allclose(values[0] - values[1], values[2]) and np.allclose(values[3:].sum(0), values[1])
    joint = contextual(f1.model, f1.images, sources=[["L0H0", "L0H1", "L1MLP"]], **more)
    assert np.allclose(values[0], joint.values["logit_diff"][0])
    assert abs(values[2]).max() > 1e-3


def test_heads_of_the_last_block_do_not_interact_where_everything_is_linear():
    """In F2 the second layer writes straight into the logits."""
    images, model = testing.shortcut_images(12).image_set(), testing.shortcut_vit()
    for rules in PRESETS:
        found = interaction(model, images, ["L1H0", "L1H1"], rules=rules, edit="zero", progress=False)
        assert abs(found.values["logit_diff"][2]).max() < 1e-12
        assert abs(found.values["logit_diff"][0]).max() > 1


def test_a_head_that_is_dead_has_no_part():
    images, model = testing.shortcut_images(12).image_set(), testing.shortcut_vit()
    for rules in PRESETS:
        found = contextual(model, images, rules=rules, edit="zero", progress=False)
        dead = [found.table["unit"].to_list().index(name) for name in ("L0H1", "L0H2", "L1H3")]
        assert (found.values["logit_diff"][dead] == 0).all()


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"target": "prob"}, BadData, "beta adds up to logits.*probabilities and divergences are no sums of parts"),
        ({"target": 99}, OutOfRange, "class 99 does not exist"),
        ({"target": (1, 1)}, BadData, "target and contrast are the same class"),
        ({"target": 1.5}, BadData, "a target is 'logit_diff'"),
        ({"rules": "publishd"}, UnknownName, "Nearest: published"),
        ({"paths": "indirect"}, UnknownName, "unknown kind of paths 'indirect'"),
        ({"edit": "noise"}, UnknownName, "unknown edit 'noise'"),
        ({"batch_size": 0}, OutOfRange, "batch_size=0: give at least 1 row"),
        ({"edit": "patch", "reference": None}, ShapeMismatch, "edit='patch' needs source= images"),
        ({"sources": ["L0H9"]}, OutOfRange, "index 0 to 3"),
        ({"groups": {"a": [99]}}, OutOfRange, "token 99"),
        ({"labels": "given"}, BadData, "labels='given', but the images have no labels"),
    ],
)
def test_arguments_that_cannot_be(score, more, error, text):
    with pytest.raises(error, match=text):
        score(**more)


def test_images_and_references_that_cannot_be(score, f1):
    with pytest.raises(SplitOverlap, match="must not share images"):
        score(reference=f1.images)
    with pytest.raises(BadData, match="too few to set some aside"):
        contextual(f1.model, f1.images[:2], progress=False)
    with pytest.raises(BadImages):
        contextual(f1.model, torch.full_like(f1.images, torch.nan), edit="zero", progress=False)
    with pytest.raises(BadData, match="at least one image"):
        contextual(f1.model, f1.images[:0], edit="zero", progress=False)
    with pytest.raises(BadData, match="two sources or more"):
        interaction(f1.model, f1.images, ["L0H1"], reference=f1.reference)
    with pytest.raises(BadData, match="interaction takes whole sources"):
        interaction(f1.model, f1.images, ["L0H1", "L0H2"], groups=(1, 1))


def test_a_model_in_train_mode_or_with_broken_weights_is_refused():
    images = testing.tiny_input("vit", n=4, dtype=torch.float64)
    from mechvis.models.load import wrap

    bare = testing.rand_vit()
    model = wrap(bare, preprocess=testing.tiny_preprocess())
    bare.train()
    with pytest.raises(TrainMode):
        contextual(model, images, edit="zero", progress=False)
    bare.eval()
    with torch.no_grad():
        bare.vit.layers[1].mlp.fc1.bias[0] = torch.inf
    with pytest.raises(NotFinite, match="holds NaN or Inf"):
        contextual(model, images, edit="zero", progress=False)


def test_sites_without_a_pair_are_refused(f1):
    with pytest.raises(BadData, match=r"blocks.0.attn.hook_pattern is not split"):
        f1.batched(["L0H1"], "default", sites=["blocks.0.attn.hook_pattern"])
    with pytest.raises(BadData, match=r"no source begins before blocks.0.attn.hook_v"):
        f1.batched(["L1H1", "L2H0"], "default", sites=["blocks.0.attn.hook_v", "hook_logits"])
    with pytest.raises(UnknownSite):
        f1.batched(["L0H1"], "default", sites=["blocks.0.attn.hook_w"])
    found = f1.batched(["L0 token 3"], "default", sites=["hook_embed"])
    assert found.beta["hook_embed"].abs().sum(-1).nonzero()[:, 2].unique().tolist() == [3]
    with pytest.raises(UnknownName, match="unknown decomposed site"):
        found.gamma("hook_logits")
