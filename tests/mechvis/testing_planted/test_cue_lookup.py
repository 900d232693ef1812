"""P1: the wired model solves its task by seven edges and by nothing else, for every family of pairs (A.5, A.6)."""

import numpy as np
import pytest
import torch

from mechvis import edits
from mechvis.errors import BadData, FailedCheck, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing import assert_close
from mechvis.testing.planted import (
    CUE_FAMILIES,
    certify,
    cue_active,
    cue_circuit,
    cue_images,
    cue_lookup,
    cue_pairs,
    cue_scenes,
    edge_effects,
    edge_forward,
    edge_gradients,
    edges_of,
    saturation_net,
    saturation_pairs,
    writes_of,
)

OUTSIDE_HEADS = ("L0H0", "L0H2", "L0H3", "L1H0", "L1H1", "L1H3")


@pytest.fixture(scope="module")
def model():
    return cue_lookup()


@pytest.fixture(scope="module")
def certificate(model):
    return certify(model, [cue_pairs(family, 6, seed=1) for family in CUE_FAMILIES], *cue_images(300, seed=2))


def auroc(scores, positive):
    """Share of (active, other) pairs that are in the right order; ties count half."""
    good = [score for name, score in scores.items() if name in positive]
    bad = [score for name, score in scores.items() if name not in positive]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in good for b in bad]))


# the model


def test_sizes(model):
    assert model.parts.n_tokens == 37 and model.parts.d_model == 40 and len(edges_of(model)) == 110
    assert model.dtype == torch.float64 and model.parity.plain == 0
    assert hasattr(model.parts.ln_final, "eps"), "a real LayerNorm"


def test_it_solves_the_task(model):
    pixels, labels = cue_images(600, seed=3)
    with torch.no_grad():
        logits = model(pixels)
    assert (logits.argmax(-1) == labels).all()
    assert torch.bincount(labels, minlength=3).min() > 160
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    margins = logits.gather(1, labels[:, None])[:, 0] - others
    assert margins.min() > 7.5 and margins.max() < 8.5, "one margin for all images: nothing is nearly right"


def test_the_graph_forward_is_the_forward(model):
    pairs = cue_pairs("all", 8)
    with torch.no_grad():
        assert_close(edge_forward(model, pairs.clean, pairs.corrupt, edges_of(model)), model(pairs.clean), 1e-12)
        assert_close(edge_forward(model, pairs.clean, pairs.corrupt, []), model(pairs.corrupt), 1e-12)


def test_attention_does_what_is_planted(model):
    scenes = cue_scenes(20, seed=4)
    sites = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
    run = model.run(scenes.draw(), capture=sites)
    rows = np.arange(20)
    cued = scenes.places[rows, scenes.cue_colour]
    for site, head, place in ((sites[0], 1, scenes.cue_place), (sites[1], 2, cued)):
        assert (run.cache[site][rows, head, 0, 1 + place] > 0.999).all()


# the certificate


def test_the_certificate_passes(certificate):
    certificate.check()
    assert certificate.accuracy == 1.0
    assert certificate.ratio < 0.05
    assert certificate.strongest("out")[2] / certificate.weakest_active[2] < 0.005, "A.6: 0.057 against 5.0"
    assert len(certificate.families) == len(CUE_FAMILIES) == 7
    assert all(len(one.effects) == 110 for one in certificate.families.values())


@pytest.mark.parametrize("family", CUE_FAMILIES)
def test_exact_patching_scores_one_in_every_family(certificate, family):
    one = certificate.families[f"cue-lookup, {family}"]
    sizes = {edge: float(effect.mean()) for edge, effect in one.effects.items()}
    assert one.pairs.active == cue_active(family)
    if one.pairs.active:
        assert auroc(sizes, one.pairs.active) == 1.0
        assert one.weakest_active[1] > 50 * one.strongest("structural", "out")[1]
    else:
        assert one.weakest_active is None and max(map(abs, sizes.values())) < 0.1


def test_no_single_image_hides_behind_a_mean(certificate):
    """The largest effect of any outside edge on any pair, not only on average."""
    worst = max(
        float(effect.abs().max())
        for one in certificate.families.values()
        for edge, effect in one.effects.items()
        if one.grade(edge) == "out"
    )
    assert worst < 0.05


