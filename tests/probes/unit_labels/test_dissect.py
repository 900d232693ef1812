"""CLIP-Dissect's five scores against their definitions and planted units; Network Dissection against by-hand IoU."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from probes.unit_labels import clip_dissect, network_dissection
from probes.unit_labels.dissect import METHODS, cosine_cubed, rank_reorder, soft_wpmi, wpmi
from probes.unit_labels.dissection import iou, thresholds

N, CONCEPTS = 600, 12


@pytest.fixture(scope="module")
def planted():
    """Units that answer to concepts 0..7 (a concept in a tenth of the images), and one of noise; similarities as a
    model of images and texts gives them."""
    generator = np.random.default_rng(0)
    labels = generator.random((N, CONCEPTS)) < 0.1
    units = labels[:, :8] * 2.0 + 0.5 * generator.standard_normal((N, 8))
    similarity = 0.2 + 0.1 * labels + 0.02 * generator.standard_normal((N, CONCEPTS))
    return np.column_stack([units, generator.standard_normal(N)]), similarity, labels


@pytest.mark.parametrize("method", METHODS)
def test_planted_labels_are_found(planted, method):
    units, similarity, _ = planted
    settings = {"top": 50} if method == "soft_wpmi" else {}
    # The released sharpness suits cosines of thousands of texts; few texts with small gaps need more.
    settings |= {"sharpness": 100.0} if "wpmi" in method else {}
    # Within the top 5 % all images have the concept, and their order says nothing about it: look further down.
    settings |= {"share": 0.3} if method == "rank_reorder" else {}
    scores = clip_dissect(units, similarity, method=method, **settings)
    assert scores.shape == (9, CONCEPTS)
    assert (scores[:8].argmax(1) == np.arange(8)).all()


@pytest.mark.parametrize("method", METHODS)
def test_shuffled_images_are_labelled_by_chance(planted, method):
    units, similarity, _ = planted
    generator = np.random.default_rng(1)
    scores = [clip_dissect(units, similarity[generator.permutation(N)], method=method)[:8] for _ in range(5)]
    right = np.mean([one.argmax(1) == np.arange(8) for one in scores])
    assert right < 0.35


def released_soft_wpmi(similarity, units, top, a, lam, floor=1e-7, start=0.998, end=0.97):
    """The score image by image and unit by unit, as one would write it first."""
    chance = torch.softmax(a * torch.from_numpy(similarity), 1)
    likely = []
    for column in torch.from_numpy(units).T:
        total = torch.zeros(similarity.shape[1], dtype=torch.float64)
        for rank, image in enumerate(torch.topk(column, top).indices):
            p = start - rank / top * (start - end)
            total += torch.log(1 + p * (chance[image] - 1) + floor)
        likely.append(total)
    likely = torch.stack(likely)
    return likely - lam * (torch.logsumexp(likely, 0, keepdim=True) - np.log(len(likely)))


def test_soft_wpmi_is_the_released_score(planted):
    units, similarity, _ = planted
    expected = released_soft_wpmi(similarity, units, 100, 10, 1)
    np.testing.assert_allclose(soft_wpmi(units, similarity), expected, atol=1e-10)
    expected = released_soft_wpmi(similarity, units, 28, 2, 0.6, start=1, end=1)
    np.testing.assert_allclose(wpmi(units, similarity), expected, atol=1e-4)


def test_the_prior_depends_on_the_units_given(planted):
    units, similarity, _ = planted
    whole = soft_wpmi(units, similarity)
    assert np.abs(soft_wpmi(units[:, :3], similarity) - whole[:3]).max() > 0.1
    np.testing.assert_allclose(
        soft_wpmi(units[:, :3], similarity, weight=0), soft_wpmi(units, similarity, weight=0)[:3]
    )


def test_cosines_by_hand(planted):
    units, similarity, _ = planted
    a, c = units[:, 2], similarity[:, 5]
    assert clip_dissect(units, similarity, method="cosine")[2, 5] == pytest.approx(
        a @ c / np.linalg.norm(a) / np.linalg.norm(c)
    )
    a, c = (a - a.mean()) ** 3, (c - c.mean()) ** 3
    assert cosine_cubed(units, similarity)[2, 5] == pytest.approx(a @ c / np.linalg.norm(a) / np.linalg.norm(c))


def test_rank_reorder_is_zero_for_the_same_order():
    values = np.random.default_rng(0).exponential(size=(200, 1))
    same = rank_reorder(values, np.column_stack([values[:, 0], -values[:, 0] + 9]), share=0.1)
    assert same[0, 0] == pytest.approx(0) and same[0, 1] < -0.1


def test_scores_refuse_what_does_not_fit(planted):
    units, similarity, _ = planted
    with pytest.raises(UnknownName, match="soft_wpmi"):
        clip_dissect(units, similarity, method="softwpmi")
    with pytest.raises(ShapeMismatch, match="of the same images"):
        clip_dissect(units[:5], similarity)
    with pytest.raises(OutOfRange, match="top=700 of 600"):
        soft_wpmi(units, similarity, top=700)
    with pytest.raises(OutOfRange, match="two or more"):
        rank_reorder(units, similarity, share=0.001)
    with pytest.raises(NotFinite, match="activations"):
        clip_dissect(np.full_like(units, np.nan), similarity)
    with pytest.raises(BadData, match="nothing to compare"):
        clip_dissect(units[:, :0], similarity)


@pytest.fixture(scope="module")
def masked():
    """Unit 0 is concept 1's mask and noise, unit 1 noise; patches of 4 pixels."""
    generator = np.random.default_rng(0)
    patches = generator.random((60, 3, 6, 6)) < np.array([0.05, 0.02, 0.2])[:, None, None]
    masks = patches.repeat(4, axis=2).repeat(4, axis=3)
    maps = np.stack(
        [patches[:, 1] + 0.1 * generator.standard_normal((60, 6, 6)), generator.standard_normal((60, 6, 6))], 1
    )
    return maps, masks


