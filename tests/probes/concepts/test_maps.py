"""Concept maps against masks, crops, and concepts taken apart: all on data whose answer is known."""

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.concepts import refine
from probes.concepts.crops import crops
from probes.concepts.maps import against_masks, elsewhere, map_auroc, object_places
from probes.concepts.planted import matched, planted_parts


def test_auroc_by_hand_and_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    maps = generator.normal(size=(5, 16, 3)).round(1)
    on_object = generator.random((5, 16)) < 0.4
    ours = map_auroc(maps, on_object)
    for image in range(5):
        for concept in range(3):
            theirs = roc_auc_score(on_object[image], maps[image, :, concept])
            assert ours[concept, image] == pytest.approx(theirs, abs=1e-12)
    assert np.isnan(map_auroc(maps, np.ones((5, 16), bool))).all()


def test_a_map_of_the_middle_does_not_move_with_the_object():
    """The control: objects near the middle give it a high AUROC, and nothing beyond."""
    generator = np.random.default_rng(0)
    masks = np.zeros((60, 8, 8), bool)
    for mask, (y, x) in zip(masks, generator.integers(1, 5, (60, 2)), strict=True):
        mask[y : y + 3, x : x + 3] = True
    on_object = masks.reshape(60, 64)
    down, across = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    middle = np.broadcast_to(-((down - 3.5) ** 2 + (across - 3.5) ** 2).reshape(1, 64), (60, 64))
    noisy = on_object + 0.3 * generator.random((60, 64))
    table, controls = against_masks(np.stack([noisy, middle, -noisy], axis=2), None, on_object, (8, 8))
    assert table["what"].to_list() == ["object", "neither", "background"]
    assert table["auroc"][1] > 0.75 and abs(table["moves"][1]) < 0.05
    assert controls == {"centre": pytest.approx(table["auroc"][1], abs=1e-9)}
    assert np.isnan(elsewhere(noisy[:1, :, None], on_object[:1])).all()


def test_places_of_the_object():
    masks = np.zeros((1, 6, 6), bool)
    masks[0, :3, :2] = True
    assert object_places(masks, (2, 3)).tolist() == [[True, False, False, False, False, False]]
    assert object_places(masks, (2, 2), share=0.6).tolist() == [[True, False, False, False]]
    assert object_places(masks, (4, 4)).sum() > 0, "cells need not divide the image"
    with pytest.raises(ShapeMismatch, match="bool masks"):
        object_places(masks.astype(float), (2, 2))
    with pytest.raises(OutOfRange, match="share=0"):
        object_places(masks, (2, 2), share=0)
    with pytest.raises(ShapeMismatch, match="are wanted"):
        map_auroc(np.zeros((1, 5, 2)), np.zeros((1, 4), bool))
    with pytest.raises(NotFinite, match="maps"):
        map_auroc(np.full((1, 4, 1), np.nan), np.zeros((1, 4), bool))
    with pytest.raises(BadData, match="look at the masks"):
        against_masks(np.zeros((2, 4, 1)), None, np.ones((2, 4), bool), (2, 2))


# crops, refinement


def test_crops_reach_every_edge_and_are_what_they_say():
    pixels = torch.arange(64.0).reshape(1, 1, 8, 8)
    pieces, grid = crops(pixels, side=0.5, step=0.5)
    assert grid == (3, 3) and pieces.shape == (1, 9, 1, 8, 8)
    expected = torch.nn.functional.interpolate(pixels[..., 4:, 4:], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pieces[:, 8], expected)
    whole, grid = crops(pixels, side=1.0)
    assert grid == (1, 1)
    torch.testing.assert_close(whole[:, 0], pixels)
    with pytest.raises(OutOfRange, match="too small"):
        crops(pixels, side=0.1)
    with pytest.raises(OutOfRange, match="shares"):
        crops(pixels, side=2)


def test_a_concept_of_two_parts_is_taken_apart_at_an_earlier_layer():
    """Later, two of six parts have become one; where it is strong, the earlier rows still have both."""
    planted = planted_parts(800, 6, 32, seed=5, active=0.25)
    later = planted.codes[:, 0] + planted.codes[:, 1]
    found = refine(later, planted.rows, 6, top=1.0)
    assert (found.chosen == (later > 0)).all()
    order, cosine = matched(found.factorisation.bank, planted.bank[:2])
    assert cosine > 0.95
    follows = found.table["follows"].to_numpy()
    assert set(np.argsort(-follows)[:2]) == set(order.tolist()) and follows[order].min() > 0.5
    others = np.delete(follows, order)
    assert np.abs(others).max() < 0.3, "parts that only stand beside it do not follow it"
    assert found.table["share"].is_sorted(descending=True) and found.codes.shape == (800, 6)


def test_refine_takes_the_strongest_pieces_and_refuses_too_few():
    planted = planted_parts(300, 4, 12)
    found = refine(planted.codes[:, 0], planted.rows, 2, top=0.3)
    edge = np.quantile(planted.codes[planted.codes[:, 0] > 0, 0], 0.7)
    assert (planted.codes[found.chosen, 0] >= edge).all()
    with pytest.raises(BadData, match="pieces hold the concept"):
        refine(np.zeros(300), planted.rows, 2)
    with pytest.raises(ShapeMismatch, match="same pieces"):
        refine(planted.codes[:50, 0], planted.rows, 2)
    with pytest.raises(OutOfRange, match="top=0"):
        refine(planted.codes[:, 0], planted.rows, 2, top=0)