@pytest.mark.parametrize("family,expected", [("cue", 1.0), ("payload", 1.0), ("all", 1.0), ("positions", None)])
def test_seven_edges_are_enough_and_the_others_are_nothing(certificate, family, expected):
    one = certificate.families[f"cue-lookup, {family}"]
    assert one.faithfulness == (expected if expected is None else pytest.approx(expected, abs=1e-3))
    assert one.circuit_only == pytest.approx(one.clean, abs=0.01)
    assert one.rest_only == pytest.approx(one.corrupt, abs=0.01)


def test_truth_depends_on_the_family(certificate):
    """A.6: exact patching scored against all seven edges is near chance where few of them can be active."""
    scores = {}
    for family in ("cue", "payload", "all"):
        effects = certificate.families[f"cue-lookup, {family}"].effects
        scores[family] = auroc({edge: float(effect.mean().abs()) for edge, effect in effects.items()}, cue_circuit())
    assert scores["cue"] < 0.75 and scores["payload"] < 0.75 and scores["cue"] < scores["all"] < 0.95


def test_distractors_are_loud(certificate):
    norms = certificate.norms
    planted = max(norms["L0H1"], norms["L1H2"])
    assert sum(norms[head] > 2 * planted for head in OUTSIDE_HEADS) >= 4
    assert norms["L0MLP"] > planted and norms["L1MLP"] > planted
    heads = {name: norm for name, norm in norms.items() if "H" in name}
    assert 0.3 <= auroc(heads, {"L0H1", "L1H2"}) <= 0.8, "norms neither find the circuit nor avoid it"


def test_a_distractor_knows_the_answer(model):
    """Head (1, 0) reads the right payload as head (1, 2) does, and writes it where nobody reads."""
    pixels, labels = cue_images(100, seed=5)
    waste = writes_of(model, pixels)["L1H0"][:, 0, 34::2]
    assert (waste.argmax(-1) == labels).all()
    kept = [edge for edge in edges_of(model) if not edge.startswith("L1H0->")]
    changed = edge_forward(model, pixels, pixels.flip(0), kept)
    with torch.no_grad():
        assert (changed - model(pixels)).abs().max() < 0.02


def test_random_sets_of_outside_edges_change_nothing(model):
    pairs = cue_pairs("all", 16, seed=6)
    outside = sorted(set(edges_of(model)) - pairs.circuit)
    generator, base = np.random.default_rng(0), writes_of(model, pairs.corrupt)
    with torch.no_grad():
        before = model(pairs.clean)
    for _ in range(20):
        gone = set(generator.choice(outside, size=generator.integers(1, len(outside)), replace=False))
        after = edge_forward(model, pairs.clean, base, set(edges_of(model)) - gone)
        assert (after.argmax(-1) == pairs.clean_labels).all() and (after - before).abs().max() < 0.05


def test_the_circuit_survives_every_source(model):
    """A.5: per image, right with all outside edges from any of several other images."""
    pixels, labels = cue_images(24, seed=8)
    for shift in range(1, 9):
        logits = edge_forward(model, pixels, pixels.roll(shift, 0), cue_circuit())
        assert (logits.argmax(-1) == labels).all()


def test_gradients_miss_the_saturated_hop(model):
    """A.6: EAP gives the two edges of hop 1 in the cue family 0.027 where the truth is 15.8; EAP-IG finds them."""
    pairs = cue_pairs("cue", 8)
    first = edge_gradients(model, pairs.clean, pairs.corrupt, pairs.metric)
    middle = edge_gradients(model, pairs.clean, pairs.corrupt, pairs.metric, [(k + 0.5) / 10 for k in range(10)])
    for edge in ("embed->L0H1.v", "L0H1->L1H2.q"):
        assert abs(first[edge].mean()) < 0.1 and middle[edge].mean() == pytest.approx(15.9, abs=0.3)


