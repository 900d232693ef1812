"""Positional scores: heads that look at fixed places, heads that look at moving objects, and a loop by hand."""

import pytest
import torch

import mechvis
from circuits.weights import positional_scores, report_heads
from circuits.weights.positional import METRICS, explained, position_pattern
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, SplitOverlap
from mechvis.models.load import wrap


@pytest.fixture(scope="module")
def model():
    return testing.shortcut_vit()


@pytest.fixture(scope="module")
def found(model):
    return positional_scores(model, testing.shortcut_images(120).image_set(), progress=False)


def row(result, unit, metric):
    return next(row for row in result.rows(metric).iter_rows(named=True) if row["unit"] == unit)


def test_a_head_that_looks_at_itself_is_all_position(found):
    for metric in ("pattern mean", "positional stream"):
        assert row(found, "L0H0", metric)["effect"] == pytest.approx(1, abs=1e-6), metric
    assert row(found, "L0H0", "popular keys")["effect"] < 0.1, "no key is popular: everyone looks at another one"


def test_heads_that_look_at_moving_objects_are_not(found):
    for unit in ("L1H0", "L1H1"):
        for metric in METRICS:
            assert row(found, unit, metric)["effect"] < 0.15, metric
    assert row(found, "L1H0", "pattern mean")["n"] == 80, "a third is set aside"


def test_uniform_heads_have_nothing_to_explain(found):
    assert found.rows("pattern mean")["unit"].to_list() == ["L0H0", "L1H0", "L1H1"]


def test_a_head_that_looks_at_one_place_is_position_and_popularity():
    model = wrap(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())
    pixels, _ = testing.hand_wired_images(30)
    found = positional_scores(model, pixels, progress=False)
    for head in range(4):
        for metric in METRICS:
            assert row(found, f"L0H{head}", metric)["effect"] == pytest.approx(1, abs=1e-3), metric


@pytest.mark.parametrize("family", ["vit", "dinov3", "beit"])
def test_equal_to_a_loop_by_hand(family):
    model = wrap(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    reference = testing.tiny_input("vit", n=5, seed=1, dtype=torch.float64)
    pixels = testing.tiny_input("vit", n=4, seed=2, dtype=torch.float64)
    found = positional_scores(model, pixels, reference=reference, batch_size=2, progress=False)
    sites = ["blocks.*.attn.hook_pattern", "blocks.*.ln1.hook_normalized"]
    before = model.run(reference, capture=sites).cache
    now = model.run(pixels, capture=sites).cache
    layout = None if model.parts.layout is None else model.parts.layout((12, 12))
    for layer in range(3):
        mean = before["pattern", layer].mean(0)
        normal = before[f"blocks.{layer}.ln1.hook_normalized"].mean(0)
        through = position_pattern(model, layer, normal, layout)
        popular = mean.mean(1, keepdim=True).expand_as(mean)
        for metric, prediction in zip(METRICS, (mean, through, popular), strict=True):
            for head in range(4):
                for image in range(4):
                    pattern = now["pattern", layer][image, head]
                    rest = (pattern - prediction[head]).square().sum()
                    r2 = 1 - rest / (pattern - 1 / pattern.shape[-1]).square().sum()
                    assert found.values[metric][4 * layer + head, image] == pytest.approx(float(r2), abs=1e-9)


def test_the_pattern_of_a_stream_is_the_models_own():
    model = wrap(testing.tiny("dinov3", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", n=1, dtype=torch.float64)
    cache = model.run(pixels, capture=["blocks.1.attn.hook_pattern", "blocks.1.ln1.hook_normalized"]).cache
    found = position_pattern(model, 1, cache["blocks.1.ln1.hook_normalized"][0], model.parts.layout((12, 12)))
    testing.assert_close(found, cache["pattern", 1][0].detach(), 1e-12)


def test_r2_by_hand():
    uniform = torch.full((1, 1, 4, 4), 0.25)
    identity = torch.eye(4)[None, None]
    assert float(explained(identity, torch.eye(4)[None])) == 1
    assert float(explained(identity, uniform[0])) == 0
    assert float(explained(identity, torch.eye(4).flip(0)[None])) < 0, "worse than uniform"
    assert torch.isnan(explained(uniform, torch.eye(4)[None])).all()


def test_the_split_is_drawn_by_the_seed(model):
    images = testing.shortcut_images(30).image_set()
    one, again, other = (positional_scores(model, images, seed=seed, progress=False) for seed in (0, 0, 1))
    assert one.images["id"].to_list() == again.images["id"].to_list() != other.images["id"].to_list()
    assert one.provenance["positional"]["reference_images"] == 10 and len(one.images) == 20


def test_saves_and_reports(found, tmp_path):
    loaded = mechvis.Result.load(found.save(tmp_path / "positions"))
    page = report_heads(loaded, tmp_path / "report.html").read_text()
    assert "popular keys" in page and "ablating it" not in page


def test_bad_input(model):
    images = testing.shortcut_images(30).image_set()
    with pytest.raises(SplitOverlap, match="reference and evaluated images must not share images: 5 in both"):
        positional_scores(model, images[:10], reference=images[5:15], progress=False)
    with pytest.raises(OutOfRange, match="share is the part of the images that is set aside"):
        positional_scores(model, images, share=1)
    with pytest.raises(BadData, match="1 images leave none"):
        positional_scores(model, images[:1])
    with pytest.raises(BadData, match="undefined on every image for every head"):
        uniform = wrap(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())
        positional_scores(uniform, testing.hand_wired_images(6)[0], layers=[1], progress=False)
