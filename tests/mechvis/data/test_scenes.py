"""Scenes are what their factors say, bit for bit, whatever way they are asked for."""

import hashlib

import numpy as np
import pytest

import mechvis.data
from mechvis.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    captions,
    render,
    render_masks,
    sample_factors,
    scene_pairs,
    scenes,
    swap,
)
from mechvis.errors import BadData, UnknownName

GOLDEN = "d3a8b48d289cc91600c8233ef664b5e461e5d3da2b7931f77aa27a02e1d27d62"
TRAINING = "ff73460cf914dbafd5d1118926dfd981d4f1163e56951889a0fd9ccb635e57cd"


def test_pixels_and_masks_are_the_released_ones():
    images, masks = render(sample_factors(64, seed=7))
    digest = hashlib.sha256(images.tobytes() + np.packbits(masks).tobytes()).hexdigest()
    assert digest == GOLDEN, "the drawing changed: raise VERSION and retrain the bundled models, or undo the change"


def test_an_image_does_not_depend_on_how_many_or_in_which_batch():
    images, masks = render(sample_factors(150, seed=3))
    alone, mask = render(sample_factors(1, seed=3, start=100))
    assert (alone[0] == images[100]).all() and (mask[0] == masks[100]).all()
    few, _ = render(sample_factors(150, seed=3)[np.array([149, 2, 77])])
    assert (few == images[[149, 2, 77]]).all()
    lazy = scenes(150, seed=3)
    assert (lazy.read(100) == images[100]).all() and (lazy.read_mask(100) == masks[100]).all()
    assert (lazy[100:].raw()[0] == images[100]).all()


def test_seeds_and_numbers_give_different_images():
    images, _ = render(sample_factors(300, seed=0))
    assert len({image.tobytes() for image in images}) == 300
    assert (render(sample_factors(1, seed=1))[0] != images[:1]).any()


def test_training_scenes_occur_in_no_other_data_set():
    ours, _ = render(sample_factors(200, seed=7, training=True))
    theirs, _ = render(sample_factors(200, seed=7))
    assert not {image.tobytes() for image in ours} & {image.tobytes() for image in theirs}


def test_training_scenes_are_the_released_ones():
    images, _ = render(sample_factors(64, seed=7, training=True))
    assert hashlib.sha256(images.tobytes()).hexdigest() == TRAINING


def test_factors_are_uniform_and_independent_without_correlation():
    factors = sample_factors(40_000, seed=11)
    for values, count in ((factors.shape, 8), (factors.background, 8), (factors.colour, 6)):
        assert np.bincount(values, minlength=count) / 40_000 == pytest.approx(np.full(count, 1 / count), abs=0.01)
    joint = np.histogram2d(factors.shape, factors.background, bins=8)[0] / 40_000
    assert joint == pytest.approx(np.full((8, 8), 1 / 64), abs=0.004)
    by_colour = np.histogram2d(factors.colour, factors.background, bins=(6, 8))[0] / 40_000
    assert by_colour == pytest.approx(np.full((6, 8), 1 / 48), abs=0.004)


@pytest.mark.parametrize("correlation", [0.3, 0.8, 0.95, 1.0])
def test_correlation_is_the_probability_of_the_partner_background(correlation):
    factors = sample_factors(20_000, seed=5, correlation=correlation)
    assert factors.consistent.mean() == pytest.approx(correlation, abs=0.011)
    if correlation < 1:
        step = (factors.background - factors.shape)[~factors.consistent] % 8
        share = np.bincount(step, minlength=8)[1:] / len(step)
        assert share == pytest.approx(np.full(7, 1 / 7), abs=0.05)


def test_groups_can_be_asked_for_alone():
    assert (scenes(50, seed=1, group="consistent").groups == "consistent").all()
    assert (scenes(50, seed=1, group="conflicting").groups == "conflicting").all()


def test_the_correlation_changes_the_background_only():
    free, bound = sample_factors(50, seed=9), sample_factors(50, seed=9, correlation=1.0)
    for name in ("shape", "colour", "size", "x", "y", "angle", "tones"):
        assert (getattr(free, name) == getattr(bound, name)).all()


def test_background_colours_do_not_tell_the_texture():
    factors = sample_factors(30_000, seed=2)
    brightness = factors.tones.mean((1, 2))
    means = [brightness[factors.background == k].mean() for k in range(8)]
    assert np.ptp(means) < 0.01


