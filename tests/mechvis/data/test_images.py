"""The image set: selection, splits, identity, and refusal of overlap."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil

from mechvis.data import ImageSet, Preprocess, refuse_overlap
from mechvis.errors import BadData, OutOfRange, SplitOverlap


def _pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _mask(row: int) -> np.ndarray:
    return _pixels(row)[..., 0] > 128


def _other(row: int) -> np.ndarray:
    return _pixels(row + 1000)


def _set(n: int = 12, **changes) -> ImageSet:
    known = {
        "name": "x",
        "ids": tuple(f"{i}.png" for i in range(n)),
        "read": _pixels,
        "rows": np.arange(n),
        "labels": np.arange(n) % 3,
        "class_names": ("a", "b", "c"),
        "read_mask": _mask,
        "captions": tuple(f"image {i}" for i in range(n)),
        "columns": {"age": np.arange(n) * 10},
    }
    return ImageSet(**(known | changes))


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, -4), [11, 7, 3]),
        ([5, 0, -1], [5, 0, 11]),
        (np.array([3, 3 - 12 + 1]), [3, 4]),
        (torch.tensor([1, 2]), [1, 2]),
        (np.arange(12) % 6 == 1, [1, 7]),
        (4, [4]),
    ],
    ids=str,
)
def test_selection_keeps_everything_together(index, rows):
    part = _set()[index]
    assert part.rows.tolist() == rows and part.ids == tuple(f"{i}.png" for i in rows)
    assert part.labels.tolist() == [i % 3 for i in rows] and part.captions == tuple(f"image {i}" for i in rows)
    assert part.columns["age"].tolist() == [i * 10 for i in rows]
    assert all(np.array_equal(image, _pixels(i)) for image, i in zip(part.raw(), rows, strict=True))


def test_selection_of_a_selection():
    assert _set()[4:][[2, 0]].ids == ("6.png", "4.png")


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([0, 12], OutOfRange, "image index 12 in a set of 12: valid are -12 to 11"),
        ([-13], OutOfRange, "image index -13"),
        ([], BadData, "the selection from 'x' holds no image"),
        (slice(5, 5), BadData, "holds no image"),
        (np.zeros(12, bool), BadData, "holds no image"),
        (np.ones(5, bool), BadData, "a bool selection needs 12 entries, got 5"),
        ([0.5, 1.0], BadData, "whole numbers or a bool mask, got float64"),
        ([3, 3], BadData, "image ids repeat"),
    ],
    ids=str,
)
def test_selections_that_are_none(index, error, message):
    with pytest.raises(error, match=message):
        _set()[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": (), "rows": np.arange(0)}, "the image set 'x' is empty"),
        ({"labels": np.zeros(3, int)}, "12 images but 3 entries in 'labels'"),
        ({"captions": ("a",)}, "12 images but 1 entries in 'captions'"),
        ({"columns": {"age": np.zeros(2)}}, "2 entries in 'age'"),
        ({"ids": ("a",) * 12}, "image ids repeat, 12 images but 1 different ids"),
        ({"labels": np.full(12, 3)}, "labels from 3 to 3, but class names for 0 to 2"),
        ({"labels": np.full(12, -1)}, "labels from -1 to -1"),
    ],
)
def test_contradictions(changes, message):
    with pytest.raises(BadData, match=message):
        _set(**changes)


def test_pixels_and_masks_need_preprocessing():
    with pytest.raises(BadData, match=r"no preprocessing of its own\. Use images\.pixels_for\(model\.preprocess\)"):
        _ = _set().pixels
    with pytest.raises(BadData, match="no preprocessing of its own"):
        _ = _set().masks
    with pytest.raises(BadData, match="no labels"):
        _ = _set(labels=None).label_tensor
    preprocess = Preprocess.of_processor(ViTImageProcessorPil(size={"height": 8, "width": 8}))
    with pytest.raises(BadData, match=r"has no masks\. Pass masks="):
        _set(read_mask=None).masks_for(preprocess)
    images = _set(preprocess=preprocess)[[4, 1]]
    assert torch.equal(images.pixels, preprocess([_pixels(4), _pixels(1)]))
    assert torch.equal(images.masks, torch.from_numpy(np.stack([_mask(4), _mask(1)])))
    assert images.label_tensor.tolist() == [1, 1]


def test_split_is_disjoint_stratified_and_seeded():
    images = _set(60, labels=np.array([0] * 40 + [1] * 20))
    parts = images.split(0.5, 0.25, 0.25, seed=0)
    assert [len(part) for part in parts] == [30, 15, 15]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[20, 10], [10, 5], [10, 5]]
    assert set().union(*(part.ids for part in parts)) == set(images.ids)
    assert [part.ids for part in images.split(0.5, 0.25, 0.25, seed=0)] == [part.ids for part in parts]
    assert [part.ids for part in images.split(0.5, 0.25, 0.25, seed=1)] != [part.ids for part in parts]
    assert all(part.rows.tolist() == sorted(part.rows) for part in parts)
    refuse_overlap(parts[0], parts[1], what="selection and evaluation")


def test_split_follows_groups_before_labels():
    images = _set(40, groups=np.array(["rare"] * 4 + ["common"] * 36))
    for part in images.split(0.5, 0.5, seed=3):
        assert (part.groups == "rare").sum() == 2


def test_split_of_a_set_that_knows_nothing():
    assert len(_set(labels=None).split(0.5, seed=0)[0]) == 6


@pytest.mark.parametrize("fractions", [(0.7, 0.7), (0.5, -0.1), (0.0, 1.0)])
def test_impossible_fractions(fractions):
    with pytest.raises(BadData, match="split fractions must be positive and sum to at most 1"):
        _set().split(*fractions, seed=0)


def test_split_with_an_empty_part():
    with pytest.raises(
        BadData, match=r"a part of 0\.01 of the 12 images of 'x' would be empty \(split within 3 labels"
    ):
        _set().split(0.9, 0.01, seed=0)


def test_fingerprint_is_stable_and_sees_every_change():
    images = _set()
    assert images.fingerprint == _set().fingerprint and len(images.fingerprint) == 16
    assert _set(name="y", columns={}).fingerprint == images.fingerprint, "what it is called does not matter"
    changed = {
        "content": {"read": _other},
        "labels": {"labels": np.zeros(12, int)},
        "no labels": {"labels": None},
        "class names": {"class_names": ("a", "c", "b")},
        "groups": {"groups": np.array(["x"] * 12)},
        "captions": {"captions": None},
        "masks": {"read_mask": None},
        "mask content": {"read_mask": lambda row: ~_mask(row)},
        "ids": {"ids": tuple(f"{i}.jpg" for i in range(12))},
    }
    prints = {name: _set(**change).fingerprint for name, change in changed.items()}
    prints |= {"itself": images.fingerprint, "order": images[::-1].fingerprint, "part": images[:6].fingerprint}
    assert len(set(prints.values())) == len(prints), prints


def test_fingerprint_of_generated_images_reads_none():
    def never(row: int) -> np.ndarray:
        raise AssertionError("generated images need not be drawn for their hash")

    first, second = _set(read=never, recipe="v1 seed 7"), _set(read=never, recipe="v1 seed 8")
    assert first.fingerprint == _set(read=never, recipe="v1 seed 7").fingerprint != second.fingerprint


def test_overlap_is_named():
    images = _set()
    with pytest.raises(
        SplitOverlap, match=r"selection and evaluation must not share images: 2 in both \(4\.png, 5\.png\)"
    ):
        refuse_overlap(images[:6], images[4:], what="selection and evaluation")
    with pytest.raises(SplitOverlap, match=r"12 in both \(0\.png, 1\.png, 2\.png \.\.\.\)\. Use images\.split"):
        refuse_overlap(images, replace(images, read=lambda row: _pixels(row)), what="a and b")
    refuse_overlap(images[:6], images[6:], what="a and b")


def test_equal_names_of_different_images_are_no_overlap():
    refuse_overlap(_set(), _set(read=_other), what="a and b")


def test_generated_images_overlap_by_name():
    with pytest.raises(SplitOverlap, match="12 in both"):
        refuse_overlap(_set(recipe="r"), _set(recipe="r", read=_other), what="a and b")


def test_printing():
    assert repr(_set(groups=np.array(["x", "y"] * 6))) == (
        "ImageSet('x', 12 images, 3 classes, masks, 2 groups, captions)"
    )
    assert repr(_set(labels=None, read_mask=None, captions=None, skipped=("a",))) == (
        "ImageSet('x', 12 images, no labels, 1 skipped)"
    )
