"""Roles over images: the heads of the shortcut model, the planted head, the bundled models, and what is refused."""

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from circuits.weights import head_roles, report_heads, top_roles
from circuits.weights.patterns import each_pattern, layer_patterns
from mechvis import Result, testing
from mechvis.errors import BadData, OutOfRange, ResultMismatch, ShapeMismatch, UnknownName
from mechvis.models.load import wrap

EXPECTED = {
    "L0H0": "self",
    "L0H1": "diffuse",
    "L0H2": "diffuse",
    "L0H3": "diffuse",
    "L1H0": "object",
    "L1H1": "background",
    "L1H2": "diffuse",
    "L1H3": "diffuse",
}


@pytest.fixture(scope="module")
def model():
    return testing.shortcut_vit()


@pytest.fixture(scope="module")
def images():
    return testing.shortcut_images(80).image_set()


@pytest.fixture(scope="module")
def roles(model, images):
    return head_roles(model, images, progress=False)


def named(roles, **more):
    table = top_roles(roles, **more)
    return dict(zip(table["unit"], table["role"], strict=True))


@pytest.mark.parametrize("queries", ["read", "patch", "all"])
def test_heads_of_the_shortcut_model(model, images, queries):
    roles = head_roles(model, images, queries=queries, progress=False)
    assert named(roles) == EXPECTED
    rows = {row["unit"]: row for row in top_roles(roles).iter_rows(named=True)}
    assert rows["L1H0"]["score"] == pytest.approx(1, abs=1e-6)
    assert rows["L1H0"]["control"] == pytest.approx(6 / 16, abs=0.02), "six random patches of sixteen are object"
    assert rows["L1H1"]["control"] == pytest.approx(10 / 16, abs=0.02)
    assert rows["L0H0"]["score"] == pytest.approx(1, abs=1e-6)
    assert rows["L0H0"]["control"] == pytest.approx(1 / 16, abs=1e-6)
    assert rows["L1H0"]["low"] > 0.95 and rows["L1H0"]["n"] == 80


def test_scores_are_those_of_the_patterns(model, images, roles):
    pixels = testing.shortcut_images(80).pixels
    pattern = model.run(pixels, capture=["blocks.1.attn.hook_pattern"]).cache["pattern", 1]
    own = testing.shortcut_images(80).masks.flatten(1).double()
    score = (pattern[:, :, 0, 1:] * own[:, None]).sum(-1)  # [image head]
    rows = roles.rows("object").filter(pl.col("layer") == 1)
    np.testing.assert_allclose(rows["score"], score.mean(0), atol=1e-9)
    loop = np.zeros((80, 4))
    for image in range(80):
        rest = np.delete(own.numpy(), image, axis=0)
        row = pattern[image, :, 0, 1:].numpy()
        shift = row.sum(-1) * (own[image].mean().item() - rest.mean())
        loop[image] = score[image].numpy() - (row @ rest.mean(0) + shift)
    np.testing.assert_allclose(roles.values["object"][4:], np.where(abs(loop) < 1e-6, 0, loop).T, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 80])
def test_batches_change_nothing(model, images, roles, batch_size):
    again = head_roles(model, images, batch_size=batch_size, progress=False)
    assert again.metrics == roles.metrics
    for metric in roles.metrics:
        np.testing.assert_allclose(again.values[metric], roles.values[metric], atol=1e-9, err_msg=metric)


def test_some_layers(model, images, roles):
    again = head_roles(model, images, layers=[1], progress=False)
    assert again.rows("object")["unit"].to_list() == ["L1H0", "L1H1", "L1H2", "L1H3"]
    np.testing.assert_allclose(again.values["object"], roles.values["object"][4:], atol=1e-12)


def test_the_result_saves_loads_and_draws(roles, tmp_path):
    loaded = Result.load(roles.save(tmp_path / "roles"))
    assert top_roles(loaded).equals(top_roles(roles))
    assert loaded.provenance["roles"]["queries"] == "read"
    page = report_heads(loaded, tmp_path / "report.html").read_text()
    assert "8 of 8 heads have a role" in page and "other images&#39; masks" in page
    assert "ablating it" not in page, "nothing was ablated"
    assert roles.plot("object") is not None


def test_pixels_with_masks_and_without(model, roles):
    made = testing.shortcut_images(80)
    with_masks = head_roles(model, made.pixels, masks=made.masks, progress=False)
    np.testing.assert_allclose(with_masks.values["object"], roles.values["object"], atol=1e-12)
    without = head_roles(model, made.pixels, progress=False)
    assert "object" not in without.metrics and "background" not in without.metrics
    assert named(without)["L1H0"] in ("none", "diffuse") and named(without)["L0H0"] == "self"


# the planted head, and the trap of a fixed place


@pytest.fixture(scope="module")
def planted():
    return wrap(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())