def test_a_unit_copied_from_a_mask_is_its_detector(masked):
    maps, masks = masked
    found = network_dissection(maps, masks, ["copy", "noise"], ["a", "b", "c"], quantile=0.02)
    copy, noise = found.rows(named=True)
    assert copy["label"] == "b" and copy["detector"] and copy["iou"] > 0.3 > 5 * copy["shuffled"]
    assert not noise["detector"] and noise["iou"] <= noise["ceiling"]


def test_iou_by_hand_and_in_batches(masked):
    maps, masks = masked
    found, ceiling = iou(maps, masks, quantile=0.02, batch_size=7)
    large = torch.nn.functional.interpolate(torch.from_numpy(maps).float(), size=24, mode="bilinear").numpy()
    on = large[:, 0] > np.quantile(maps[:, 0], 0.98)
    expected = (on & masks[:, 1]).sum() / (on | masks[:, 1]).sum()
    assert found[0, 1] == pytest.approx(expected) and (found <= ceiling + 1e-9).all()
    np.testing.assert_allclose(found, iou(maps, lambda part: masks[part], quantile=0.02)[0])
    share = (maps > thresholds(maps)[None, :, None, None]).mean((0, 2, 3))
    np.testing.assert_allclose(share, 0.005, atol=0.001)


def test_dissection_refuses_what_does_not_fit(masked):
    maps, masks = masked
    with pytest.raises(ShapeMismatch, match=r"maps are \[image unit down across\]"):
        iou(maps[0], masks)
    with pytest.raises(ShapeMismatch, match="masks of 32 images"):
        iou(maps, lambda part: masks[:3])
    with pytest.raises(OutOfRange, match="quantile=1"):
        iou(maps, masks, quantile=1)
    with pytest.raises(ShapeMismatch, match="1 units and 3 concepts"):
        network_dissection(maps, masks, ["copy"], ["a", "b", "c"])
