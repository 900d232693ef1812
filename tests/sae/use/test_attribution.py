"""Attribution to logits: exact where the path is linear, against difference quotients and runs elsewhere; read-outs."""

import numpy as np
import pytest
import torch

import mechvis
import sae
from mechvis import edits, testing
from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch, UnknownName
from mechvis.metrics import classes_of
from mechvis.testing import assert_close
from sae.attribution import (
    LatentAttribution,
    ReadOutProjection,
    latent_attribution,
    projected_directions,
    read_out_projection,
)
from sae.attribution.direct import stream_directions
from sae.splicing import ablate, scale, splice, splice_parts

QUIET = {"progress": False, "labels": "predicted"}
MIDDLE, LAST = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=6, dtype=torch.float64)


def a_dictionary(model, pixels, site, n=20, **more):
    x = model.run(pixels, capture=[site]).cache[site]
    return sae.start(sae.TopK(n_latents=n, k=6, **more), {site: x.reshape(-1, 16)}, reads=site)


def values_of(model, pixels, made):
    clean = model.run(pixels).logits
    target, contrast = classes_of(clean, None)
    pick = lambda logits: (logits.gather(1, target[:, None]) - logits.gather(1, contrast[:, None]))[:, 0]  # noqa: E731
    return pick(clean) - pick(model.run(pixels, edits=made).logits)


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
@pytest.mark.parametrize("kind", ["mean_square", "layer_norm"])
@pytest.mark.parametrize("site", [LAST, "blocks.2.hook_mlp_out", "blocks.2.attn.hook_z"])
def test_the_direct_path_is_exact_where_nothing_else_is_between(model, pixels, site, kind):
    """At the last writes, the norm frozen, ablating a latent changes the logits by just what the direct path says (for
    z with the MLP held as well)."""
    d = a_dictionary(model, pixels, site, normalise=kind)
    found = latent_attribution(splice(model, d), pixels, exact=0, **QUIET)
    held = ["ln_final.hook_scale", *(["blocks.2.hook_mlp_out"] if site.endswith("hook_z") else [])]
    frozen = [edits.freeze(name, model.run(pixels, capture=[name]).cache) for name in held]
    order = found.arrays["latent"].tolist()
    for latent in found.top(5, by="direct")["latent"].to_list():
        exact = values_of(model, pixels, [ablate(d, latent), *frozen])
        assert exact.abs().max() > 1e-6
        assert_close(torch.from_numpy(found.arrays["direct"][order.index(latent)]), exact, 1e-9)


@pytest.mark.parametrize("site", [MIDDLE, "blocks.0.attn.hook_z"])
def test_the_gradient_is_the_slope_along_each_latent(model, pixels, site):
    d = a_dictionary(model, pixels, site)
    found = latent_attribution(splice(model, d), pixels, exact=0, **QUIET)
    order = found.arrays["latent"].tolist()
    for latent in order[:4]:
        step = 1e-5
        slope = (values_of(model, pixels, [scale(d, latent, 1 - step)]) / step).numpy()
        far = np.abs(found.arrays["gradient"][order.index(latent)] - slope).max()
        assert far < 1e-3 * np.abs(slope).max() + 1e-6
    error = splice(model, d).run(pixels, edits=[edits.scale(f"{site}.hook_error", 1 - 1e-5)]).logits
    clean = model.run(pixels).logits
    target, contrast = classes_of(clean, None)
    change = (clean - error).gather(1, target[:, None]) - (clean - error).gather(1, contrast[:, None])
    assert np.abs(found.arrays["error"][0] - change[:, 0].numpy() / 1e-5).max() < 1e-4


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_exact_effects_are_ablations_and_agreement_is_told(model, pixels, tmp_path):
    d = a_dictionary(model, pixels, MIDDLE)
    found = latent_attribution(splice(model, d), pixels, exact=6, **QUIET)
    for latent in found.arrays["measured"].tolist()[:4]:
        mean = float(values_of(model, pixels, [ablate(d, latent)]).mean())
        row = found.pick(latent=latent)
        assert abs(row["exact"] - mean) < 1e-10 and row["exact_low"] <= row["exact"] <= row["exact_high"]
    assert found.facts["measured"] == 12 and found.table["exact"].null_count() == found.table.height - 12
    assert found.facts["gradient_spearman"] > 0.7
    assert "correlate with the truth by" in found.caveats[0]
    again = LatentAttribution.load(found.save(tmp_path / "found"))
    assert again.table.equals(found.table) and again.top(3)["latent"].to_list() == found.top(3)["latent"].to_list()
    assert len(found.figures()) == 1 and found.report(tmp_path / "found.html").exists()
    assert found.top(2, by="exact").height == 2
    with pytest.raises(UnknownName, match="estimate 'code'"):
        found.top(3, by="code")


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_attribution_patching_with_corrupt_images(model, pixels):
    """Small differences between the halves: first order is the truth."""
    d = a_dictionary(model, pixels, MIDDLE)
    generator = torch.Generator().manual_seed(0)
    corrupt = pixels + 1e-5 * torch.randn(pixels.shape, generator=generator).double()
    found = latent_attribution(splice(model, d), pixels, corrupt=corrupt, exact=20, **QUIET)
    measured = found.arrays["measured"].tolist()
    rows = [found.arrays["latent"].tolist().index(latent) for latent in measured]
    exact = found.arrays["exact"]
    assert np.abs(found.arrays["gradient"][rows] - exact).max() < 1e-3 * np.abs(exact).max()
    assert found.facts["gradient_spearman"] > 0.99 and found.facts["instead"] == "latents of the corrupt image"