def test_integrated_gradients_miss_edges_that_cancel(model):
    """Positions: k and v each mislead alone (16 logits), together they do nothing, and a path that moves both at once
    sees nothing."""
    pairs = cue_pairs("positions", 8)
    middle = edge_gradients(model, pairs.clean, pairs.corrupt, pairs.metric, [(k + 0.5) / 10 for k in range(10)])
    exact = edge_effects(model, pairs.clean, pairs.corrupt, pairs.metric, sorted(pairs.active))
    for edge in pairs.active:
        assert exact[edge].mean() > 15 and abs(middle[edge].mean()) < 1


@pytest.mark.parametrize("hops", [(0, 0), (3, 1)])
def test_other_places_for_the_hops(hops):
    moved = cue_lookup(hops=hops)
    pairs = cue_pairs("all", 6, hops=hops)
    assert pairs.circuit == cue_circuit(hops) != cue_circuit() and pairs.circuit < set(edges_of(moved))
    base = writes_of(moved, pairs.corrupt)
    clean = pairs.metric(edge_forward(moved, pairs.clean, base, edges_of(moved)))
    alone = pairs.metric(edge_forward(moved, pairs.clean, base, pairs.circuit))
    assert_close(alone, clean, 5e-3)
    with torch.no_grad():
        assert_close(moved(pairs.clean), cue_lookup()(pairs.clean), 1e-12, "the same model with heads permuted")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_other_distractors_pass_too(seed):
    hops = (seed % 4, (seed + 1) % 4)
    families = [cue_pairs(family, 8, seed=seed, hops=hops) for family in CUE_FAMILIES]
    certify(cue_lookup(seed=seed, hops=hops), families, *cue_images(200, seed=seed)).check()


def test_silent_distractors():
    quiet = writes_of(cue_lookup(loudness=0.0), cue_images(3)[0])
    assert all((quiet[head] == 0).all() for head in (*OUTSIDE_HEADS, "L0MLP", "L1MLP"))


# certificates that must fail


def test_a_leaking_model_is_refused(model):
    """The same wires with distractors thirty times as loud: LayerNorm carries them to the output."""
    loud = certify(cue_lookup(loudness=30.0), [cue_pairs("cue", 4)], *cue_images(20))
    with pytest.raises(FailedCheck, match=r"cue-lookup is not what it claims.*should be silent"):
        loud.check()


def test_a_model_without_its_circuit_is_refused(model):
    cut = cue_lookup()
    with torch.no_grad():
        cut.bare.head(0, 1).o.zero_()
    with pytest.raises(FailedCheck, match=r"accuracy 0\.\d+ on 100 images.*should be silent.*ratio inf"):
        certify(cut, [cue_pairs("cue", 4)], *cue_images(100)).check()


def test_a_wrong_truth_is_refused(model):
    from dataclasses import replace

    pairs = cue_pairs("payload", 4)
    wrong = replace(pairs, active=frozenset({"embed->L1H2.k"}))
    with pytest.raises(FailedCheck, match="should be silent"):
        certify(model, [wrong], *cue_images(20)).check()


def test_the_certificate_of_another_fixture():
    pairs = saturation_pairs()
    found = certify(saturation_net(), [pairs], pairs.clean, pairs.clean_labels)
    found.check()
    assert found.families["saturation"].strongest("structural") is None and found.ratio == 0


def test_the_table_and_the_words(certificate):
    table = certificate.table()
    assert table.shape == (770, 8) and set(table["grade"]) == {"active", "structural", "out"}
    active = table.filter(table["grade"] == "active")
    assert len(active) == 3 + 2 + 0 + 2 + 2 + 6 and (active["low"] > 1).all()
    words = str(certificate)
    assert "accuracy 1.000 (n=300)" in words and "strongest edge graded out" in words and words.count("\n") == 10


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda m: cue_lookup(hops=(4, 0)), OutOfRange, r"hops=\(4, 0\): each layer"),
        (lambda m: cue_pairs("colour"), UnknownName, "unknown pair family 'colour'"),
        (lambda m: cue_active("colour"), UnknownName, "unknown pair family 'colour'"),
        (lambda m: cue_images(0), BadData, "n=0: expected at least one image"),
        (lambda m: certify(m, [cue_pairs("uncued", 2)], *cue_images(2)), BadData, "one of them with an active edge"),
        (lambda m: certify(m, [cue_pairs("cue", 2)] * 2, *cue_images(2)), BadData, "different names"),
        (lambda m: certify(m, [cue_pairs("cue", 2)], cue_images(2)[0], [0]), ShapeMismatch, "2 images but 1 labels"),
        (lambda m: certify(saturation_net(), [cue_pairs("cue", 2)], *cue_images(2)), BadData, "the model has no edge"),
    ],
)
def test_refusals(model, call, error, words):
    with pytest.raises(error, match=words):
        call(model)


