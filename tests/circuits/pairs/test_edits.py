"""Edits of colour, shape, texture and place: the one thing that changes, and everything that stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv

import mechvis
from circuits.pairs import blur, grey, hue_rotation, patch_shuffle, stress, token_swap
from circuits.pairs.grid import moved
from mechvis import edits, testing
from mechvis.errors import BadData, OutOfRange, UnknownName


def colours(model, pixels):
    return model.preprocess.unnormalise(pixels).movedim(1, -1).numpy()


def cells(pixels, patch=8):
    """`[image patch values]`."""
    tiles = pixels.unfold(2, patch, patch).unfold(3, patch, patch)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


@pytest.mark.parametrize("make", [hue_rotation, grey, blur])
@pytest.mark.parametrize("where", ["object", "background", "all"])
def test_an_edit_stays_where_it_belongs(model, images, make, where):
    pairs = make(model, images, where=where)
    touched = (pairs.clean != pairs.corrupt).any(1)
    place = {"object": pairs.masks, "background": ~pairs.masks, "all": torch.ones_like(pairs.masks)}[where]
    assert not (touched & ~place).any(), "no resizing here, so bit for bit"
    assert touched.flatten(1).any(1).all()
    assert pairs.corrupt_labels is None and torch.equal(pairs.masks, pairs.corrupt_masks)


def test_hue_turns_and_nothing_else(model, images):
    pairs = hue_rotation(model, images, degrees=90, where="object")
    before, after = (rgb_to_hsv(colours(model, half)[pairs.masks.numpy()]) for half in (pairs.clean, pairs.corrupt))
    vivid = (before[:, 1] > 0.4) & (before[:, 2] > 0.3)
    turn = (after[:, 0] - before[:, 0]) % 1
    assert vivid.mean() > 0.5 and np.abs(turn[vivid] - 0.25).max() < 0.01
    assert np.abs(after[:, 1:] - before[:, 1:])[vivid].max() < 0.015
    with pytest.raises(OutOfRange, match="turns no hue"):
        hue_rotation(model, images, degrees=360)


def test_grey_keeps_brightness(model, images):
    pairs = grey(model, images, where="all")
    before, after = colours(model, pairs.clean), colours(model, pairs.corrupt)
    assert np.abs(after[..., 0] - after[..., 1]).max() < 1e-6
    assert np.abs(before @ np.array([0.299, 0.587, 0.114]) - after[..., 0]).max() < 1 / 255


def test_blur_does_not_cross_the_outline(model, uneven):
    """Objects of one colour stay exactly that colour; a plain blur would mix in the background."""
    one = replace(uneven, read=lambda row: uneven.read(row))
    preprocess = model.preprocess
    with pytest.raises(BadData, match="all 6 corrupt images are equal"):
        blur(model, one, where="object")
    pairs = blur(model, one, where="background")
    spread = [half[~pairs.masks[:, None].expand_as(half)].std() for half in (pairs.clean, pairs.corrupt)]
    assert spread[1] < 0.6 * spread[0]
    inner = torch.nn.functional.max_pool2d((~pairs.masks).float(), 3, 1, 1) == 0
    inside = inner[:, None].expand_as(pairs.clean)
    assert preprocess is model.preprocess and torch.equal(pairs.clean[inside], pairs.corrupt[inside])
    with pytest.raises(OutOfRange, match="sigma=0"):
        blur(model, one, sigma=0)


def test_patch_shuffle_moves_every_patch_of_the_object_and_no_other(model, images):
    pairs = patch_shuffle(model, images, seed=2)
    before, after = cells(pairs.clean), cells(pairs.corrupt)
    object_patches = cells(pairs.masks[:, None].float()).mean(-1) >= 0.5
    changed = (before != after).any(-1)
    assert not (changed & ~object_patches).any()
    moved_masks = cells(pairs.corrupt_masks[:, None].float())
    for image in range(len(pairs)):
        inside = object_patches[image]
        own, new = before[image][inside], after[image][inside]
        assert (own[:, None] == new[None]).all(-1).any(0).all(), "the same patches"
        assert torch.equal(own.sort(0).values, new.sort(0).values)
        same_place = (own == new).all(-1) & (own.std(1) > 0.05)  # patches of one colour may look alike
        assert not same_place.any()
        assert moved_masks[image].sum() == cells(pairs.masks[:, None].float())[image].sum()
    assert torch.equal(pairs.corrupt, patch_shuffle(model, images, seed=2).corrupt)
    assert not torch.equal(pairs.corrupt, patch_shuffle(model, images, seed=3).corrupt)


def test_patch_shuffle_needs_objects(model, images, without_masks):
    with pytest.raises(BadData, match="needs object masks"):
        patch_shuffle(model, without_masks)
    tiny = torch.zeros(16, 64, 64, dtype=torch.bool)
    tiny[:, :8, :16] = True
    tiny[5, :8, 8:16] = False
    with pytest.raises(BadData, match=r"fewer \(the first is image 5, with 1\)"):
        patch_shuffle(model, images.pixels_for(model.preprocess), masks=tiny)


def test_token_swap_exchanges_contents(model, images):
    pixels = images.pixels_for(model.preprocess)
    pairs = token_swap(model, pixels, [1, 2], [64, 10])
    before, after = cells(pairs.clean), cells(pairs.corrupt)
    expected = torch.arange(64)
    expected[[0, 1, 63, 9]] = torch.tensor([63, 9, 0, 1])
    assert torch.equal(after, before[:, expected])
    # Exactly the contents' part of the embedding moves, the positions stay.
    first, second = (model.run(half, stop_at_layer=0).output[:, 1:] for half in (pairs.clean, pairs.corrupt))
    places = model.run(torch.zeros_like(pixels[:1]), stop_at_layer=0).output[:, 1:]
    assert torch.allclose((first - places)[:, expected], second - places, atol=1e-5)


def test_token_swap_of_the_object(model, images):
    pairs = token_swap(model, images, seed=1)
    inside = cells(pairs.masks[:, None].float()).mean(-1) >= 0.5
    after = cells(pairs.corrupt_masks[:, None].float()).mean(-1) >= 0.5
    for image in range(len(pairs)):
        count = int(inside[image].sum())
        assert not (inside[image] & after[image]).any(), "all object patches lie where background was"
        assert int(after[image].sum()) == count
        multiset = [cells(half)[image].sum(-1).sort().values for half in (pairs.clean, pairs.corrupt)]
        assert torch.allclose(*multiset)


def test_exchanging_embeddings_would_say_nothing():
    """Why token swaps are made of pixels: with their positions carried along, two exchanged tokens change nothing in a
    ViT, and pixels do."""
    model = mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", dtype=torch.float64)
    clean = model.run(pixels, capture=["hook_embed"])
    order = torch.tensor([0, 2, 1, 3, 4, 5, 6, 9, 8, 7])
    exchanged = model.run(pixels, edits=[edits.patch("hook_embed", clean.cache["hook_embed"][:, order])]).logits
    assert (exchanged - clean.logits).abs().max() < 1e-12
    pairs = token_swap(model, pixels, [1, 7], [2, 9])
    assert (model.run(pairs.corrupt).logits - clean.logits).abs().max() > 1e-2


def test_bad_token_swaps(model, images):
    pixels = images.pixels_for(model.preprocess)
    for first, second in (([1, 2], [2, 3]), ([1], [2, 3]), ([1, 1], [2, 3])):
        with pytest.raises(BadData, match="two sets of equal size without a token in common"):
            token_swap(model, pixels, first, second)
    with pytest.raises(OutOfRange, match="those are tokens 1 to 64"):
        token_swap(model, pixels, [0], [5])
    with pytest.raises(BadData, match="needs two sets"):
        token_swap(model, pixels, [3])
    with pytest.raises(BadData, match="'object' alone"):
        token_swap(model, images, "object", [3])
    with pytest.raises(BadData, match="needs object masks"):
        token_swap(model, pixels)


def test_moving_patches_leaves_the_rim():
    """Pixels beyond the last whole patch belong to no token and stay."""
    pixels = torch.arange(2 * 10 * 11.0).reshape(1, 2, 10, 11)
    out = moved(pixels, torch.tensor([[3, 1, 2, 0]]), (2, 2), (5, 4))
    assert torch.equal(out[..., 8:], pixels[..., 8:])
    assert torch.equal(out[..., :5, :4], pixels[..., 5:, 4:8]) and torch.equal(out[..., :5, 4:8], pixels[..., :5, 4:8])


@pytest.mark.parametrize("kind", ["zero", "grey", "noise"])
def test_stress(model, images, kind):
    pairs = stress(model, images, kind=kind, seed=1)
    shown = colours(model, pairs.corrupt)
    if kind == "noise":
        assert abs(shown.mean() - 0.5) < 0.01 and 0.25 < shown.std() < 0.32
        assert torch.equal(pairs.corrupt, stress(model, images, kind=kind, seed=1).corrupt)
        assert not torch.equal(pairs.corrupt, stress(model, images, kind=kind, seed=2).corrupt)
    else:
        assert np.abs(shown - 0.5).max() < 1e-6, "the mean that this model's preprocessing takes off is grey"
    assert pairs.corrupt_labels is None and len(pairs) == 16
    with pytest.raises(UnknownName, match="unknown stress test"):
        stress(model, images, kind="black")


@pytest.mark.parametrize("make", [hue_rotation, grey, blur])
def test_edits_of_attributes_refuse(model, images, without_masks, make):
    with pytest.raises(UnknownName, match="unknown place of an edit"):
        make(model, images, where="sky")
    with pytest.raises(BadData, match="needs object masks"):
        make(model, without_masks)
    assert len(make(model, without_masks, where="all")) == 16
    if make is not blur:
        two = replace(images, read=lambda row: images.read(row)[..., :2])
        with pytest.raises(BadData, match="has 2 channels"):
            make(model, two)