def test_masks_hold_the_drawn_object():
    factors = sample_factors(200, seed=21)
    images, masks = render(factors)
    background, none = render(factors, show="background")
    alone, same = render(factors, show="object")
    assert not none.any() and (same == masks).all() and (render_masks(factors) == masks).all()
    assert (images[~masks] == background[~masks]).all(), "outside the mask there is only background"
    assert (images[masks] == alone[masks]).all(), "inside the mask there is only the object"
    assert (images[masks] != background[masks]).any(-1).mean() > 0.999
    share = masks.mean((1, 2))
    assert share.min() > 0.03 and share.max() < 0.4
    for centre in (factors.x, factors.y):
        assert (centre - factors.size >= 0).all() and (centre + factors.size <= IMAGE_SIZE).all(), (
            "no object is cut off"
        )


def test_object_only_images_do_not_depend_on_the_background():
    factors = sample_factors(30, seed=4)
    one, _ = render(factors, show="object")
    other, _ = render(swap(factors, "background"), show="object")
    assert (one == other).all()


@pytest.mark.parametrize("change", ["object", "background", "colour"])
def test_pairs_differ_in_the_edited_factor_only(change):
    pairs = scene_pairs(60, seed=13, change=change)
    clean, corrupt = np.stack(pairs.clean.raw()), np.stack(pairs.corrupt.raw())
    mask = np.stack([pairs.clean.read_mask(i) for i in range(60)])
    other = np.stack([pairs.corrupt.read_mask(i) for i in range(60)])
    differs = (clean != corrupt).any(-1)
    assert differs.any((1, 2)).all(), "every pair differs"
    if change == "object":
        assert not differs[~(mask | other)].any()
        assert not differs[mask & other].any(), "the new object has the old one's colour"
        assert (pairs.clean.labels != pairs.corrupt.labels).all()
        assert (pairs.clean.columns["background"] == pairs.corrupt.columns["background"]).all()
    elif change == "background":
        assert (mask == other).all() and not differs[mask].any()
        assert (pairs.clean.columns["background"] != pairs.corrupt.columns["background"]).all()
        assert (pairs.clean.labels == pairs.corrupt.labels).all()
    else:
        assert (mask == other).all() and not differs[~mask].any() and differs[mask].mean() > 0.99
        assert (pairs.clean.columns["colour"] != pairs.corrupt.columns["colour"]).all()
        assert (pairs.clean.labels == pairs.corrupt.labels).all()
    assert not set(pairs.clean.ids) & set(pairs.corrupt.ids)


def test_captions_name_the_factors():
    factors = sample_factors(100, seed=6)
    for i, caption in enumerate(captions(factors)):
        words = caption.split()
        assert SHAPES[factors.shape[i]] in words
        assert BACKGROUNDS[factors.background[i]] in words
        assert COLOURS[factors.colour[i]] in words
        assert sum(word in SHAPES + BACKGROUNDS + COLOURS for word in words) == 3
    assert len({c.split()[0] + c.split()[1] for c in captions(factors)}) > 2, "several templates are in use"


def test_image_set():
    images = scenes(16, seed=7, correlation=0.5, start=4)
    assert len(images) == 16 and images.ids[0] == "scenes/7/000004" and images.class_names == SHAPES
    assert images.read(0).shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and images.read(0).dtype == np.uint8
    assert images.fingerprint == scenes(16, seed=7, correlation=0.5, start=4).fingerprint
    assert images.fingerprint != scenes(16, seed=7, correlation=0.6, start=4).fingerprint
    assert scenes(4, show="background").read_mask is None
    assert mechvis.data.scenes(2, seed=1).ids == scenes(2, seed=1).ids


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"correlation": 1.5}, BadData, "1.5"),
        ({"n": -1}, BadData, "-1"),
        ({"n": 0}, BadData, "empty"),
        ({"group": "agreeing"}, UnknownName, "consistent"),
        ({"group": "consistent", "correlation": 0.5}, BadData, "not both"),
        ({"show": "everything"}, UnknownName, "background"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        scenes(**settings)
    with pytest.raises(UnknownName, match="colour"):
        scene_pairs(2, change="color")