# the images


def test_images_are_pictures():
    pixels, labels = cue_images(50)
    again, _ = cue_images(50)
    other, _ = cue_images(50, seed=1)
    assert pixels.shape == (50, 3, 24, 24) and pixels.min() >= 0 and pixels.max() <= 1
    assert torch.equal(pixels, again) and not torch.equal(pixels, other) and labels.dtype == torch.int64
    assert pixels.std() > 0.03
    model = cue_lookup()
    drawn = model.preprocess([np.zeros((24, 24, 3), np.uint8), np.full((24, 24, 3), 255, np.uint8)])
    assert drawn.dtype == torch.float64 and drawn.unique().tolist() == [0, 1]


def patches_that_differ(pairs):
    apart = (pairs.clean - pairs.corrupt).abs().unflatten(2, (6, 4)).unflatten(4, (6, 4)).amax((1, 3, 5))
    return (apart > 1e-9).flatten(1)


@pytest.mark.parametrize("family", CUE_FAMILIES)
def test_each_family_changes_what_it_says(family):
    n = 30
    pairs, clean = cue_pairs(family, n, seed=7), cue_scenes(n, seed=7)
    assert torch.equal(pairs.clean, clean.draw()) and torch.equal(pairs.clean_labels, clean.labels)
    differ, rows = patches_that_differ(pairs), torch.arange(n)
    changes = {"cue", "payload", "all"}
    assert (pairs.clean_labels != pairs.corrupt_labels).all() if family in changes else True
    assert (pairs.clean_labels == pairs.corrupt_labels).all() if family not in changes else True
    assert (pairs.contrast != pairs.clean_labels).all()
    cued = torch.from_numpy(clean.places[np.arange(n), clean.cue_colour])
    counts = {"cue": 1, "payload": 1, "uncued": 1, "positions": 2, "cue_position": 2}
    if family in counts:
        assert (differ.sum(1) == counts[family]).all()
    else:
        assert differ.all()
    place = {"cue": torch.from_numpy(clean.cue_place), "payload": cued, "positions": cued}.get(family)
    if place is not None:
        assert differ[rows, place].all()
    if family == "uncued":
        assert not differ[rows, cued].any()


def test_the_other_images_are_other_images():
    pairs = cue_pairs("all", 40)
    assert len({tuple(image.flatten().tolist()) for image in pairs.corrupt}) == 40


def test_brightness_and_texture_are_invisible_to_the_planted_slots(model):
    scenes = cue_scenes(10)
    pixels = scenes.draw()
    with torch.no_grad():
        brighter = model.bare.tokens((pixels + 0.05).clamp(0, 2)) - model.bare.tokens(pixels)
    assert brighter.abs().max() < 1e-12
    pairs = cue_pairs("nuisance", 10)
    with torch.no_grad():
        moved = (model.bare.tokens(pairs.clean) - model.bare.tokens(pairs.corrupt))[:, 1:]
    assert moved[..., 4:22].abs().max() < 0.05 < 1 < moved[..., 34:].abs().max()


def test_every_node_patch_tells_the_same(model):
    """Through the hooked model: replacing the planted heads flips the answer, replacing a loud one does not."""
    pairs = cue_pairs("cue", 16)
    for layer, planted in ((0, 1), (1, 2)):
        site = f"blocks.{layer}.attn.hook_z"
        source = model.run(pairs.corrupt, capture=site).cache
        for head in range(4):
            run = model.run(pairs.clean, edits=[edits.patch(site, source, heads=[head])])
            expected = pairs.corrupt_labels if head == planted else pairs.clean_labels
            assert (run.logits.argmax(-1) == expected).all()
