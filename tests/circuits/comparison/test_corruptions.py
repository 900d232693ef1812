"""Corruptions change what they say, by more at each severity, and the same way whatever is read with them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from circuits.comparison import corrupted, ladder
from circuits.comparison.corruptions import KINDS, LADDERS
from mechvis.errors import BadData, BadImages, OutOfRange, UnknownName


@pytest.fixture(scope="module")
def images(pictures):
    return pictures(12, 4)


def change(images, other):
    return np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(images.raw(), other.raw(), strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_severities_grow_and_what_is_known_stays(images, kind):
    sets = [corrupted(images, kind, severity) for severity in (1, 2, 3, 4, 5)]
    sizes = [change(images, one) for one in sets]
    # Hues have turned most at 180 degrees, where red is cyan; the others grow in every pixel.
    assert (np.diff(sizes) > 0).all() and sizes[0] > 0, sizes
    assert sets[2].labels is images.labels and sets[2].read_mask is images.read_mask
    assert sets[2].name == f"scenes, {kind} 3" and sets[2].ids[0] == f"scenes/4/000000+{kind}3"
    assert len({one.fingerprint for one in (images, *sets)}) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pixels_whatever_else_is_read(images, kind):
    whole = corrupted(images, kind, 4, seed=3)
    again = corrupted(images, kind, 4, seed=3)
    some = whole[[7, 2]]
    np.testing.assert_array_equal(some.raw()[0], whole.raw()[7])
    np.testing.assert_array_equal(some.raw()[1], again.raw()[2])
    if kind in ("noise", "background"):
        assert change(whole, corrupted(images, kind, 4, seed=4)) > 0
        assert whole.fingerprint != corrupted(images, kind, 4, seed=4).fingerprint


def test_each_does_what_it_says(images):
    raw = images.raw()
    blurred = corrupted(images, "blur", 4).raw()[0]
    expected = ndimage.gaussian_filter(raw[0].astype(float), (0.04 * 64, 0.04 * 64, 0))
    assert np.abs(blurred - expected)[8:-8, 8:-8].mean() < 6  # PIL's blur is three box blurs
    noisy = corrupted(images, "noise", 1).raw()
    apart = np.concatenate([(a.astype(float) - b).ravel() for a, b in zip(noisy, raw, strict=True)])
    assert apart.std() == pytest.approx(0.04 * 255, rel=0.05) and abs(apart.mean()) < 0.5
    paler = corrupted(images, "contrast", 5).raw()[0]
    assert paler.std((0, 1)) == pytest.approx(0.1 * raw[0].std((0, 1)), rel=0.05)
    warm = corrupted(images, "colour", 3).raw()[0].astype(float)
    np.testing.assert_allclose(warm[..., 2], 0.7 * raw[0][..., 2], atol=0.51)
    np.testing.assert_array_equal(warm[..., 1], raw[0][..., 1])
    assert (warm[..., 0] >= raw[0][..., 0]).all()
    half_turn = corrupted(images, "hue", 5).raw()[0]
    np.testing.assert_array_equal(half_turn.max(-1), raw[0].max(-1))  # the value of HSV stays
    np.testing.assert_array_equal(half_turn.min(-1), raw[0].min(-1))


def test_backgrounds_come_from_other_images_and_objects_stay(images):
    swapped = corrupted(images, "background", 5)
    for before, after, row in zip(images.raw(), swapped.raw(), images.rows, strict=True):
        mask = images.read_mask(int(row))
        np.testing.assert_array_equal(before[mask], after[mask])
        assert (before[~mask] != after[~mask]).any()
    # Those that are swapped at one severity are among those of the next.
    moved = []
    for severity in (1, 3, 5):
        pairs = zip(images.raw(), corrupted(images, "background", severity).raw(), strict=True)
        moved.append({i for i, (a, b) in enumerate(pairs) if (a != b).any()})
    assert moved[0] < moved[1] < moved[2] == set(range(12))


def test_a_ladder_has_every_rung(images):
    found = ladder(images, ("blur", "noise"), (1, 5))
    assert list(found) == ["blur 1", "blur 5", "noise 1", "noise 5"]
    assert all(len(sizes) == 5 for sizes in LADDERS.values())


def test_bad_input(images):
    with pytest.raises(UnknownName, match="corruption 'fog'"):
        corrupted(images, "fog", 1)
    with pytest.raises(OutOfRange, match="severity=6: corruptions come in severities 1 to 5"):
        corrupted(images, "blur", 6)
    with pytest.raises(BadData, match="has no masks"):
        corrupted(replace(images, read_mask=None), "background", 1)
    with pytest.raises(BadData, match="at least two images"):
        corrupted(images[:1], "background", 1)
    with pytest.raises(BadData, match="at least one kind"):
        ladder(images, ())
    grey = replace(images, read=lambda row: np.zeros((8, 8), np.uint8))
    with pytest.raises(BadImages, match=r"is uint8 \[8, 8\]"):
        corrupted(grey, "blur", 1).raw()
    sizes = replace(images, read=lambda row: np.zeros((8 + row, 8, 3), np.uint8))
    with pytest.raises(BadImages, match="one size only"):
        corrupted(sizes, "background", 5).raw()
    full = replace(images, read_mask=lambda row: np.ones((64, 64), bool))
    with pytest.raises(BadData, match="it has no background to give"):
        corrupted(full, "background", 5).raw()
