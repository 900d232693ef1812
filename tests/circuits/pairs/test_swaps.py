"""Object and background swaps: what changes, what stays, and who gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from circuits.pairs import background_swap, object_swap, scene_swap
from circuits.pairs.donors import other_class
from circuits.pairs.fill import without
from mechvis.data.scenes import BACKGROUNDS, SHAPES
from mechvis.errors import BadData, BadImages, UnknownName


def colours(model, pixels):
    return (model.preprocess.unnormalise(pixels) * 255).round()


# scenes drawn again


def test_scene_object_swap_is_exact(model):
    pairs = scene_swap(model, n=8, change="object", seed=3)
    untouched = ~(pairs.masks | pairs.corrupt_masks)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(pairs.clean[untouched], pairs.corrupt[untouched])
    assert (pairs.clean_labels != pairs.corrupt_labels).all()
    drawn = mechvis.data.scene_pairs(8, seed=3, change="object")
    assert torch.equal(pairs.corrupt, drawn.corrupt.pixels_for(model.preprocess))
    assert pairs.ids == drawn.clean.ids and pairs.class_names == SHAPES


def test_scene_background_swap_names_the_class_of_the_new_background(model):
    pairs = scene_swap(model, n=12, change="background", seed=3)
    inside = pairs.masks[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(pairs.clean[inside], pairs.corrupt[inside])
    assert torch.equal(pairs.masks, pairs.corrupt_masks)
    drawn = mechvis.data.scene_pairs(12, seed=3, change="background", group="consistent")
    new = [BACKGROUNDS.index(name) for name in drawn.corrupt.columns["background"]]
    assert pairs.corrupt_labels.tolist() == new and (pairs.clean_labels != pairs.corrupt_labels).all()
    with pytest.raises(BadData, match="leave correlation= and group= out"):
        scene_swap(model, n=2, change="background", group="conflicting")


def test_scene_colour_swap_has_no_class_of_its_own(model):
    pairs = scene_swap(model, n=4, change="colour", seed=3)
    assert pairs.corrupt_labels is None and pairs.clean_labels is not None
    with pytest.raises(UnknownName, match="unknown change"):
        scene_swap(model, n=4, change="size")


# swaps by masks


@pytest.mark.parametrize("fill", ["nearest", "mean"])
def test_object_swap(model, images, fill):
    pairs = object_swap(model, images, fill=fill, seed=4)
    untouched = ~(pairs.masks | pairs.corrupt_masks)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(pairs.clean[untouched], pairs.corrupt[untouched]), "no resizing here, so bit for bit"
    assert (pairs.clean_labels != pairs.corrupt_labels).all()
    assert torch.equal(pairs.masks, images.masks_for(model.preprocess))
    for own, new in zip(pairs.masks, pairs.corrupt_masks, strict=True):
        rows, columns = (own.any(axis).nonzero().flatten() for axis in (1, 0))
        high, wide = (new.any(axis).nonzero().flatten() for axis in (1, 0))
        assert rows[0] <= high[0] and high[-1] <= rows[-1] and columns[0] <= wide[0] and wide[-1] <= columns[-1]
        assert len(high) >= len(rows) - 1 or len(wide) >= len(columns) - 1, "as large as the box allows"
        assert abs(float(high[0] + high[-1] - rows[0] - rows[-1])) <= 2, "in its middle"


def test_object_swap_shows_the_donors_colours(model, uneven):
    """Objects of one colour each: the new object has exactly the donor's colour, with no rim of its background."""
    pairs, labels = object_swap(model, uneven, seed=1), uneven.labels
    assert pairs.clean.shape == (6, 3, 64, 64)
    chosen = other_class(labels, labels, 1)
    found = colours(model, pairs.corrupt)
    for image, donor in enumerate(chosen):
        # Resizing mixes the outermost pixels with their neighbours.
        inner = torch.nn.functional.max_pool2d((~pairs.corrupt_masks[image])[None].float(), 5, 1, 2)[0] == 0
        assert inner.any()
        expected = torch.tensor([200.0, 20 + 30 * donor, 40.0])
        assert (found[image][:, inner] - expected[:, None]).abs().max() <= 1
    assert pairs.corrupt_labels.tolist() == [SHAPES.index(uneven.class_names[labels[i]]) for i in chosen]


def test_background_swap(model, images):
    pairs = background_swap(model, images, seed=4)
    inside = pairs.masks[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(pairs.clean[inside], pairs.corrupt[inside])
    assert pairs.corrupt_labels is None and torch.equal(pairs.masks, pairs.corrupt_masks)
    chosen = other_class(images.labels, images.labels, 4)
    donors = images.pixels_for(model.preprocess)[chosen]
    visible = ~(pairs.masks | pairs.masks[torch.from_numpy(chosen)])[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(pairs.corrupt[visible], donors[visible])
    assert (images.labels[chosen] != images.labels).all()


def test_backgrounds_of_ones_own(model, uneven):
    """Any size, with no masks and no labels."""
    plain = replace(uneven, labels=None, read_mask=None, read=lambda row: np.full((40, 40, 3), 40 * row, np.uint8))
    pairs = background_swap(model, replace(uneven, labels=None), backgrounds=plain, seed=0)
    outer = torch.nn.functional.max_pool2d(pairs.masks.float(), 5, 1, 2) == 0
    for image in range(6):
        shades = colours(model, pairs.corrupt)[image][:, outer[image]].unique()
        assert len(shades) == 1 and float(shades) % 40 == 0


def test_seeds_and_donors(model, images):
    first, again, other = (object_swap(model, images, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.corrupt, again.corrupt) and not torch.equal(first.corrupt, other.corrupt)
    donors = mechvis.data.scenes(16, seed=32)
    given = object_swap(model, images, donors=donors, seed=4)
    assert not torch.equal(given.corrupt, first.corrupt)
    assert set(other_class(np.zeros(400, int), np.arange(5) % 5, 0).tolist()) == {1, 2, 3, 4}


def test_filling_a_hole():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    hole = np.zeros((3, 4), bool)
    hole[:, 3] = True
    assert without(image, hole)[:, 3, 0].tolist() == [2, 6, 10]
    assert without(image, hole, "mean")[:, 3, 0].tolist() == [5, 5, 5]
    assert np.array_equal(without(image, hole & False), image) and image[0, 3, 0] == 3
    with pytest.raises(UnknownName, match="unknown fill"):
        without(image, hole, "blur")


@pytest.mark.parametrize("swap", [object_swap, background_swap])
def test_what_a_swap_needs(model, images, without_masks, swap):
    with pytest.raises(BadData, match="needs object masks"):
        swap(model, without_masks)
    with pytest.raises(BadData, match="needs labels"):
        swap(model, replace(images, labels=None))
    with pytest.raises(BadImages, match="takes an ImageSet"):
        swap(model, images.pixels)
    with pytest.raises(BadData, match="of several classes"):
        swap(model, images[np.flatnonzero(images.labels == images.labels[0])])
    empty = replace(images, read_mask=lambda row: images.read_mask(row) & (row != 3))
    with pytest.raises(BadData, match=r"mask is empty in 1 of 16 images \(scenes/31/000003\)"):
        swap(model, empty)
    full = replace(images, read_mask=lambda row: images.read_mask(row) | True)
    with pytest.raises(BadData, match="covers the whole image in 16 of 16"):
        swap(model, full)
    small = replace(images, read_mask=lambda row: images.read_mask(row)[:-1])
    with pytest.raises(BadData, match=r"bool \(63, 64\), its image \(64, 64\)"):
        swap(model, small)
