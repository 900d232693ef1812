"""The restarted forward at every site, against its plain twin: a full run with an ordinary edit."""

import pytest
import torch

import mechvis
from circuits.subspace import DasSettings, Place, label_variable, place_of, site_tail, train_das
from circuits.subspace.place import IN_BLOCK
from mechvis import testing
from mechvis.errors import (
    BadData,
    CacheChanged,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    TrainMode,
    UnknownName,
    UnknownSite,
)

FAMILIES = [
    "vit",  # CLS
    "clip-classifier",  # mean over patches
    "beit",  # position bias, LayerScale
    "beit-mean",
    "siglip-classifier",
    "dinov2-registers-classifier",  # LayerScale, registers, two tokens read
]


def load(name):
    return mechvis.load(testing.tiny(name, dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return load(request.param)


@pytest.fixture(scope="module")
def vit():
    return load("vit")


def pixels_for(model, n=5):
    torch.manual_seed(3)
    parts = model.parts
    return torch.randn(n, parts.channels, *parts.image_size, dtype=torch.float64)


def place_in(model, ending, layer):
    """Site, tokens, head."""
    layer = layer % len(model.parts.blocks)
    reads = model.parts.reads
    last = layer == len(model.parts.blocks) - 1 and ending != "hook_resid_pre"
    tokens = [reads[0]] if isinstance(reads, tuple) and last else [0, 2]
    return f"blocks.{layer}.{ending}", tokens, 1 if ending == "attn.hook_z" else None


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("ending", IN_BLOCK)
def test_equals_a_full_run_with_an_edit(model, ending, layer):
    site, tokens, head = place_in(model, ending, layer)
    pixels = pixels_for(model)
    tail = site_tail(model, pixels, site, tokens=tokens, head=head, batch_size=2)
    testing.assert_close(tail.clean, model.run(pixels).logits, 1e-12, "clean")
    images = torch.tensor([4, 0, 2])
    rows = torch.randn(3, tail.width, dtype=torch.float64)
    twin = model.run(pixels[images], edits=[tail.place.edit(lambda h: rows)]).logits
    testing.assert_close(tail.logits_of(rows, images), twin, 1e-12, site)
    assert not torch.equal(twin, tail.clean[images])
    # What the diagnostics look at goes the same way.
    for of in (tail.reads_of, tail.units_of):
        seen = of(rows, images)
        assert seen.shape[0] == 3 and torch.isfinite(seen).all()
        assert not torch.equal(seen, of(tail.h[images], images))


def test_pooled_row(model):
    pixels = pixels_for(model)
    tail = site_tail(model, pixels, "hook_pooled")
    testing.assert_close(tail.clean, model.run(pixels).logits, 1e-12)
    rows = torch.randn(5, tail.width, dtype=torch.float64)
    twin = model.run(pixels, edits=[tail.place.edit(lambda h: rows)]).logits
    testing.assert_close(tail.logits_of(rows, torch.arange(5)), twin, 1e-12)


@pytest.mark.parametrize("ending", ["attn.hook_z", "hook_resid_post", "mlp.hook_post"])
def test_gradient_equals_that_of_the_full_run(vit, ending):
    site, tokens, head = place_in(vit, ending, 0)
    pixels = pixels_for(vit)
    tail = site_tail(vit, pixels, site, tokens=tokens, head=head)
    rows = torch.randn(5, tail.width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, tail.clean.shape[1], dtype=torch.float64)
    (ours,) = torch.autograd.grad((tail.logits_of(rows, torch.arange(5)) * weights).sum(), rows)
    run = vit.run(pixels, edits=[tail.place.edit(lambda h: rows)], grad=True)
    (full,) = torch.autograd.grad((run.logits * weights).sum(), rows)
    testing.assert_close(ours, full, 1e-10)


def test_reads_and_units_are_those_of_the_run(vit):
    pixels = pixels_for(vit)
    tail = site_tail(vit, pixels, "blocks.0.hook_resid_mid", tokens=[0, 2])
    n_layers = len(vit.parts.blocks)
    names = ["blocks.0.ln2.hook_normalized"] + [f"blocks.{i}.ln1.hook_normalized" for i in range(1, n_layers)]
    cache = vit.run(pixels, capture=[*names, "blocks.*.mlp.hook_pre"]).cache
    every = torch.arange(5)
    testing.assert_close(tail.reads_of(tail.h, every), torch.cat([cache[name].flatten(1) for name in names], 1), 1e-12)
    pre = [cache[f"blocks.{i}.mlp.hook_pre"] for i in range(n_layers)]
    pre = [x[:, [0, 2]] for x in pre[:-1]] + [pre[-1][:, [0]]]
    testing.assert_close(tail.units_of(tail.h, every), torch.cat([x.flatten(1) for x in pre], 1), 1e-12)


def test_linear_reads(vit):
    pixels = pixels_for(vit)
    z = site_tail(vit, pixels, "blocks.0.attn.hook_z", head=1)
    testing.assert_close(z.read, vit.blocks[0].attn.W_O[1].detach(), 0)
    post = site_tail(vit, pixels, "blocks.1.mlp.hook_post", tokens="cls")
    testing.assert_close(post.read, vit.blocks[1].mlp.W_out.detach(), 0)
    assert site_tail(vit, pixels, "blocks.0.attn.hook_z", head=1, tokens=[0, 1]).read is None
    assert site_tail(vit, pixels, "blocks.0.hook_resid_post").read is None


def test_the_model_is_left_alone(vit):
    pixels = pixels_for(vit, 8)
    with testing.assert_untouched(vit):
        tail = site_tail(vit, pixels, "blocks.0.hook_resid_post")
        labels = torch.arange(8) % 2
        train_das(tail, label_variable(labels), torch.arange(8), k=2, settings=DasSettings(steps=3, batch=4))
    assert all(p.requires_grad and p.grad is None for p in vit.bare.parameters())


def test_train_mode_is_refused(vit):
    tail = site_tail(vit, pixels_for(vit), "blocks.0.hook_resid_post")
    vit.bare.train()
    try:
        with pytest.raises(TrainMode, match="eval"):
            train_das(tail, label_variable(torch.arange(5) % 2), torch.arange(5), k=1)
    finally:
        vit.bare.eval()


def test_weights_that_changed_meanwhile_are_noticed():
    model = load("vit")
    tail = site_tail(model, pixels_for(model), "blocks.0.hook_resid_post")
    with torch.no_grad():
        next(model.bare.parameters()).mul_(2)
    with pytest.raises(CacheChanged, match="Make the tail again"):
        train_das(tail, label_variable(torch.arange(5) % 2), torch.arange(5), k=1)


def test_images_of_another_size_are_refused():
    model = load("dinov2-classifier")
    pixels = torch.randn(2, 3, 15, 15, dtype=torch.float64)
    assert model.run(pixels).logits.shape[0] == 2, "the model takes them"
    with pytest.raises(ShapeMismatch, match=r"the model's own \(12, 12\)"):
        site_tail(model, pixels, "blocks.0.hook_resid_post", tokens="cls")


def test_places(vit):
    assert place_of(vit, "blocks.0.hook_resid_post").tokens == (0,)
    n = vit.parts.n_tokens
    assert place_of(vit, "blocks.0.hook_resid_post", tokens="patches").tokens == tuple(range(1, n))
    assert place_of(vit, "blocks.0.hook_resid_post", tokens="all").tokens == tuple(range(n))
    assert place_of(vit, "blocks.0.attn.hook_z", tokens=3, head=1).name == "blocks.0.attn.hook_z, head 1, token 3"
    group = place_of(vit, "blocks.0.attn.hook_z", tokens=[1, 3], head=1)
    x = torch.randn(2, n, vit.cfg.n_heads, vit.cfg.d_head)
    rows = group.take(x)
    assert torch.equal(rows, torch.cat([x[:, 1, 1], x[:, 3, 1]], 1))
    changed = group.put(x, rows + 1)
    difference = changed - x
    assert torch.allclose(difference[:, [1, 3], 1], torch.ones(()), atol=1e-6)
    difference[:, [1, 3], 1] = 0
    assert not difference.any()


@pytest.mark.parametrize(
    ("site", "more", "error", "text"),
    [
        ("blocks.0.hook_resid_pots", {}, UnknownSite, "hook_resid_post"),
        ("blocks.0.attn.hook_q", {}, UnknownName, "attn.hook_z"),
        ("blocks.0.attn.hook_z", {}, BadData, "needs head="),
        ("blocks.0.hook_resid_post", {"head": 1}, BadData, "has no head axis"),
        ("blocks.0.attn.hook_z", {"head": 9}, OutOfRange, "head 9 does not exist"),
        ("blocks.0.hook_resid_post", {"tokens": [99]}, OutOfRange, "token 99 does not exist"),
        ("blocks.0.hook_resid_post", {"tokens": []}, BadData, "at least one token"),
        ("blocks.0.hook_resid_post", {"tokens": "registers"}, BadData, "no registers token"),
        ("blocks.0.hook_resid_post", {"tokens": "patch"}, UnknownName, "patches"),
        ("hook_pooled", {"tokens": [0]}, BadData, "no token axis"),
    ],
)
def test_places_that_do_not_exist(vit, site, more, error, text):
    with pytest.raises(error, match=text):
        place_of(vit, site, **more)


def test_a_token_that_nobody_reads_any_more_is_refused(vit):
    with pytest.raises(BadData, match="token 3 is not read"):
        site_tail(vit, pixels_for(vit), f"blocks.{len(vit.parts.blocks) - 1}.hook_resid_mid", tokens=[3])


def test_a_model_without_a_head_is_refused():
    with pytest.raises(BadData, match="no head"):
        site_tail(load("dinov2"), torch.zeros(1, 3, 8, 8), "blocks.0.hook_resid_post")


def test_an_edit_of_another_shape_is_refused(vit):
    pixels = pixels_for(vit)
    place = place_of(vit, "blocks.0.hook_resid_post")
    with pytest.raises(ShapeMismatch, match="returned"):
        vit.run(pixels, edits=[place.edit(lambda h: h[:, :2])])


def test_nan_images_are_refused(vit):
    pixels = pixels_for(vit)
    pixels[1] = float("nan")
    with pytest.raises((NotFinite, ValueError), match="NaN"):
        site_tail(vit, pixels, "blocks.0.hook_resid_post")


def test_place_survives_json():
    place = Place(site="blocks.0.attn.hook_z", tokens=(0, 2), head=1)
    assert Place(**place.describe()) == place


def test_a_zero_shot_head():
    clip = mechvis.load("scenes-clip")
    model = clip.classifier(["a striped background", "a dotted background"])
    pixels = mechvis.data.scenes(4, seed=5).pixels
    for site in ("hook_pooled", "blocks.3.hook_resid_post", "blocks.2.mlp.hook_post"):
        tail = site_tail(model, pixels, site)
        testing.assert_close(tail.clean, model.run(pixels).logits, 1e-5, site)