def test_a_transcoder_and_a_zero_shot_head(model, pixels):
    reads, writes = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    cache = model.run(pixels, capture=[reads, writes]).cache
    rows = {name: value.flatten(0, 1) for name, value in cache.items()}
    d = sae.start(sae.TopK(n_latents=20, k=6), rows, reads=reads, writes=writes)
    found = latent_attribution(splice(model, d), pixels, exact=3, **QUIET)
    assert found.table["direct"].abs().max() > 0 and found.facts["measured"] == 6
    bare = testing.tiny("clip", dtype=torch.float64)
    clip = mechvis.load(bare, preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    shown, head = testing.tiny_input("clip", n=4, dtype=torch.float64), clip.classifier(["a", "b", "c"])
    found = latent_attribution(splice(head, a_dictionary(head, shown, MIDDLE)), shown, exact=3, **QUIET)
    assert found.facts["measured"] == 6


def test_what_cannot_be_attributed(model, pixels):
    d = a_dictionary(model, pixels, MIDDLE)
    kept, run = splice(model, d), lambda m=None, **more: latent_attribution(m or kept, pixels, **{**QUIET, **more})
    cases = [
        (lambda: run(model), BadData, "say which dictionary's latents"),
        (lambda: run(splice(model, d, error=False)), RefusedMethod, "without its error term"),
        (lambda: run(metric="kl"), RefusedMethod, "slope is exactly zero"),
        (lambda: run(metric="accuracy"), RefusedMethod, "'accuracy' has no slope"),
        (lambda: run(corrupt=pixels[:2]), ShapeMismatch, "2 corrupt images for 6"),
        (lambda: run(labels="given"), BadData, "the images have no labels"),
        (lambda: run(exact=-1), OutOfRange, "exact=-1"),
        (lambda: run(splice(model, a_dictionary(model, pixels, "hook_embed"))), RefusedMethod, "is in no block"),
        (lambda: latent_attribution(kept, pixels[:0], **QUIET), BadData, "at least one image"),
    ]  # fmt: skip
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


def test_read_outs_with_the_norm_frozen(model, pixels, tmp_path):
    """The projection against runs of the read-out with the scale held."""
    d = a_dictionary(model, pixels, MIDDLE)
    mean = model.run(pixels, capture=[LAST]).cache[LAST].mean(0, keepdim=True)
    scales = model.run(mean, start_at_layer=3, capture=["ln_final.hook_scale"])
    directions = d.directions.detach()[:4]
    found = projected_directions(model, directions, pixels)
    for one, direction in zip(found, directions, strict=True):
        held = edits.freeze("ln_final.hook_scale", scales.cache)
        moved = model.run(mean + direction, start_at_layer=3, edits=[held])
        assert_close(one, (moved.logits - scales.logits)[0], 1e-9)
    record = read_out_projection(model, d, pixels, top=2)
    assert record.arrays["scores"].shape == (20, len(model.parts.class_names)) and record.table.height == 20
    assert_close(torch.from_numpy(record.arrays["scores"][:4]), found - found.mean(1, keepdim=True), 1e-9)
    best = int(record.arrays["scores"][7].argmax())
    assert record.table["up"][7][0] == model.parts.class_names[best]
    assert ReadOutProjection.load(record.save(tmp_path / "read")).table.equals(record.table)


def test_read_outs_by_texts(planted_clip, planted_dictionary):
    names = [f"concept {i}" for i in range(10)]
    d = planted_dictionary(writes=[(i + 3) % 10 for i in range(10)])
    images = planted_clip.images([[i] for i in range(10)])
    record = read_out_projection(planted_clip, d, images, texts=names, top=1)
    assert [up[0] for up in record.table["up"]] == [names[(i + 3) % 10] for i in range(10)]
    assert (record.table["above_random"] > 1).all()
    for given, text in (({}, "CLIP needs texts="), ({"texts": ["a"]}, "CLIP needs texts=")):
        with pytest.raises(BadData, match=text):
            read_out_projection(planted_clip, d, images, **given)
    with pytest.raises(BadData, match="there is none"):
        projected_directions(planted_clip.vision, d.directions, images[:0])
    with pytest.raises(OutOfRange, match="at least 1 label"):
        read_out_projection(planted_clip, d, images, texts=names, top=0)


def test_directions_in_the_stream(model, pixels):
    z = splice_parts(model, a_dictionary(model, pixels, "blocks.1.attn.hook_z"))
    by_hand = z.directions().detach() @ model.blocks[1].attn.W_O.flatten(0, 1)
    assert_close(stream_directions(model, z).detach(), by_hand.detach(), 1e-12)
    q = splice_parts(model, a_dictionary(model, pixels, "blocks.1.ln1.hook_normalized"))
    with pytest.raises(RefusedMethod, match="is not added to the residual stream"):
        stream_directions(model, q)
    with pytest.raises(BadData, match="texts= are for a CLIP model"):
        read_out_projection(model, a_dictionary(model, pixels, MIDDLE), pixels, texts=["a", "b"])
