"""Heat maps: sums over tokens are the heads' totals, a planted head shows the planted patch; maps against masks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import mechvis
from mechvis import testing
from mechvis.errors import BadData, NotFinite, RefusedMethod, ShapeMismatch, UnknownName
from mechvis.models.load import wrap
from probes.textspan.heat import patch_cosine, text_heat, token_heat
from probes.textspan.localise import centre_prior, localisation, localised, upsampled
from probes.textspan.reading import read
from probes.textspan.segment import mean_precision, segmentation, segmentation_scores, stretched
from probes.textspan.tasks import class_task

PATCH = 5


def tiny(family="clip", dtype=torch.float64):
    return wrap(testing.tiny(family, dtype=dtype), preprocess=testing.tiny_preprocess())


@pytest.fixture
def clip():
    return tiny()


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("clip", dtype=torch.float64)


def directions(k=3, d=8):
    rng = np.random.default_rng(0)
    found = rng.normal(size=(k, d))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("convention", ["linear", "even_split"])
def test_heat_and_prefix_are_what_the_heads_write(clip, pixels, convention):
    batch = next(read(clip, pixels, layers=None, convention=convention))
    heat = token_heat(clip, pixels, directions(), layers=None, convention="linear", progress=False)
    linear = next(read(clip, pixels, layers=None))
    np.testing.assert_allclose(heat.total, linear.heads.sum(1) @ directions().T, atol=1e-10)
    assert heat.maps.shape == (3, 3, 3, 3) and heat.prefix.shape == (3, 3)
    # Whatever the convention: heads and the rest add up to the unit embedding.
    np.testing.assert_allclose(batch.heads.sum(1) + batch.rest, batch.whole, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(batch.whole, axis=1), 1, atol=1e-10)


def test_maps_of_single_heads_add_up(clip, pixels):
    batch = next(read(clip, pixels, layers=-2))
    assert batch.names == tuple(f"L{layer}H{head}" for layer in (1, 2) for head in range(4))
    every = token_heat(clip, pixels, directions(), layers=-2, progress=False).maps
    single = [
        token_heat(clip, pixels, directions(), layers=-2, heads=name, progress=False).maps for name in batch.names
    ]
    np.testing.assert_allclose(sum(single), every, atol=1e-10)


def test_more_layers_than_there_are_is_all(clip, pixels):
    assert len(next(read(clip, pixels, layers=-9)).names) == 12


def test_attention_pooling_has_heads_of_its_own(pixels):
    siglip = tiny("siglip")
    batch = next(read(siglip, pixels))
    assert batch.names[0] == "pool H0"
    width = batch.whole.shape[1]
    heat = token_heat(siglip, pixels, directions(2, width), progress=False)
    np.testing.assert_allclose(heat.total, batch.heads.sum(1) @ directions(2, width).T, atol=1e-10)
    with pytest.raises(RefusedMethod, match="pools by attention"):
        patch_cosine(siglip, pixels, directions(2, width), progress=False)


def test_a_planted_head_shows_the_planted_patch(clip, pixels):
    """The last layer's head 0 looks everywhere alike and copies a mark, which one patch alone carries, to a text."""
    tower = clip.vision
    vision, d = clip.bare.vision_model, tower.parts.d_model
    attention = vision.encoder.layers[-1].self_attn
    text = directions(1)[0]
    mark = torch.zeros(d, dtype=torch.float64)
    mark[0], mark[1] = 1.0, -1.0
    with torch.no_grad():
        vision.embeddings.position_embedding.weight[1 + PATCH] += 60 * mark
        attention.q_proj.weight[:4] = 0
        attention.q_proj.bias[:4] = 0
        attention.v_proj.weight[:4] = 0
        attention.v_proj.bias[:4] = 0
        attention.v_proj.weight[0] = mark
        back = torch.linalg.pinv(
            (torch.eye(d).double() - 1 / d)
            @ torch.diag(tower.parts.ln_final.weight)
            @ clip.bare.visual_projection.weight.T
        )
        attention.out_proj.weight[:, 0] = torch.from_numpy(text) @ back
    maps = token_heat(clip, pixels, np.stack([text, *directions(3)[1:]]), heads="L2H0", layers=-1, progress=False).maps
    assert (maps[:, 0].reshape(3, -1).argmax(1) == PATCH).all()
    share = maps[:, 0].reshape(3, -1)
    assert (share[:, PATCH] > 1.3 * np.abs(np.delete(share, PATCH, axis=1)).max(1)).all()
    # Another head does not show it.
    other = token_heat(clip, pixels, text[None], heads="L2H1", layers=-1, progress=False).maps
    assert not (np.abs(other).reshape(3, -1).argmax(1) == PATCH).all() or np.abs(other).max() < np.abs(share).max() / 3


def test_the_control_is_the_cosine_of_projected_tokens(clip, pixels):
    found = patch_cosine(clip, pixels, directions(), progress=False)
    vision = clip.bare.vision_model
    with torch.no_grad():
        last = vision(pixels).last_hidden_state[:, 1:]
        tokens = clip.bare.visual_projection(vision.post_layernorm(last))
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(found.reshape(3, 3, 9), np.einsum("itd,kd->ikt", tokens, directions()), atol=1e-10)


# maps against masks


@pytest.fixture(scope="module")
def maps_and_masks():
    rng = np.random.default_rng(1)
    return rng.normal(size=(6, 4, 4)), rng.random((6, 16, 16)) < 0.3


