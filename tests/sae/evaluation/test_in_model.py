"""Reconstructions in the model: what is replaced, recovered shares, and the defects of others that are about it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mechvis
import sae
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch, UnknownName, UnknownSite
from sae import baselines
from sae.evaluation.place import one_per_image, place_of
from sae.evaluation.recovered import Clean, Outputs, clean_pass, replaced, share, shares

SITE = "blocks.2.hook_resid_post"
Z = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def images():
    return mechvis.data.scenes(12, seed=801)


@pytest.fixture(scope="module")
def clean(model, images):
    return clean_pass(model, images, [SITE, Z])


# -- what is taken and put back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [128, 32])
def test_heads_are_flattened_and_put_back_in_order(model, width):
    """D4: distinct values per (head, channel) survive the round trip (SAELens #164, #165, #695; SAEDashboard #13)."""
    place = place_of(model, Z, width)
    x = torch.arange(2 * 65 * 4 * 32).reshape(2, 65, 4, 32).float()
    rows = place.take(x)
    assert rows.shape == (2, 65 * 128 // width, width)
    assert torch.equal(place.put(torch.zeros_like(x), rows), x)
    if width == 128:  # head after head, as the store writes them
        assert torch.equal(rows[0, 3, 32:64], x[0, 3, 1])
    else:  # heads of a token are neighbours
        assert torch.equal(rows[0, 4 * 3 + 1], x[0, 3, 1])


def test_rows_are_those_that_the_store_writes(model, images, tmp_path):
    store = mechvis.harvest(model, images, Z, out=tmp_path / "s", progress=False)
    batch = next(store.batches(Z, size=65 * len(images), seed=0, epochs=1))
    order = (batch.image * 65 + batch.token).argsort()
    x = place_of(model, Z, 128).take(model.run(images, capture=Z).cache[Z])
    torch.testing.assert_close(batch.activations[Z][order], x.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("head", "tokens", "changed"),
    [
        (1, "all", np.s_[:, :, 1]),
        (-1, "cls", np.s_[:, :1, 3]),
        (None, "patches", np.s_[:, 1:]),
        (2, (5, 7), np.s_[:, [5, 7], 2]),
    ],
)
def test_only_what_is_named_is_touched(model, clean, head, tokens, changed):
    """D3: one head was asked for, all were ablated (SAELens #163): the difference mask is exactly the slice."""
    x = clean.activations[Z]
    place = place_of(model, Z, 32 if head is not None else 128, head=head, tokens=tokens)
    new = place.put(x, torch.full_like(place.take(x), 7.0))
    expected = torch.zeros_like(x, dtype=torch.bool)
    expected[changed] = True
    assert torch.equal(new != x, expected)
    seen = model.run(clean.stream, start_at_layer=clean.layer, edits=[mechvis.edits.call(Z, lambda a: new)], capture=Z)
    assert torch.equal(seen.cache[Z], new)


def test_an_ablated_head_is_the_sweeps_ablated_head(model, images, clean):
    place = place_of(model, Z, 32, head=2)
    x = clean.activations[Z]
    ours, _ = replaced(model, clean, {Z: place.put(x, torch.zeros_like(place.take(x)))})
    theirs = model.run(images, edits=mechvis.edits.zero(Z, heads=[2])).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    all_heads = model.run(images, edits=mechvis.edits.zero(Z)).logits
    assert not torch.allclose(ours, all_heads, atol=1e-2)


def test_types_follow_the_rows(model):
    assert place_of(model, SITE, 128).types(65) == ["cls", *["patch"] * 64]
    assert place_of(model, SITE, 128, tokens="patches").types(65) == ["patch"] * 64
    assert place_of(model, Z, 32).types(65)[:5] == ["cls"] * 4 + ["patch"]
    pooled = place_of(model, "hook_pooled", 128)
    assert pooled.types(1) == ["pooled"] and pooled.take(torch.ones(3, 128)).shape == (3, 1, 128)
    assert pooled.put(torch.ones(3, 128), torch.zeros(3, 1, 128)).shape == (3, 128)


def test_bad_places_are_refused(model):
    for error, told, arguments in [
        (UnknownSite, "no site matches", ("blocks.2.hook_resid", 128)),
        (ShapeMismatch, "width 64 at blocks.2.hook_resid_post, where rows are 128 wide", (SITE, 64)),
        (ShapeMismatch, "rows are 128 or 32 wide", (Z, 64)),
        (RefusedMethod, "attention weights", ("blocks.1.attn.hook_pattern", 65)),
    ]:
        with pytest.raises(error, match=told):
            place_of(model, *arguments)
    with pytest.raises(BadData, match="has no heads"):
        place_of(model, SITE, 128, head=1)
    with pytest.raises(OutOfRange, match="head 4 does not exist"):
        place_of(model, Z, 32, head=4)
    with pytest.raises(UnknownName, match="tokens"):
        place_of(model, SITE, 128, tokens="patch")
    with pytest.raises(BadData, match="selects nothing"):
        place_of(model, SITE, 128, tokens=[])
    with pytest.raises(BadData, match="no token axis"):
        place_of(model, "hook_pooled", 128, tokens="cls")
    with pytest.raises(BadData, match="this model has none; its prefix is"):
        place_of(model, SITE, 128, tokens="registers").take(torch.ones(1, 65, 128))
    with pytest.raises(OutOfRange, match="token 70 does not exist"):
        place_of(model, SITE, 128, tokens=[70]).take(torch.ones(1, 65, 128))
    with pytest.raises(UnknownName, match="pool"):
        one_per_image(torch.ones(1, 2, 3), "median")


# -- what the model does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [SITE, Z, "hook_embed", "hook_pooled", "blocks.0.hook_mlp_out"])
def test_going_on_from_the_block_equals_a_run_from_the_pixels(model, images, site):
    """The plain twin: the whole forward pass with the edit."""
    batch = clean_pass(model, images, [site])
    new = batch.activations[site] * 0.5
    logits, embedding = replaced(model, batch, {site: new})
    whole = model.run(images, edits=mechvis.edits.scale(site, 0.5), capture="hook_pooled")
    torch.testing.assert_close(logits, whole.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedding, whole.cache["hook_pooled"], atol=1e-4, rtol=1e-4)


def test_writing_back_what_was_read_changes_nothing_and_does_not_warn(model, clean):
    logits, embedding = replaced(model, clean, {SITE: clean.activations[SITE]})
    torch.testing.assert_close(logits, clean.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding, clean.embedding, atol=1e-5, rtol=1e-5)


def test_a_dictionary_reads_the_activation_itself(model, images):
    """D5: an input hook behind the subtraction of a bias saw other numbers (SAELens #232)."""
    rows = model.run(images, capture=SITE).cache[SITE]
    seen = []
    d = baselines.pca({SITE: rows.flatten(0, 1)}, 8)
    encode = d.architecture.encode

    class Spy(type(d.architecture)):
        def encode(self, d, x):
            seen.append(x.clone())
            return encode(d, x)

    d.architecture = Spy(**{k: v for k, v in d.architecture.to_json().items() if k != "name"})
    evaluated = sae.evaluate(
        {"d": d},
        model,
        images,
        metrics=("recovered",),
        baselines=(),
        reference=mechvis.data.scenes(4, seed=802),
        progress=False,
    )
    assert evaluated.of("d")["l0"] == 8
    assert any(x.shape == rows.flatten(0, 1).shape and torch.equal(x, rows.flatten(0, 1)) for x in seen)
    assert float(d.b_dec.detach().abs().max()) > 0.1  # there is a bias that could have been taken off


def test_clip_loss_has_the_logit_scale(images):
    """Prisma's zero-shot loss lacks it: ln(1000) - 6.762 = 0.146 nats were all that could be lost."""
    clip = mechvis.load("scenes-clip")
    classifier = clip.classifier(images.class_names)
    labels = images.label_tensor
    batch = clean_pass(classifier, images, [SITE])
    found = Outputs()
    found.add(batch.logits, batch.embedding, batch, labels)
    logits = clip.similarity(images, [f"a photo of a {name}" for name in images.class_names])
    expected = F.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(found.column("loss"), expected.numpy(force=True), atol=1e-4)
    flat = F.cross_entropy(logits / clip.logit_scale, labels)
    flat, right = float(flat.detach()), float(expected.detach().mean())
    assert abs(flat - np.log(8)) < 0.5 and abs(right - flat) > 0.3
    np.testing.assert_allclose(found.column("cosine"), 1)


def test_shares_of_known_numbers():
    def filled(loss, kl):
        return Outputs(loss=[np.array(loss)], kl=[np.array(kl)])

    found = shares(filled([1.0, 1.0], [0.5, 0.5]), filled([0.0, 0.0], [0.0, 0.0]), filled([4.0, 2.0], [2.0, 2.0]))
    assert found["loss"][0] == pytest.approx(2 / 3) and found["kl"][0] == pytest.approx(0.75)


def test_ratio_of_means_not_mean_of_ratios():
    ablated, with_dictionary, without = np.array([10.0, 0.2]), np.array([1.0, 0.19]), np.zeros(2)
    assert share(ablated, with_dictionary, without)[0] == pytest.approx(1 - 1.19 / 10.2)
    assert np.mean((ablated - with_dictionary) / ablated) == pytest.approx(0.475)


def test_a_share_of_nothing_is_empty():
    noise = np.random.default_rng(0).normal(size=50)
    assert np.isnan(share(noise, noise, np.roll(noise, 1))).all()
    assert not np.isnan(share(noise + 5, noise + 1, noise)).any()


def test_outputs_refuse_what_does_not_belong_together(clean):
    out = Outputs()
    with pytest.raises(ShapeMismatch, match="same images"):
        out.add(clean.logits, clean.embedding, clean, torch.zeros(3, dtype=torch.long))
    with pytest.raises(NotFinite, match="output holds NaN"):
        out.add(clean.logits * torch.nan, clean.embedding, clean, None)
    assert isinstance(clean, Clean) and clean.layer == 1