def test_a_head_that_looks_at_one_place_has_no_role(planted):
    """Head (0, 0) attends to the middle patch and the objects always cover it: no role, although all of its attention
    falls on the object. Where objects lie anywhere it has none either."""
    pixels, _ = testing.hand_wired_images(60)
    generator = np.random.default_rng(0)
    for middle in (True, False):
        grid = torch.from_numpy(generator.random((60, 9)) < 0.3)
        grid[:, 0], grid[:, 8] = False, True
        if middle:
            grid[:, 4] = True
        masks = grid.unflatten(1, (3, 3)).repeat_interleave(4, 1).repeat_interleave(4, 2)
        roles = head_roles(planted, pixels, masks=masks, progress=False)
        rows = {(row["unit"], row["metric"]): row for row in roles.table.iter_rows(named=True)}
        head = rows["L0H0", "object"]
        if middle:
            assert head["score"] == pytest.approx(1, abs=1e-4) and abs(head["effect"]) < 0.02
        assert named(roles)["L0H0"] == "none"
        assert rows["L0H0", "self"]["effect"] == 0, "rounding is no effect"
        assert {named(roles)[f"L1H{head}"] for head in range(4)} == {"diffuse"}
    # Attention to the middle patch is as near as one popular key allows.
    assert rows["L0H0", "distance"]["effect"] == 0
    assert rows["L0H0", "distance"]["score"] == pytest.approx((4 + 4 * 2**0.5) / 9, abs=1e-4)


def test_the_least_excess_decides(roles):
    rows = top_roles(roles).filter(pl.col("unit") == "L1H1")
    assert rows["role"].item() == "background" and rows["excess"].item() < 1 - 1e-9
    above = rows["excess"].item() + 1e-9
    assert named(roles, least=above)["L1H1"] == "none" and named(roles, least=above - 2e-9)["L1H1"] == "background"


def test_bundled_model_has_object_and_background_heads():
    model, images = mechvis.load("scenes-vit"), mechvis.data.scenes(100, seed=5)
    roles = head_roles(model, images, progress=False)
    found = named(roles)
    assert set(named(roles, least=0.9).values()) == {"none"}
    assert [found[f"L1H{head}"] for head in range(4)] == ["object", "object", "background", "object"]
    assert found["L0H0"] == "background" and found["L2H2"] == "object" and found["L3H0"] == "diffuse"
    assert list(found.values()).count("object") >= 7


# streaming


@pytest.mark.parametrize("family", ["vit", "dinov3", "beit", "siglip-vision", "dinov2-registers"])
@pytest.mark.parametrize("layers", [[0, 1, 2], [1], [0, 2]])
def test_patterns_layer_by_layer_equal_one_forward(family, layers):
    model = wrap(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input(family, dtype=torch.float64)
    run = model.run(pixels, capture=["blocks.*.attn.hook_pattern", "blocks.*.hook_resid_pre"])
    seen = []
    for layer, pattern, stream in layer_patterns(model, pixels, layers):
        testing.assert_close(pattern, run.cache["pattern", layer].detach(), 1e-12)
        testing.assert_close(stream, run.cache["resid_pre", layer].detach(), 1e-12)
        seen.append(layer)
    assert seen == layers


def test_another_image_size():
    model = wrap(testing.tiny("dinov3", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = torch.randn(4, 3, 8, 20, generator=torch.Generator().manual_seed(0)).double()
    roles = head_roles(model, pixels, progress=False)
    assert roles.rows("register").height == 12
    ((_, _, pattern, _),) = each_pattern(model, pixels, [1], progress=False)
    assert pattern.shape[-1] == 3 + 2 * 5
    np.testing.assert_allclose(
        roles.rows("register")["score"][4:8], pattern[:, :, 3:, 1:3].sum(-1).mean((0, 2)), atol=1e-12
    )


def test_the_model_is_left_as_it_was(model, images):
    with testing.assert_untouched(model):
        head_roles(model, images[:10], progress=False)


# bad input


def test_bad_settings(model, images, roles):
    with pytest.raises(OutOfRange, match=r"diffuse is a share of the keys between 0 and 1, got 1\.5"):
        head_roles(model, images, diffuse=1.5)
    with pytest.raises(UnknownName, match="unknown choice of queries 'cls'"):
        head_roles(model, images, queries="cls")
    with pytest.raises(OutOfRange, match="layers 0 to 1"):
        head_roles(model, images, layers=[2])
    with pytest.raises(OutOfRange, match="batch_size must be at least 1"):
        head_roles(model, images, batch_size=0)
    with pytest.raises(OutOfRange, match="least is an excess between 0 and 1"):
        top_roles(roles, least=2)


def test_bad_images_and_masks(model):
    made = testing.shortcut_images(4)
    with pytest.raises(BadData, match="no image to look at"):
        head_roles(model, made.pixels[:0])
    with pytest.raises(BadData, match="object and background need at least two images"):
        head_roles(model, made.pixels[:1], masks=made.masks[:1], progress=False)
    with pytest.raises(BadData, match=r"masks are bool \[image height width\].*torch.float32"):
        head_roles(model, made.pixels, masks=made.masks.float(), progress=False)
    with pytest.raises(ShapeMismatch, match="masks for 3 images; there are 4"):
        head_roles(model, made.pixels, masks=made.masks[:3], progress=False)
    one = torch.zeros_like(made.masks)
    one[0, 0, 0] = True
    with pytest.raises(BadData, match="fewer than two images have both object and background"):
        head_roles(model, made.pixels, masks=one, progress=False)
    text = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="this tower reads text"):
        head_roles(text.text, testing.tiny_input("vit"))
    with pytest.raises(BadData, match=r"pass clip\.vision or clip\.text"):
        head_roles(text, testing.tiny_input("vit"))


def test_results_of_something_else(tmp_path):
    other = Result.from_values("heads_sweep", "", [{"layer": 0, "head": 0}], {"logit": np.ones((1, 3))})
    with pytest.raises(ResultMismatch, match="top_roles reads the result of head_roles, this one is of 'heads_sweep'"):
        top_roles(other)
    with pytest.raises(ResultMismatch, match="report_heads reads head_roles and positional"):
        report_heads(other, tmp_path / "report.html")