def test_auroc_and_pointing_pixel_by_pixel(maps_and_masks):
    maps, masks = maps_and_masks
    found = localised(maps, masks)
    values = upsampled(maps, (16, 16))
    for i in range(6):
        assert found["auroc"][i] == pytest.approx(roc_auc_score(masks[i].ravel(), values[i].ravel()))
        top = values[i] == values[i].max()
        assert found["pointing"][i] == pytest.approx((top & masks[i]).sum() / top.sum())


def test_images_without_object_or_background_do_not_count(maps_and_masks):
    maps, masks = maps_and_masks
    masks = masks.copy()
    masks[0], masks[1] = False, True
    found = localised(maps, masks)
    assert np.isnan(found["auroc"][:2]).all() and np.isnan(found["pointing"][:2]).all()
    assert np.isfinite(found["auroc"][2:]).all()


def test_upsampling_is_bilinear():
    torch_way = torch.nn.functional.interpolate(
        torch.arange(4.0).double().view(1, 1, 2, 2), scale_factor=4, mode="bilinear"
    )
    np.testing.assert_allclose(upsampled(np.arange(4.0).reshape(1, 2, 2), (8, 8))[0], torch_way[0, 0].numpy())


def test_the_centre_prior_falls_off_from_the_middle():
    prior = centre_prior((5, 5))
    assert prior.argmax() == 12 and prior[0, 0] == prior.min()


def test_segmentation_measures_by_hand():
    maps = np.array([[[1.0, -1.0], [-1.0, -1.0]]])
    masks = np.array([[[True, True], [False, False]]])
    # 2 x 2 pixels: the map finds one of two pixels of the object and calls no pixel wrongly object.
    found = segmentation_scores(maps, masks)
    assert found["pixel_accuracy"] == 0.75
    assert found["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["n"] == 1


def test_average_precision_is_scikit_learns(maps_and_masks):
    maps, masks = maps_and_masks
    values = stretched(upsampled(maps, (16, 16)))
    truth, score = masks.ravel(), values.ravel()
    exact = (average_precision_score(truth, score) + average_precision_score(~truth, 1 - score)) / 2
    assert segmentation_scores(maps, masks)["map_score"] == pytest.approx(exact, abs=1e-3)
    each = [
        (average_precision_score(m.ravel(), v.ravel()) + average_precision_score(~m.ravel(), 1 - v.ravel())) / 2
        for m, v in zip(masks, values, strict=True)
    ]
    assert segmentation_scores(maps, masks, ap="image")["map_score"] == pytest.approx(np.mean(each), abs=1e-3)


def test_degenerate_maps_are_zero_and_not_nan():
    flat = np.full((2, 3, 3), 4.0)
    assert (stretched(flat) == 0).all() and (stretched(-flat) == 0).all()
    masks = np.zeros((2, 6, 6), bool)
    masks[:, :2] = True
    found = segmentation_scores(flat, masks)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3) and found["miou"] == pytest.approx(1 / 3)
    assert np.isnan(mean_precision(np.array([[1.0, 0.0], [0.0, 0.0]])))


def test_a_perfect_map_is_perfect():
    masks = np.zeros((3, 8, 8), bool)
    masks[:, 2:6, 2:6] = True
    maps = np.where(masks, 1.0, -1.0)
    found = segmentation_scores(maps, masks)
    assert found["pixel_accuracy"] == found["miou"] == found["map_score"] == 1.0
    assert localised(maps, masks)["auroc"].tolist() == [1.0] * 3


def test_bad_input(clip, pixels, maps_and_masks):
    maps, masks = maps_and_masks
    with pytest.raises(UnknownName, match="unknown head 'L9H9'"):
        token_heat(clip, pixels, directions(), heads="L9H9", progress=False)
    with pytest.raises(BadData, match="name at least one head, and each once"):
        token_heat(clip, pixels, directions(), heads=["L2H0", "L2H0"], progress=False)
    with pytest.raises(ShapeMismatch, match="directions of 5 numbers, embeddings of 8"):
        token_heat(clip, pixels, directions(2, 5), progress=False)
    with pytest.raises(ShapeMismatch, match="directions of 5 numbers, embeddings of 8"):
        patch_cosine(clip, pixels, directions(2, 5), progress=False)
    with pytest.raises(NotFinite, match="the directions holds 8 NaN"):
        token_heat(clip, pixels, np.full((1, 8), np.nan), progress=False)
    with pytest.raises(BadData, match="has no text tower"):
        text_heat(mechvis.load("scenes-vit"), pixels, ["a star"])
    with pytest.raises(ShapeMismatch, match="one of each per image"):
        localised(maps, masks[:2])
    with pytest.raises(NotFinite, match="the maps holds"):
        localised(np.full((6, 4, 4), np.nan), masks)
    with pytest.raises(ShapeMismatch, match="one of each per image"):
        segmentation_scores(maps, masks[:2])
    with pytest.raises(UnknownName, match="average precision 'mean'"):
        segmentation_scores(maps, masks, ap="mean")
    plain = mechvis.data.scenes(4, show="background")
    task = class_task("shape", ["a", "b"], np.eye(2), np.zeros(4))
    with pytest.raises(BadData, match="has no masks"):
        localisation(clip, plain, {"shape": task})
    with pytest.raises(BadData, match="has no masks"):
        segmentation(clip, plain, task)
